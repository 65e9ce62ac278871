"""The parser of the commands: an option of one value that is given twice is refused; the last would win unseen."""

from __future__ import annotations

from argparse import Action, ArgumentError, ArgumentParser, Namespace
from typing import Any


class Parser(ArgumentParser):
    """An argument parser whose options of one value may be given once; the parsers of its commands are like it."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        for name in (None, "store"):
            self.register("action", name, Once)


class Once(Action):
    """Keep one value; a second one is an error."""

    _given: tuple[object, ...] = ()

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None) -> None:
        """Take the value over; ArgumentError when there is one already."""
        if self._given and option is not None:
            found = f"{str(self._given[0])[:80]!r} and {str(values)[:80]!r}"
            raise ArgumentError(self, f"one value was wanted; found {found}; give the option once")
        self._given = (values,)
        setattr(namespace, self.dest, values)


class Joined(Action):
    """Join the values of a repeated option to one comma list."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None) -> None:
        """Add one more part of the list."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")
