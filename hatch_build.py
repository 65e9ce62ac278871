"""Put dispatch.yaml into the wheel: `sources` can rename folders, not a single file."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DispatchTableHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds dispatch.yaml as kerneltable/_data/dispatch.yaml to a wheel; an editable install reads the checkout."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"]["dispatch.yaml"] = "kerneltable/_data/dispatch.yaml"
