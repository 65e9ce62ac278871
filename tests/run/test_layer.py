"""Checkpoint tensors of one layer: names, aliases, dtypes, shapes, values, and the problem they pose."""

from __future__ import annotations

import pytest
import torch

from kerneltable.errors import LayerError
from kerneltable.run.layer import Declared, read_layer
from kerneltable.table import load_table

E4M3 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def schemes():
    return load_table().schemes


def weight(n: int = 192, k: int = 256) -> torch.Tensor:
    return torch.ones(n, k).to(E4M3)


def block_tensors(n: int = 192, k: int = 256) -> dict[str, torch.Tensor]:
    return {"weight": weight(n, k), "weight_scale": torch.ones(-(-n // 128), -(-k // 128))}


def channel_tensors(n: int = 192, k: int = 256) -> dict[str, torch.Tensor]:
    return {"weight": weight(n, k), "weight_scale": torch.ones(n, 1)}


# --- Names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
def test_either_name_of_the_weight_scale_is_taken(schemes, name):
    scale = torch.full((2, 2), 0.5)
    layer = read_layer(schemes["fp8_block_w8a8"], {"weight": weight(), name: scale})
    assert set(layer.tensors) == {"weight", "weight_scale"}
    assert layer.tensors["weight_scale"] is scale


def test_both_names_with_equal_scales_count_as_one(schemes):
    tensors = block_tensors() | {"weight_scale_inv": torch.ones(2, 2)}
    assert set(read_layer(schemes["fp8_block_w8a8"], tensors).tensors) == {"weight", "weight_scale"}


def test_both_names_with_different_scales_are_refused_by_name(schemes):
    tensors = block_tensors() | {"weight_scale_inv": torch.full((2, 2), 2.0)}
    with pytest.raises(LayerError, match=r"'weight_scale'.*'weight_scale_inv'.*differ"):
        read_layer(schemes["fp8_block_w8a8"], tensors)


def test_equal_values_in_another_dtype_are_not_the_same_scale(schemes):
    tensors = block_tensors() | {"weight_scale_inv": torch.ones(2, 2, dtype=torch.bfloat16)}
    with pytest.raises(LayerError, match="differ"):
        read_layer(schemes["fp8_block_w8a8"], tensors)


def test_a_missing_scale_is_refused_with_the_names_found(schemes):
    with pytest.raises(
        LayerError, match=r"q_proj.*'weight_scale' or 'weight_scale_inv'; found 'bias', 'weight'|found 'weight'"
    ):
        read_layer(schemes["fp8_block_w8a8"], {"weight": weight()}, name="q_proj")


def test_none_counts_as_absent(schemes):
    layer = read_layer(schemes["fp8_block_w8a8"], block_tensors() | {"weight_scale_inv": None, "input_scale": None})
    assert layer.problem.input_scaling is None


def test_a_stranger_among_the_tensors_is_refused(schemes):
    with pytest.raises(LayerError, match=r"'g_idx' is not a parameter of scheme 'fp8_block_w8a8'"):
        read_layer(schemes["fp8_block_w8a8"], block_tensors() | {"g_idx": torch.zeros(256)})


# --- Weight, bias and their dtypes --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.int8])
def test_a_weight_of_another_dtype_is_refused(schemes, dtype):
    tensors = block_tensors() | {"weight": torch.ones(192, 256).to(dtype)}
    with pytest.raises(LayerError, match="weight must be float8_e4m3fn"):
        read_layer(schemes["fp8_block_w8a8"], tensors)


@pytest.mark.parametrize("shape", [(256,), (2, 192, 256), ()])
def test_a_weight_that_is_no_matrix_is_refused(schemes, shape):
    tensors = {"weight": torch.ones(shape).to(E4M3), "weight_scale": torch.ones(2, 2)}
    with pytest.raises(LayerError, match=r"weight must be \[n, k\]"):
        read_layer(schemes["fp8_block_w8a8"], tensors)


def test_a_transposed_weight_becomes_row_major(schemes):
    stored = torch.arange(6.0).reshape(3, 2).to(E4M3)
    tensors = {"weight": stored.t(), "weight_scale": torch.ones(2)}
    layer = read_layer(schemes["fp8_w8a8"], tensors, declared=Declared(weight_granularity="channel"))
    assert layer.tensors["weight"].is_contiguous()
    assert layer.tensors["weight"].float().tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bias_of_any_float_dtype_is_taken(schemes, dtype):
    layer = read_layer(schemes["fp8_block_w8a8"], block_tensors(), torch.ones(192, dtype=dtype))
    assert layer.problem.bias is True
    assert layer.bias.dtype == dtype


@pytest.mark.parametrize("bias", [torch.ones(256), torch.ones(192, 1), torch.ones(192, dtype=torch.int32)])
def test_a_bias_of_another_shape_or_dtype_is_refused(schemes, bias):
    with pytest.raises(LayerError, match=r"bias must be \[192\]"):
        read_layer(schemes["fp8_block_w8a8"], block_tensors(), bias)


def test_a_bias_among_the_tensors_is_the_bias(schemes):
    assert read_layer(schemes["fp8_block_w8a8"], block_tensors() | {"bias": torch.ones(192)}).problem.bias


def test_a_bias_given_twice_is_refused(schemes):
    with pytest.raises(LayerError, match="bias is given twice"):
        read_layer(schemes["fp8_block_w8a8"], block_tensors() | {"bias": torch.ones(192)}, torch.ones(192))


def test_tensors_on_two_devices_are_refused(schemes):
    tensors = block_tensors()
    tensors["weight_scale"] = tensors["weight_scale"].to("meta")
    with pytest.raises(LayerError, match="weight on cpu, weight_scale on meta"):
        read_layer(schemes["fp8_block_w8a8"], tensors)


# --- Scale dtypes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "fmt"),
    [(torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.uint8, "e8m0"), (torch.float8_e8m0fnu, "e8m0")],
)
def test_a_scale_dtype_is_named_by_its_format(schemes, dtype, fmt):
    codes = torch.full((2, 2), 120, dtype=torch.uint8)
    scale = codes.view(torch.float8_e8m0fnu) if fmt == "e8m0" else codes.float()
    scale = codes if dtype is torch.uint8 else scale.to(dtype)
    layer = read_layer(schemes["fp8_block_w8a8"], {"weight": weight(), "weight_scale": scale})
    assert layer.problem.weight_scale == fmt


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [("fp8_block_w8a8", torch.int32), ("fp8_block_w8a8", torch.float16), ("fp8_w8a8", torch.uint8)],
)
def test_a_scale_dtype_outside_the_scheme_is_refused(schemes, scheme, dtype):
    shape = (2, 2) if scheme == "fp8_block_w8a8" else (192,)
    with pytest.raises(LayerError, match=f"weight_scale of scheme '{scheme}' must be float32"):
        read_layer(schemes[scheme], {"weight": weight(), "weight_scale": torch.ones(shape).to(dtype)})


def test_a_float_scale_is_refused_for_mxfp8(schemes):
    with pytest.raises(LayerError, match="float8_e8m0fnu or uint8; found float32"):
        read_layer(schemes["mxfp8"], {"weight": weight(), "weight_scale": torch.ones(192, 8)})


# --- Scale shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "shape", "granularity", "block"),
    [
        ("fp8_w8a8", (), "tensor", None),
        ("fp8_w8a8", (1,), "tensor", None),
        ("fp8_w8a8", (192,), "channel", None),
        ("fp8_w8a8", (192, 1), "channel", None),
        ("fp8_block_w8a8", (2, 2), "block", (128, 128)),
        ("w8a16_fp8", (2, 2), "block", (128, 128)),
        ("w8a16_fp8", (192, 1), "channel", None),
        ("w8a16_fp8", (), "tensor", None),
    ],
)
def test_a_scale_shape_says_what_one_scale_covers(schemes, scheme, shape, granularity, block):
    problem = read_layer(schemes[scheme], {"weight": weight(), "weight_scale": torch.ones(shape)}).problem
    assert (problem.n, problem.k, problem.weight_granularity, problem.weight_block) == (192, 256, granularity, block)


