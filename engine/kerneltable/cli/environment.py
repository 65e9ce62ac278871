"""The environment variables of kerneltable: where compiled code is kept, and whether compiling is allowed.

They decide neither kernel nor table. Read here and nowhere else; a program that imports kerneltable says the same with
`kerneltable.set_compiling`. Isolated (`python -I`, `-E`) or with another user's rights, none is read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kerneltable.errors import KernelTableError

if TYPE_CHECKING:
    from kerneltable.run.compiling import CompileSettings

CACHE_DIR = "KERNELTABLE_CACHE_DIR"
JIT = "KERNELTABLE_JIT"
VARIABLES: Mapping[str, str] = {
    CACHE_DIR: "folder of compiled device code, an absolute path (default: ~/.cache/kerneltable)",
    JIT: "0 forbids compiling device code: what `kerneltable build` has not made is then refused (default: 1)",
}


def settings_of(environment: Mapping[str, str]) -> CompileSettings | None:
    """The settings that the variables ask for; None when none of them is set, or none may be read.

    errors    KernelTableError for a value that is none, naming the variable
    """
    if not any(name in environment for name in VARIABLES) or not may_read():
        return None
    from kerneltable.run.compiling import compile_settings

    jit = environment.get(JIT, "1")
    if jit not in ("0", "1"):
        raise KernelTableError(f"{JIT}: 0 or 1 was wanted; found {jit[:80]!a}; unset it to allow compiling")
    try:
        return compile_settings(environment.get(CACHE_DIR), jit=jit == "1")
    except KernelTableError as error:
        raise KernelTableError(f"{CACHE_DIR}: {error}") from error


def may_read() -> bool:
    """False when the environment may be another user's: a folder of compiled code decides which code runs."""
    return not sys.flags.ignore_environment and os.getuid() == os.geteuid()


def say_unread(environment: Mapping[str, str]) -> None:
    """Name variables that somebody meant for us: a layer that nobody sees must not decide, so none is read."""
    known = VARIABLES if may_read() else {}
    for name in sorted(name for name in environment if name.startswith("KERNELTABLE_") and name not in known)[:5]:
        print(f"kerneltable: {name[:80]!a} has no effect: options decide, not the environment", file=sys.stderr)
