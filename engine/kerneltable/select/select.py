"""The choice itself: of a route's candidates, the first kernel that nothing refuses wins.

Pure: the answer depends on the table, the device and the problem alone. `table.answers` only remembers.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from kerneltable.errors import ProblemError
from kerneltable.model import (
    Candidate,
    Denial,
    Device,
    Kernel,
    Needs,
    Predicate,
    Problem,
    Refusal,
    Route,
    Selection,
    Step,
    Table,
)
from kerneltable.names import hint
from kerneltable.select.devices import device as by_name
from kerneltable.select.predicates import (
    FACT_OF,
    SIZES,
    Facts,
    Sized,
    check,
    chip_name,
    device_facts,
    misses,
    problem_facts,
    sized,
    unfit,
)
from kerneltable.select.problems import complete, scheme_of
from kerneltable.select.terms import demand_refusals, over_budget, packed_layouts
from kerneltable.select.versions import distribution

MOST_ANSWERS = 4096
MOST_KINDS = 256


def select(table: Table, device: Device | str, problem: Problem) -> Selection:
    """Choose the kernel for a problem on a device.

    device    a Device, or a name of the table ("h200")
    returns   the chosen kernel's id, or None when every candidate refuses or the platform has no route, and every
              candidate of the route with its verdict and all of its refusals
    errors    ProblemError for a question the table cannot be asked (unknown scheme or device, negative size, ...)
    """
    if not isinstance(device, Device):
        device = by_name(device, table)
    question = (device, problem)
    answer = table.answers.get(question)
    if answer is None:
        answer = _decide(table, device, complete(scheme_of(table, problem.scheme), problem))
        _remember(table, question, answer)
    return answer


def refusals(table: Table, kernel_id: str, device: Device, problem: Problem) -> tuple[Refusal, ...]:
    """Everything that refuses one kernel, whether or not a route names it; empty when it may be forced.

    errors    ProblemError for an unknown kernel, or a question the table cannot be asked
    """
    kernel = _kernel(table, kernel_id)
    problem = complete(scheme_of(table, problem.scheme), problem)
    facts = {**facts_of(table, device), **problem_facts(problem), "model": problem.model}
    route = table.routes.get((problem.scheme, device.platform))
    return (*demand_refusals(kernel, route, facts), *_row_refusals(table, kernel, device, facts))


def _decide(table: Table, device: Device, problem: Problem) -> Selection:
    route = table.routes.get((problem.scheme, device.platform))
    steps = tuple(ordered(route)) if route else ()
    if route is None or not steps:
        return Selection(None, (), problem, device, (_no_route(table, device, problem, route),))
    facts = {**facts_of(table, device), **problem_facts(problem)}
    facts["model"] = problem.model
    facts["unsized"] = _answers_of_kind(facts, problem)
    if route.terms.one_kernel is not None:
        facts["m"] = None
    denied = _over_budget(table, route, steps, device, problem)
    chosen: str | None = None
    candidates = []
    for place, step in enumerate(steps):
        refused = _step_refusals(table, route, step, device, facts)
        refused = (denied[place], *refused) if place in denied else refused
        verdict = "refused" if refused else "later" if chosen else "chosen"
        if verdict == "chosen":
            chosen = step.kernel
        candidates.append(Candidate(step.kernel, verdict, refused, step.mark))
    return Selection(chosen, tuple(candidates), problem, device, tuple(_notes(table, route, device, chosen)))


def ordered(route: Route) -> Iterator[Step]:
    """The steps of a route; a required or preferred kernel comes first, without the `when` of its step."""
    first = route.require or route.prefer
    if first is not None:
        yield Step(first.kernel, (), first.mark)
    for step in route.steps:
        if first is None or step.kernel != first.kernel:
            yield step


def _step_refusals(table: Table, route: Route, step: Step, device: Device, facts: Facts) -> tuple[Refusal, ...]:
    row, required = table.kernels.get(step.kernel) or _kernel(table, step.kernel), route.require
    refused = _row_refusals(table, row, device, facts)
    if route.terms.demands:
        refused = (*demand_refusals(row, route, facts), *refused)
    if required is not None and step.kernel != required.kernel:
        wanted = f"{required.kernel} (required)"
        refused = (Refusal(step.kernel, "require", wanted, step.kernel, required.mark), *refused)
    if step.when:
        return (*refused, *misses(step.kernel, step.when, facts))
    return refused


def _over_budget(
    table: Table, route: Route, steps: tuple[Step, ...], device: Device, problem: Problem
) -> dict[int, Refusal]:
    """The steps that would pack one copy of this layer's weights too many; worked out once for all its m."""
    kept = facts_of(table, device)
    few: bool | None = kept["few layouts"].get(route.scheme)
    if few is None:
        here = [step for step in steps if not _device_refusals(_kernel(table, step.kernel), device, kept)]
        few = kept["few layouts"][route.scheme] = len(packed_layouts(table, here)) <= route.terms.weight_copies
    if few:
        return {}
    layer = problem.at(None)
    question = ("over budget", device, layer)
    denied: dict[int, Refusal] | None = table.answers.get(question)
    if denied is None:
        facts = {**kept, **problem_facts(layer), "model": layer.model, "unsized": _answers_of_kind(kept, layer)}
        one_kernel = route.terms.one_kernel is not None

        def takes(step: Step, m: int | None) -> bool:
            facts["m"] = None if one_kernel else m
            return not _step_refusals(table, route, step, device, facts)

        denied = over_budget(table, route, steps, layer, takes)
        _remember(table, question, denied)
    return denied


