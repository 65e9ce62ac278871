"""A driver that only writes down what kernels launch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kerneltable.ops.cuda_launch import TensorMap

MEMORY = 1 << 40
"""Where the memory between two launches lies."""


@dataclass
class Driver:
    """What was loaded and launched, and what tensor maps stand for; memory that was taken and not given back.

    stream   of eager launches; None: a graph is captured
    """

    loaded: list[Any] = field(default_factory=list)
    launched: list[Any] = field(default_factory=list)
    maps: dict[int, Any] = field(default_factory=dict)
    taken: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    fails: str = ""
    stream: int | None = None

    def load(self, one: Any, chip: Any, device: int) -> Any:
        self.loaded.append(one)

        def function(grid: Any, block: Any, arguments: Any, maps: Any = ()) -> None:
            self.launched.append((one, grid, block, arguments, tuple(self.maps[at] for at in maps)))
            if one.name == self.fails:
                raise RuntimeError("launch failed")

        return function

    def repeated(
        self, function: Any, grid: Any, block: Any, stream: int, arguments: tuple[Any, ...], maps: tuple[Any, ...]
    ) -> Any:
        def launch(given: tuple[Any, ...], map: int = 0) -> None:
            assert stream == self.stream
            assert (map != 0) == (None in maps)
            left = iter(given)
            every = tuple(next(left) if value is None else value for value in arguments)
            assert not [*left]
            function(grid, block, every, tuple(map if one is None else one.address for one in maps))

        return launch

    def tensor_map(self, *description: Any) -> TensorMap:
        at = 64 * (1 + len(self.maps))
        self.maps[at] = description
        return TensorMap(at, None)

    def take(self, bytes: int, function: Any) -> int:
        self.taken.append(bytes)
        self.asked.append(bytes)
        return MEMORY

    def give_back(self, address: int) -> None:
        assert address == MEMORY
        self.taken.pop()


def apart(launched: Any, addresses: dict[int, str]) -> Any:
    """A launch with the addresses of a call named."""
    one, grid, block, arguments, maps = launched
    named = [addresses.get(value, value) for value in arguments]
    return one, grid, block, named, tuple((addresses.get(at, at), *rest) for at, *rest in maps)
