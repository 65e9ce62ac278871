"""What the tests of the command line share: asking in this process, and a private override file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import kerneltable

ENGINE = Path(kerneltable.__file__).parent.parent
ASKED = ("fp8_block_w8a8", "--device", "h200", "--n", "4096", "--k", "4096")
ONE = ("--devices", "h200")
OFFLINE = {"explain": ASKED, "select": ASKED, "show": (), "rule": (), "check": (), "matrix": ONE, "lock": ONE}


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Ask = Callable[..., Answer]


def override(folder: Path, text: str, name: str = "deploy.yaml") -> str:
    """Write a file that only its owner can write, as override files must be."""
    file = folder / name
    file.write_text(text)
    file.chmod(0o600)
    return str(file)
