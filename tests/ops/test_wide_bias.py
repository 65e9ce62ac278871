"""A bias converted to float32 once: what is kept, what makes it anew, and when nothing may be kept."""

from __future__ import annotations

import pytest
import torch

from kerneltable.ops import wide_bias
from kerneltable.ops.wide_bias import MOST, WideBias

N = 96


def bias(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(N).to(dtype)


def test_no_bias_and_one_of_float32_pass() -> None:
    given, wide = bias(torch.float32), WideBias()
    assert wide(None) is None
    assert wide(given) is given
    assert not wide.known


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bias_is_converted_once(dtype: torch.dtype) -> None:
    given, wide = bias(dtype), WideBias()
    found = wide(given)
    assert found is not None
    assert torch.equal(found, given.float())
    assert wide(given) is found


def test_rows_of_a_larger_tensor_come_out_contiguous() -> None:
    given = torch.randn(N, 2)[:, 0]
    found = WideBias()(given)
    assert found is not None
    assert found.is_contiguous()
    assert torch.equal(found, given)


def test_a_change_in_place_is_seen_at_the_same_address() -> None:
    given, wide = bias(), WideBias()
    found = wide(given)
    given.mul_(2)
    again = wide(given)
    assert again is found
    assert torch.equal(found, given.float())


def test_other_memory_of_the_same_tensor_is_seen() -> None:
    given, wide = bias(), WideBias()
    wide(given)
    given.data = bias()
    found = wide(given)
    assert found is not None
    assert torch.equal(found, given.float())


def test_another_shape_of_the_same_tensor_is_not_written_over_the_old_one() -> None:
    given, wide = bias(), WideBias()
    first = wide(given)
    given.data = torch.ones(2 * N, dtype=torch.bfloat16)
    found = wide(given)
    assert found is not None
    assert first is not None
    assert (found.shape, first.shape) == ((2 * N,), (N,))


def test_another_bias_does_not_move_the_first_one() -> None:
    given, wide = [bias() for _ in range(MOST + 2)], WideBias()
    found = [wide(one) for one in given]
    assert all(torch.equal(one.float(), made) for one, made in zip(given, found, strict=True))
    assert [wide(one) is made for one, made in zip(given, found, strict=True)] == [True] * MOST + [False] * 2
    assert len(wide.known) == MOST


def test_nothing_is_kept_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    given, new, wide = bias(), bias(), WideBias()
    found = wide(given)
    monkeypatch.setattr(wide_bias, "_is_capturing", lambda one: True)
    assert wide(given) is found
    assert wide(new) is not wide(new)
    given.mul_(2)
    changed = wide(given)
    assert changed is not None
    assert torch.equal(changed, given.float())
    assert changed is not found
    assert len(wide.known) == 1


def test_a_bias_of_inference_mode_has_no_count_and_is_converted_each_time() -> None:
    wide = WideBias()
    with torch.inference_mode():
        given = bias()
        found = wide(given)
        given.mul_(2)
        again = wide(given)
    assert found is not None
    assert again is not None
    assert torch.equal(again, 2 * found)
    assert not wide.known


def test_what_inference_mode_converted_can_be_written_outside_of_it() -> None:
    given, wide = bias(), WideBias()
    with torch.inference_mode():
        found = wide(given)
    given.mul_(2)
    assert wide(given) is found
    assert found is not None
    assert torch.equal(found, given.float())