@pytest.mark.parametrize("shape", [(1, 192), (192, 2), (2, 192), (256,), (2,), (1, 1)])
def test_another_scale_shape_is_refused_with_the_accepted_ones(schemes, shape):
    with pytest.raises(LayerError, match=r"must be \[192\] or \[192, 1\] \(channel\), \[\] or \[1\] \(tensor\); found"):
        read_layer(schemes["fp8_w8a8"], {"weight": weight(), "weight_scale": torch.ones(shape)})


def test_an_mxfp8_scale_has_one_column_for_32_of_the_weight(schemes):
    scale = torch.full((192, 8), 127, dtype=torch.uint8)
    assert read_layer(schemes["mxfp8"], {"weight": weight(), "weight_scale": scale}).problem.weight_block == (1, 32)
    with pytest.raises(LayerError, match=r"\[192, 8\] \(block of 1x32\); found \[8, 192\]"):
        read_layer(schemes["mxfp8"], {"weight": weight(), "weight_scale": scale.t()})


def test_a_declared_block_decides_the_shape(schemes):
    tensors = {"weight": weight(), "weight_scale": torch.ones(6, 8)}
    problem = read_layer(schemes["fp8_block_w8a8"], tensors, declared=Declared(weight_block=(32, 32))).problem
    assert problem.weight_block == (32, 32)
    with pytest.raises(LayerError, match=r"\[2, 2\] \(block of 128x128\); found \[6, 8\]"):
        read_layer(schemes["fp8_block_w8a8"], tensors)


