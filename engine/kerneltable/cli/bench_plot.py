"""Time over m for each kernel, one panel a shape, the table's choice marked. Needs matplotlib (`kerneltable[plot]`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerneltable.errors import ProblemError

if TYPE_CHECKING:
    from kerneltable.run.timing.bench import Timing


def check_plot(path: str) -> None:
    """Say before anything is timed what would keep the plot from being written: ProblemError."""
    if not Path(path).absolute().parent.is_dir():
        raise ProblemError(f"--plot: {path[:200]} cannot be written: there is no folder {str(Path(path).parent)[:200]}")
    _pyplot()


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise ProblemError(f"--plot needs matplotlib: pip install 'kerneltable[plot]' ({error})") from error
    return pyplot


def draw(timings: Sequence[Timing], path: str, device: str) -> None:
    """Write the plot; the ending of path says in which format.

    errors    ProblemError when the file cannot be written; those of check_plot
    """
    pyplot = _pyplot()
    sizes = list(dict.fromkeys((t.n, t.k) for t in timings))
    columns = min(3, len(sizes))
    figure, panels = pyplot.subplots(
        -(-len(sizes) // columns), columns, figsize=(5.5 * columns, 4 * -(-len(sizes) // columns)), squeeze=False
    )
    names = list(dict.fromkeys(t.kernel for t in timings))
    colours = dict(zip(names, map(pyplot.get_cmap("tab20"), range(20)), strict=False))
    for panel, (n, k) in zip(panels.flat, sizes, strict=False):
        for name in names:
            mine = [t for t in timings if (t.n, t.k, t.kernel) == (n, k, name) and t.call]
            times = [t.call.median for t in mine if t.call]
            panel.plot([t.m for t in mine], times, marker=".", label=name, color=colours.get(name))
            chosen = [(t.m, t.call.median) for t in mine if t.chosen and t.call]
            panel.scatter([m for m, _ in chosen], [u for _, u in chosen], s=90, facecolors="none", edgecolors="black")
        panel.set(title=f"{n} x {k}", xlabel="m (circles: the table's choice)", ylabel="microseconds a call")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
    for panel in list(panels.flat)[len(sizes) :]:
        panel.axis("off")
    panels.flat[0].legend(fontsize="small")
    figure.suptitle(device)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ProblemError(f"--plot: {path[:200]} cannot be written: {error}") from error
