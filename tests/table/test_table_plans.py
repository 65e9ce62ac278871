"""`plans` in a table and in overrides: what is read, who wins, and what is refused."""

from __future__ import annotations

import pytest
from table_samples import changed, codes, laid_over, read_text

from kerneltable.table.origin import origins

KEY = ("fp8_w8a8", "cuda")


def terms(*overrides: str):
    table, findings = laid_over(*overrides)
    assert table is not None, findings
    return table.routes[KEY].terms


def test_a_table_that_says_nothing_allows_one_copy_and_demands_nothing():
    found = terms()
    assert (found.weight_copies, found.mark, found.demands) == (1, None, ())


def test_a_table_says_it_for_all_its_routes(tmp_path):
    text = changed(("routes:\n", "plans: {weight_copies: 3, deterministic: true}\nroutes:\n"))
    table, findings = read_text(tmp_path, text)
    assert table is not None, findings
    assert {route.terms.weight_copies for route in table.routes.values()} == {3}
    assert [demand.name for demand in table.routes[KEY].terms.demands] == ["deterministic"]


def test_a_deployment_says_it_for_all_routes_and_for_one():
    every = "plans: {weight_copies: 2, batch_invariant: true}\n"
    one = "routes: {fp8_w8a8: {cuda: {plans: {weight_copies: 0}}}}\n"
    table, _ = laid_over(every, one)
    assert table is not None
    assert table.routes[KEY].terms.weight_copies == 0
    assert str(table.routes[KEY].terms.mark).startswith("b.yaml:2:")
    assert [str(d.mark).split(":")[0] for d in table.routes[KEY].terms.demands] == ["a.yaml"]
    others = [route for key, route in table.routes.items() if key != KEY]
    assert {route.terms.weight_copies for route in others} <= {2}


def test_a_later_deployment_takes_a_demand_back():
    assert terms("plans: {batch_invariant: true}\n", "plans: {batch_invariant: false}\n").demands == ()
    both = "plans: {batch_invariant: true}\n", "routes: {fp8_w8a8: {cuda: {plans: {batch_invariant: false}}}}\n"
    assert terms(*both).demands == ()


@pytest.mark.parametrize(("said", "code"), [
    ("weight_copies: -1", "KT206"), ("weight_copies: 17", "KT206"), ("weight_copies: two", "KT203"),
    ("batch_invariant: 1", "KT203"), ("weight_copy: 1", "KT201"), ("accumulator: true", "KT201"),
])  # fmt: skip
def test_what_is_no_such_key_or_value_is_refused_in_both_places(said, code):
    for text in (f"plans: {{{said}}}\n", f"routes: {{fp8_w8a8: {{cuda: {{plans: {{{said}}}}}}}}}\n"):
        table, findings = laid_over(text)
        assert table is None
        assert codes(findings) == [code]


def test_saying_again_what_is_so_already_is_a_warning():
    text = "routes: {fp8_w8a8: {cuda: {plans: {weight_copies: 2}}}}\n"
    assert codes(laid_over(text, text)[1]) == ["KT405"]
    assert codes(laid_over("plans: {weight_copies: 2}\n", "plans: {weight_copies: 2}\n")[1]) == ["KT405"]
    assert codes(laid_over("plans: {weight_copies: 2}\n", "plans: {weight_copies: 3}\n")[1]) == []


def test_the_origin_of_each_value_is_told():
    table, _ = laid_over("plans: {weight_copies: 2}\n", "plans: {weight_copies: 3}\n")
    assert table is not None
    (found,) = [one for one in origins(table) if one.path == ("plans", "weight_copies")]
    assert (found.text, found.mark.file) == ("3", "b.yaml")
    assert [(earlier.text, earlier.mark.file) for earlier in found.replaced] == [("2", "a.yaml")]
    table, _ = laid_over("routes: {fp8_w8a8: {cuda: {plans: {deterministic: true}}}}\n")
    assert table is not None
    assert ("routes", *KEY, "plans", "deterministic") in [one.path for one in origins(table)]
    assert ("routes", *KEY, "plans", "deterministic") in table.marks