@pytest.mark.parametrize("block", [(0, 128), (128,), (128.0, 128), (True, 128), (-128, 128)])
def test_a_block_that_is_no_pair_of_positive_integers_is_refused(schemes, block):
    with pytest.raises(LayerError, match="weight_block must be two positive integers"):
        read_layer(schemes["fp8_block_w8a8"], block_tensors(), declared=Declared(weight_block=block))


def test_mxfp8_takes_no_other_block(schemes):
    tensors = {"weight": weight(), "weight_scale": torch.full((192, 4), 127, dtype=torch.uint8)}
    with pytest.raises(LayerError, match="'mxfp8' has 1x32; found weight_block 1x64"):
        read_layer(schemes["mxfp8"], tensors, declared=Declared(weight_block=(1, 64)))


def test_a_shape_that_fits_two_granularities_is_refused_until_one_is_declared(schemes):
    tensors = {"weight": weight(1, 256), "weight_scale": torch.ones(1)}
    with pytest.raises(LayerError, match="fits granularity channel and tensor; declare weight_granularity"):
        read_layer(schemes["fp8_w8a8"], tensors)
    for granularity in ("channel", "tensor"):
        declared = Declared(weight_granularity=granularity)
        assert read_layer(schemes["fp8_w8a8"], tensors, declared=declared).problem.weight_granularity == granularity


def test_a_declared_granularity_that_the_scheme_lacks_is_refused(schemes):
    with pytest.raises(LayerError, match="has weight granularity block; found 'channel' declared"):
        read_layer(schemes["fp8_block_w8a8"], block_tensors(), declared=Declared(weight_granularity="channel"))


def test_a_declared_granularity_that_the_shape_contradicts_is_refused(schemes):
    with pytest.raises(LayerError, match=r"must be \[\] or \[1\] \(tensor\); found \[192, 1\]"):
        read_layer(schemes["fp8_w8a8"], channel_tensors(), declared=Declared(weight_granularity="tensor"))