def _row_refusals(table: Table, kernel: Kernel, device: Device, facts: Facts) -> tuple[Refusal, ...]:
    """The refusals of denials, of the device and of the problem, in this order: the most telling one first."""
    found = _own_refusals(kernel, device, facts)
    if not table.denials:
        return found
    denials = (d for d in table.denials if d.kernel == kernel.id and _applies(d, device, facts))
    return (*map(_denied, denials), *found)


def _own_refusals(kernel: Kernel, device: Device, facts: Facts) -> tuple[Refusal, ...]:
    """What a row itself does not accept; all but the limits on m, n and k is worked out once a device and kind."""
    known: dict[str, tuple[tuple[Refusal, ...], tuple[Sized, ...]]] = facts.get("unsized", {})
    answer = known.get(kernel.id)
    if answer is None:
        limits = tuple(sized(predicate) for predicate in kernel.accepts if FACT_OF.get(predicate.key) in SIZES)
        others = [predicate for predicate in kernel.accepts if FACT_OF.get(predicate.key) not in SIZES]
        fixed = (*_device_refusals(kernel, device, facts), *misses(kernel.id, others, facts))
        answer = known[kernel.id] = fixed, limits
    missed = unfit(kernel.id, answer[1], facts)
    return (*answer[0], *missed) if missed else answer[0]


def _answers_of_kind(facts: Facts, problem: Problem) -> dict[str, Any]:
    """Where the answers for problems that differ from this one in m, n and k alone are kept; at most MOST_KINDS."""
    kinds: dict[tuple[Any, ...], dict[str, Any]] = facts["kinds"]
    kind = (
        problem.scheme,
        problem.input,
        problem.output,
        problem.bias,
        problem.weight_granularity,
        problem.weight_block,
        problem.weight_scale,
        problem.input_granularity,
        problem.input_scaling,
    )
    if kind not in kinds and len(kinds) >= MOST_KINDS:
        kinds.clear()
    return kinds.setdefault(kind, {})


def _device_refusals(kernel: Kernel, device: Device, facts: Facts) -> tuple[Refusal, ...]:
    """What refuses a kernel on a device whatever the problem is; worked out once for each device."""
    known: dict[str, tuple[Refusal, ...]] = facts["refused"]
    refused = known.get(kernel.id)
    if refused is None:
        refused = known[kernel.id] = tuple(_ask_device(kernel, device, facts))
    return refused


def device_refusals(table: Table, kernel: Kernel, device: Device) -> tuple[Refusal, ...]:
    """What refuses a row on a device whatever the problem is, denials apart."""
    return _device_refusals(kernel, device, facts_of(table, device))


