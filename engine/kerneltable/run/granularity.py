"""What one weight scale covers, read off the scale's shape; what a shape leaves open, the caller must declare."""

from __future__ import annotations

from kerneltable.errors import LayerError
from kerneltable.model import Scheme

Block = tuple[int, int]


def settle_weight_scale(
    scheme: Scheme,
    shape: tuple[int, ...],
    n: int,
    k: int,
    declared: tuple[str | None, Block | None],
    name: str = "layer",
) -> tuple[str, Block | None]:
    """The granularity, and the block where it is block, of a weight scale of this shape.

    shape     [] or [1] tensor; [n] or [n, 1] channel; [ceil(n/bn), ceil(k/bk)] block
    declared  granularity and block as the caller gives them; a block alone declares granularity block
    errors    LayerError if no granularity of the scheme fits the shape, or several do and none is declared
    """
    granularity, block = declared
    if granularity is None and block is not None:
        granularity = "block"
    offered = scheme.weight.granularities
    if granularity is not None and granularity not in offered:
        raise LayerError(
            f"{name}: scheme '{scheme.name}' has weight granularity {' or '.join(offered)}; "
            f"found '{granularity}' declared"
        )
    block = _known_block(scheme, block, name)
    candidates = offered if granularity is None else (granularity,)
    fitting = [g for g in candidates if shape in scale_shapes(g, n, k, block)]
    if not fitting:
        raise LayerError(
            f"{name}: weight_scale of a [{n}, {k}] weight must be {_wanted(candidates, n, k, block)}; "
            f"found {list(shape)}; declare weight_block or weight_granularity if it is another one"
        )
    if len(fitting) > 1:
        raise LayerError(
            f"{name}: weight_scale {list(shape)} of a [{n}, {k}] weight fits granularity {' and '.join(fitting)}; "
            "declare weight_granularity"
        )
    return fitting[0], block if fitting[0] == "block" else None


def scale_shapes(granularity: str, n: int, k: int, block: Block | None) -> tuple[tuple[int, ...], ...]:
    """Every accepted shape of a weight scale: [n, k] weight, this granularity, this block [rows, columns]."""
    if granularity == "tensor":
        return ((), (1,))
    if granularity == "channel":
        return ((n,), (n, 1))
    if block is None:
        return ()
    return ((-(-n // block[0]), -(-k // block[1])),)


def checked_block(block: object, name: str) -> Block | None:
    """A weight block as a tuple, None for none. errors: LayerError for anything but two positive whole numbers."""
    if block is None:
        return None
    numbers = tuple(block) if isinstance(block, (tuple, list)) else ()
    if len(numbers) == 2 and all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in numbers):
        return numbers[0], numbers[1]
    raise LayerError(
        f"{name}: weight_block must be two positive integers, rows and columns; found {repr(block)[:200]}; "
        "write it as (128, 128)"
    )


def _known_block(scheme: Scheme, block: Block | None, name: str) -> Block | None:
    """The declared block, else the scheme's default; LayerError when the scheme cannot have it."""
    block = checked_block(block, name)
    if block is None:
        return scheme.weight.blocks[0] if scheme.weight.blocks else None
    if block not in scheme.weight.blocks and not scheme.weight.any_block:
        known = ", ".join(f"{r}x{c}" for r, c in scheme.weight.blocks) or "no blocks"
        raise LayerError(f"{name}: scheme '{scheme.name}' has {known}; found weight_block {block[0]}x{block[1]}")
    return block


def _wanted(granularities: tuple[str, ...], n: int, k: int, block: Block | None) -> str:
    parts = []
    for granularity in granularities:
        shapes = " or ".join(str(list(shape)) for shape in scale_shapes(granularity, n, k, block))
        size = f" of {block[0]}x{block[1]}" if granularity == "block" and block else ""
        parts.append(f"{shapes} ({granularity}{size})")
    return ", ".join(parts)