# --- Scale values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_and_positive_is_refused_at_its_index(schemes, value):
    tensors = block_tensors()
    tensors["weight_scale"][1, 0] = value
    tensors["weight_scale"][1, 1] = value
    with pytest.raises(LayerError, match=r"weight_scale\[1, 0\] must be finite and above 0.*2 of 4"):
        read_layer(schemes["fp8_block_w8a8"], tensors)


@pytest.mark.parametrize("value", [1e-45, 3e38])
def test_an_extreme_scale_that_is_finite_and_positive_is_taken(schemes, value):
    tensors = block_tensors()
    tensors["weight_scale"][1, 0] = value
    assert read_layer(schemes["fp8_block_w8a8"], tensors).tensors["weight_scale"][1, 0] > 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e8m0fnu])
def test_an_e8m0_nan_is_refused_and_the_smallest_exponent_is_taken(schemes, dtype):
    codes = torch.zeros(192, 8, dtype=torch.uint8)
    read_layer(schemes["mxfp8"], {"weight": weight(), "weight_scale": codes.view(dtype)})
    codes[3, 5] = 0xFF
    with pytest.raises(LayerError, match=r"weight_scale\[3, 5\].*nan \(0xff\)"):
        read_layer(schemes["mxfp8"], {"weight": weight(), "weight_scale": codes.view(dtype)})


def test_bad_scales_pass_when_they_are_declared_trusted(schemes):
    tensors = block_tensors()
    tensors["weight_scale"][0, 0] = 0.0
    read_layer(schemes["fp8_block_w8a8"], tensors, declared=Declared(trusted_scales=True))


# --- Inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,)])
def test_an_input_scale_makes_the_input_static_and_per_tensor(schemes, shape):
    tensors = channel_tensors() | {"input_scale": torch.full(shape, 0.01)}
    problem = read_layer(schemes["fp8_w8a8"], tensors).problem
    assert (problem.input_granularity, problem.input_scaling) == ("tensor", "static")


def test_without_an_input_scale_the_scheme_decides(schemes):
    problem = read_layer(schemes["fp8_w8a8"], channel_tensors()).problem
    assert (problem.input_granularity, problem.input_scaling) == (None, None)


def test_a_static_input_without_its_scale_is_refused(schemes):
    with pytest.raises(LayerError, match="static input wants 'input_scale'"):
        read_layer(schemes["fp8_w8a8"], channel_tensors(), declared=Declared(input_scaling="static"))


def test_an_input_scale_for_a_dynamic_input_is_refused(schemes):
    scale = {"input_scale": torch.tensor(0.01)}
    with pytest.raises(LayerError, match="declared dynamic"):
        read_layer(schemes["fp8_w8a8"], channel_tensors() | scale, declared=Declared(input_scaling="dynamic"))
    with pytest.raises(LayerError, match="always dynamic"):
        read_layer(schemes["fp8_block_w8a8"], block_tensors() | scale)


def test_a_weight_only_layer_keeps_an_input_scale_that_it_does_not_need(schemes):
    tensors = channel_tensors() | {"input_scale": torch.tensor(0.01)}
    layer = read_layer(schemes["w8a16_fp8"], tensors)
    assert layer.problem.input_scaling is None
    assert "input_scale" in layer.tensors


@pytest.mark.parametrize("scale", [torch.ones(2), torch.ones(1, 1), torch.ones(1, dtype=torch.int32)])
def test_an_input_scale_that_is_not_one_float_is_refused(schemes, scale):
    with pytest.raises(LayerError, match="input_scale must be one float32 or bfloat16 number"):
        read_layer(schemes["fp8_w8a8"], channel_tensors() | {"input_scale": scale})


def test_an_input_scale_of_zero_is_refused(schemes):
    with pytest.raises(LayerError, match=r"input_scale\[\] must be finite and above 0"):
        read_layer(schemes["fp8_w8a8"], channel_tensors() | {"input_scale": torch.tensor(0.0)})