def _ask_device(kernel: Kernel, device: Device, facts: Facts) -> Iterator[Refusal]:
    runs_on = kernel.runs_on.get(device.platform)
    if runs_on is None:
        wanted = " or ".join(sorted(kernel.runs_on)) or "no platform"
        yield Refusal(kernel.id, "runs_on", wanted, device.platform, kernel.mark)
    else:
        if facts["architecture"] is None and not runs_on.portable:
            found = chip_name(facts)
            yield Refusal(kernel.id, "runs_on.portable", "a chip that the table describes", found, runs_on.mark)
        yield from misses(kernel.id, runs_on.predicates, facts)
    yield from misses(kernel.id, kernel.needs, facts)


def _applies(denial: Denial, device: Device, facts: Facts) -> bool:
    """Whether a denial holds here.

    An unknown m stands for any m, so a denial of some m holds for it. A package of assumed version is assumed to be a
    good one, so a denial of some versions does not hold for it. Nor does one of some models for an unknown model.
    """
    if denial.models and not _is_named(facts["model"], denial.models):
        return False
    if denial.platform is not None and denial.platform != device.platform:
        return False
    return all(holds(denial.kernel, predicate, facts) for predicate in denial.predicates)


def _is_named(model: str | None, patterns: tuple[str, ...]) -> bool:
    return model is not None and any(fnmatchcase(model, pattern) for pattern in patterns)


def holds(kernel: str, predicate: Predicate, facts: Facts) -> bool:
    """Whether one predicate of a denial holds; see `_applies` for what is not known."""
    fact = FACT_OF.get(predicate.key)
    if fact == "m" and facts["m"] is None:
        return True
    if fact == "packages" and isinstance(predicate, Needs) and predicate.version is not None:
        version = facts["packages"].get(distribution(predicate.name), "")
        if version is None or (version == "" and facts["assume_all"]):
            return False
    return check(kernel, predicate, facts) is None


def _denied(denial: Denial) -> Refusal:
    found = denial.reason + (f" (until {denial.until})" if denial.until else "")
    if denial.link:
        found += f" [{denial.link}]"
    wanted = "no erratum" if denial.source == "erratum" else "not disabled"
    return Refusal(denial.kernel, denial.source, wanted, found, denial.mark)


def _no_route(table: Table, device: Device, problem: Problem, route: Route | None) -> str:
    if route is not None:
        return f"the route of scheme '{problem.scheme}' on platform '{device.platform}' is empty ({route.mark})"
    if device.platform not in table.platforms:
        return f"the table does not know platform '{device.platform}'; {hint(device.platform, table.platforms)}"
    mark = table.schemes[problem.scheme].mark
    return f"scheme '{problem.scheme}' ({mark}) has no route on platform '{device.platform}'; add one under routes"


def _notes(table: Table, route: Route, device: Device, chosen: str | None) -> Iterator[str]:
    facts = facts_of(table, device)
    if facts["architecture"] is None:
        yield f"the table does not know this chip ({chip_name(facts)}): only portable rows may run"
    demand = route.terms.one_kernel
    if demand is not None:
        yield f"batch_invariant is demanded ({demand.mark}): one kernel serves every m, so limits on m refuse"
    if route.require is not None and chosen is None:
        yield f"'{route.require.kernel}' is required ({route.require.mark}) and refuses: nothing else may be taken"
    elif route.require is None and route.prefer is not None and chosen != route.prefer.kernel:
        yield f"'{route.prefer.kernel}' is preferred ({route.prefer.mark}) but refuses: the route decides"


def _kernel(table: Table, kernel_id: str) -> Kernel:
    kernel = table.kernels.get(kernel_id)
    if kernel is None:
        raise ProblemError(f"unknown kernel {str(kernel_id)[:80]!r}; {hint(str(kernel_id), table.kernels)}")
    return kernel


def facts_of(table: Table, device: Device) -> dict[str, Any]:
    """What predicates may ask about a device; worked out once."""
    facts = table.answers.get(device)
    if facts is None:
        facts = device_facts(table, device)
        _remember(table, device, facts)
    return facts


def _remember(table: Table, question: Any, answer: Any) -> None:
    """Keep an answer. Threads may do this at once: each dict operation is atomic and every answer is equal."""
    if len(table.answers) >= MOST_ANSWERS:
        table.answers.clear()
    table.answers[question] = answer
