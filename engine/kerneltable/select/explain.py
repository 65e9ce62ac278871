"""A Selection as text that a person reads in ten seconds, and as a JSON-able object."""

from __future__ import annotations

from typing import Any

from kerneltable.model import Candidate, Device, Problem, Selection, Table
from kerneltable.select.bands import Kept, kept_by
from kerneltable.select.facts import FORMAT, to_facts
from kerneltable.select.predicates import describe_chip
from kerneltable.select.problems import block_text


def text(table: Table, selection: Selection, *, verbose: bool = False) -> list[str]:
    """The selection as lines: the problem, the winner with its `why`, each other candidate and what refused it, then
    the bands of m if there are several, and what the layer's weights take in memory.

    verbose   every refusal of every candidate instead of the first
    """
    width = max((len(candidate.kernel) for candidate in selection.candidates), default=0)
    lines = [
        _problem_line(selection.problem, describe_device(table, selection.device)),
        _detail_line(selection.problem),
    ]
    winner = next((c for c in selection.candidates if c.verdict == "chosen"), None)
    if winner is None:
        lines.append("  no kernel" + ("" if selection.candidates else ": there are no candidates"))
    else:
        lines += _winner_lines(table, winner, selection.device, width)
    kept = kept_by(table, selection)
    for candidate in selection.candidates:
        bands = [band for band in kept.bands if candidate.where in band.steps]
        if candidate.verdict == "refused" and bands and selection.problem.m is None:
            rows = ", ".join(band.rows for band in bands)
            lines.append(f"  by band  {candidate.kernel:<{width}}  {rows} ({candidate.where})")
        elif candidate is not winner:
            again = winner is not None and candidate.kernel == winner.kernel
            lines += _candidate_lines(candidate, width, again=again, verbose=verbose)
    return lines + _kept_lines(kept) + [f"  note: {note}" for note in selection.notes]


def as_json(table: Table, selection: Selection) -> dict[str, Any]:
    """The selection as JSON-able values; `chosen` is a kernel id or None, `where` is "file:line:column"."""
    problem = selection.problem
    return {
        "format": FORMAT,
        "table": {"digest": table.digest, "layers": [{"name": x.name, "sha256": x.sha256} for x in table.layers]},
        "problem": {name: getattr(problem, name) for name in problem.__dataclass_fields__}
        | {"weight_block": None if problem.weight_block is None else block_text(problem.weight_block)},
        "device": to_facts(selection.device),
        "chosen": selection.kernel,
        "status": None if selection.kernel is None else standing(table, selection.kernel, selection.device),
        "candidates": [_candidate_json(candidate) for candidate in selection.candidates],
        "plan": _kept_json(table, kept_by(table, selection)),
        "notes": list(selection.notes),
    }


def describe_device(table: Table, device: Device) -> str:
    """The device in a few words: "dgx-spark (cuda sm121)"."""
    chip = device.architecture or describe_chip(table, device)
    if device.name and device.name.lower() not in (chip, f"{device.platform}:{chip}"):
        return f"{device.name} ({device.platform} {chip})"
    return f"{device.platform} {chip}"


def standing(table: Table, kernel_id: str, device: Device) -> str:
    """The status of a kernel on this chip: a run elsewhere proves nothing here, so it is "unverified on sm121"."""
    kernel = table.kernels[kernel_id]
    names = table.platforms[device.platform].devices if device.platform in table.platforms else {}
    seen = {names.get(ran.device, ran.device) for ran in kernel.verified}
    if kernel.status != "verified" or device.architecture in seen:
        return kernel.status
    return f"unverified on {device.architecture or describe_chip(table, device)}"


def _problem_line(problem: Problem, device: str) -> str:
    rows = "any m" if problem.m is None else f"m={problem.m}"
    bias = ", bias" if problem.bias else ""
    return (
        f"{problem.scheme} on {device}: {rows} n={problem.n} k={problem.k}, {problem.input} -> {problem.output}{bias}"
    )


def _detail_line(problem: Problem) -> str:
    block = f" {block_text(problem.weight_block)}" if problem.weight_block else ""
    taken = (
        "not quantized"
        if problem.input_granularity == "none"
        else f"{problem.input_granularity} {problem.input_scaling}"
    )
    model = f"; model: {problem.model}" if problem.model else ""
    return f"  weight: {problem.weight_granularity}{block}, scale {problem.weight_scale}; input: {taken}{model}"


def _winner_lines(table: Table, winner: Candidate, device: Device, width: int) -> list[str]:
    kernel = table.kernels[winner.kernel]
    lines = [f"  chosen   {kernel.id:<{width}}  {kernel.kind}, {standing(table, kernel.id, device)} ({winner.where})"]
    indent = " " * (13 + width)
    lines += [f"{indent}{sentence}" for sentence in (kernel.summary, f"why here: {kernel.why}") if sentence]
    lines += [f"{indent}verified on {seen.device}, {seen.date}" for seen in kernel.verified]
    return lines


def _candidate_lines(candidate: Candidate, width: int, *, again: bool, verbose: bool) -> list[str]:
    """again: an earlier step of the route has chosen the same kernel."""
    head = f"  {candidate.verdict:<8} {candidate.kernel:<{width}}"
    if not candidate.refusals:
        what = "chosen above" if again else "would do too"
        return [f"{head}  {what} ({candidate.where})" if candidate.verdict == "later" else head]
    shown = candidate.refusals if verbose else candidate.refusals[:1]
    lines = [f"{head}  {shown[0]}", *(" " * (13 + width) + str(refusal) for refusal in shown[1:])]
    more = len(candidate.refusals) - len(shown)
    return [lines[0] + (f" and {more} more" if more else ""), *lines[1:]]


def _kept_lines(kept: Kept) -> list[str]:
    lines = [f"  bands    {'; '.join(map(str, kept.bands))}"] if len(kept.bands) > 1 else []
    more = f"about {kept.weights} more{' each' if len(kept.copies) > 1 else ''}"
    copies = f"packed as {' and as '.join(kept.copies)}, {more}" if kept.copies else "none packed"
    allowed = "" if kept.allowed is None else f" (copies allowed: {kept.allowed})"
    return [*lines, f"  memory   weights and scales {kept.weights} as in the checkpoint, {copies}{allowed}"]


def _kept_json(table: Table, kept: Kept) -> dict[str, Any]:
    return {
        "bands": [
            {
                "first": band.first,
                "last": band.last,
                "multiples": list(band.multiples),
                "kernel": band.kernel,
                "layout": None if band.kernel is None else table.kernels[band.kernel].layout,
            }
            for band in kept.bands
        ],
        "checkpoint_bytes": kept.weights.total,
        "copies": [{"layout": layout, "bytes": kept.weights.total} for layout in kept.copies],
        "weight_copies": kept.allowed,
        "demands": list(kept.demands),
    }


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "kernel": candidate.kernel,
        "verdict": candidate.verdict,
        "refusals": [
            {"predicate": r.predicate, "wanted": r.wanted, "found": r.found, "where": str(r.where)}
            for r in candidate.refusals
        ],
    }
