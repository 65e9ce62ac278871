"""Where values come from: who set them, what they replaced, what was taken out by which line."""

from __future__ import annotations

import pytest
from table_samples import TABLES, laid_over

from kerneltable.model import Mark, Table
from kerneltable.table import load_table
from kerneltable.table.node import walk
from kerneltable.table.nodes import read_nodes
from kerneltable.table.origin import Origin, origins
from kerneltable.table.report import Report

SMALL = str(TABLES / "good" / "small.yaml")


def origins_of(*overrides: str) -> tuple[Origin, ...]:
    table, findings = laid_over(*overrides)
    assert table is not None, findings
    return origins(table)


def at(found: tuple[Origin, ...], path: str) -> list[Origin]:
    return [one for one in found if ".".join(map(str, one.path)) == path]


def test_every_scalar_of_a_table_is_listed_at_its_place() -> None:
    table = load_table()
    root = read_nodes(table.layers[0].text, "dispatch.yaml", Report())
    assert root is not None
    written = {node.mark for _, node in walk(root) if not node.entries() and not isinstance(node.value, tuple)}
    inside_steps = {node.mark for path, node in walk(root) if path[:1] == ("routes",) and len(path) > 4}
    listed = {one.mark for one in origins(table)}
    assert written - inside_steps <= listed
    assert not [one for one in origins(table) if one.replaced]


def test_a_replaced_value_remembers_what_stood_there_and_where() -> None:
    found = origins_of("kernels: {fast: {why: one}}\n", "kernels: {fast: {why: two}}\n")
    (why,) = at(found, "kernels.fast.why")
    assert (why.text, why.mark) == ("two", Mark("b.yaml", 2, 23))
    assert [(earlier.text, earlier.mark.file) for earlier in why.replaced] == [
        ("first because it is fast", SMALL), ("one", "a.yaml"),
    ]  # fmt: skip


def test_a_value_that_no_override_touches_has_no_history() -> None:
    (why,) = at(origins_of("kernels: {reference: {why: one}}\n"), "kernels.fast.why")
    assert (why.mark.file, why.replaced, why.removed) == (SMALL, (), None)


def test_a_removed_step_is_shown_with_the_line_that_removed_it() -> None:
    found = origins_of("routes:\n  fp8_w8a8:\n    cuda: {order: {remove: [fast]}}\n")
    (gone,) = at(found, "routes.fp8_w8a8.cuda")
    assert (gone.text, gone.mark.file, gone.removed) == ("fast", SMALL, Mark("a.yaml", 4, 29))
    assert [one.text for one in at(found, "routes.fp8_w8a8.cuda.0")] == ["reference"]


@pytest.mark.parametrize("verb", ["prepend: [reference]", "replace: [reference, fast]", "before: {fast: [reference]}"])
def test_a_moved_step_says_where_it_stood(verb: str) -> None:
    found = origins_of(f"routes: {{fp8_w8a8: {{cuda: {{order: {{{verb}}}}}}}}}\n")
    (first,) = at(found, "routes.fp8_w8a8.cuda.0")
    assert (first.text, first.mark.file) == ("reference", "a.yaml")
    assert [(earlier.text, earlier.mark.file) for earlier in first.replaced] == [("reference", SMALL)]
    assert not [one for one in found if one.removed and one.path[0] == "routes"]


def test_a_step_that_comes_back_is_no_longer_removed() -> None:
    found = origins_of(
        "routes: {fp8_w8a8: {cuda: {order: {remove: [fast]}}}}\n",
        "routes: {fp8_w8a8: {cuda: {order: {prepend: [{kernel: fast, when: {m: {max: 8}}}]}}}}\n",
    )
    assert at(found, "routes.fp8_w8a8.cuda") == []
    (first,) = at(found, "routes.fp8_w8a8.cuda.0")
    assert first.text == "fast when {m: {max: 8}}"
    assert [earlier.text for earlier in first.replaced] == ["fast"]


def test_an_item_of_a_narrowed_list_is_shown_as_removed() -> None:
    found = origins_of("kernels: {reference: {accepts: {input: [bf16]}}}\n")
    assert [(one.text, one.removed) for one in at(found, "kernels.reference.accepts.input")] == [
        ("f16", Mark("a.yaml", 2, 40)), ("f32", Mark("a.yaml", 2, 40)),
    ]  # fmt: skip


def test_what_a_deployment_forces_and_switches_off_is_listed() -> None:
    found = origins_of(
        "routes: {fp8_w8a8: {cuda: {require: reference}}}\ndisable: [{kernel: fast, reason: NaN, platform: cuda}]\n"
    )
    assert at(found, "routes.fp8_w8a8.cuda.require")[0].mark == Mark("a.yaml", 2, 37)
    assert at(found, "disable.0.reason")[0].text == "NaN"


def test_a_choice_of_the_other_verb_says_what_it_replaced() -> None:
    route = "routes: {fp8_w8a8: {cuda: {%s}}}\n"
    found = origins_of(route % "require: fast", route % "prefer: reference", route % "require: reference")
    assert at(found, "routes.fp8_w8a8.cuda.prefer") == []
    (choice,) = at(found, "routes.fp8_w8a8.cuda.require")
    assert (choice.text, choice.mark.file) == ("reference", "c.yaml")
    assert [(earlier.text, earlier.mark.file) for earlier in choice.replaced] == [
        ("require: fast", "a.yaml"), ("prefer: reference", "b.yaml"),
    ]  # fmt: skip


def test_what_an_architecture_copies_names_the_one_it_comes_from() -> None:
    found = origins_of()
    top = "platforms.cuda.architectures.sm120"
    assert at(found, f"{top}.fp8")[0].note == "like sm90"
    copied = [(one.text, one.note) for one in found if ".".join(map(str, one.path)).startswith(f"{top}.features.")]
    assert copied == [("mma_bf16", "like sm80"), ("mma_fp8", "like sm90")]
    (gone,) = at(found, f"{top}.features")
    assert (gone.text, gone.removed is not None) == ("wgmma", True)
    assert at(found, f"{top}.shared_memory_kib")[0].note == ""


def test_a_table_made_by_hand_has_no_origins() -> None:
    table = load_table()
    layers = tuple(type(layer)(layer.name, layer.sha256, "") for layer in table.layers)
    values = {name: getattr(table, name) for name in ("platforms", "schemes", "kernels", "routes", "denials", "marks")}
    assert origins(Table(version=1, layers=layers, **values)) == ()
