"""Where the files that come with kerneltable are: in the installed package, else in the checkout. Never elsewhere."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from kerneltable.errors import ConfigError, Finding
from kerneltable.model import Mark


def shipped(*parts: str, package: Traversable | None = None) -> Traversable:
    """A file that comes with kerneltable: shipped("dispatch.yaml"), shipped("schema", "dispatch.schema.json").

    package  the folder of the package; it may lie in a zip file
    errors   ConfigError when the file is in neither place: the installation is broken
    """
    root = files("kerneltable") if package is None else package
    places: list[Traversable] = [root.joinpath("_data", *parts)]
    if isinstance(root, Path):
        places.append(root.parent.parent.joinpath(*parts))
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(str(place) for place in places)
    name = "/".join(parts)
    message = f"{name} is missing from this installation; looked at {looked}"
    raise ConfigError([Finding("KT121", "error", message, Mark(name, 1, 1), help="install kerneltable again")])
