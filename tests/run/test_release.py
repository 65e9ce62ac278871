"""Weights held once: a packed copy stands for the checkpoint's tensors, and gives them back byte for byte."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from inspect import signature
from weakref import ref

import pytest
import torch

from kerneltable.errors import LayerError, NoKernelError
from kerneltable.kernels import registry
from kerneltable.kernels.reference import Kernel as Reference
from kerneltable.model import CHECKPOINT
from kerneltable.run.ledger import shared_ledger
from kerneltable.run.linear import QuantLinear
from kerneltable.table import load_table
from run.packing_stand_ins import TILES, K, N, Tiles, given, once, packing, same_bytes

SIZE = N * K
PACKED = 2 * 2 * 8192  # tiles of 64 x 128


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    return packing(monkeypatch)


def rows(m: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.randn(m, K, generator=torch.Generator().manual_seed(m)).to(dtype)


def released(layer: QuantLinear) -> bool:
    return layer._buffers["weight"] is None


def outputs(layer: QuantLinear) -> list[torch.Tensor]:
    return [layer(rows(m, dtype)) for m in (1, 5, 130) for dtype in (torch.bfloat16, torch.float16)]


# --- What is released, and what comes back ------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["w8a16_fp8", "mxfp8"])
def test_a_released_layer_gives_back_every_byte_and_computes_the_same_bits(scheme):
    tensors = given(scheme)
    kept, layer = once(tensors, scheme, keep_checkpoint=True), once(tensors, scheme)
    assert released(layer)
    assert not released(kept)
    assert layer.kernel == kept.kernel == "cpu_fp8"
    state = layer.state_dict()
    assert list(state) == list(kept.state_dict()) == ["weight", "weight_scale"]
    assert all(same_bytes(state[name], tensor) for name, tensor in tensors.items())
    assert all(same_bytes(getattr(layer, name), tensor) for name, tensor in tensors.items())
    assert all(map(torch.equal, outputs(layer), outputs(kept)))
    assert released(layer)


@pytest.mark.parametrize(("scheme", "names"), [("w8a16_fp8", ["weight"]), ("mxfp8", ["weight", "weight_scale"])])
def test_released_tensors_are_freed_and_no_longer_counted(scheme, names):
    tensors = given(scheme)
    alive = {name: ref(tensor.untyped_storage()) for name, tensor in tensors.items()}
    held = ref(tensors["weight"])
    layer = once(tensors, scheme)
    del tensors
    gc.collect()
    assert held() is None
    assert alive["weight"]() is None
    assert [name for name in layer._parameters_of if name not in layer.held()] == names
    exponents = PACKED // 32 if scheme == "mxfp8" else 0
    assert layer.memory() == {"cpu_fp8": PACKED + exponents}
    size = SIZE + (N * K // 32 if scheme == "mxfp8" else 0)
    line = f"  released {', '.join(names)}: {size / 1024:.1f} KiB, unpacked from tiles when asked for"
    assert line in layer.explain()
    assert once(given(scheme), scheme, keep_checkpoint=True).memory() == layer.memory()


def test_codes_of_nan_and_both_zeros_come_back_when_a_kernel_packs_them():
    tensors = given()
    tensors["weight"].view(torch.uint8)[:2] = torch.tensor([[0x7F], [0xFF]], dtype=torch.uint8)
    tensors["weight"].view(torch.uint8)[2:4] = torch.tensor([[0x00], [0x80]], dtype=torch.uint8)
    layer = once(tensors, verify="never")
    assert released(layer)
    assert same_bytes(layer.weight, tensors["weight"])


def test_nothing_is_released_unless_asked_for():
    table = load_table(overrides=[("tiles", TILES)])
    layer = QuantLinear.from_tensors("w8a16_fp8", given(), table=table, device="cpu")
    assert not released(layer)
    assert "released" not in layer.explain()
    assert "kept  " not in layer.explain()


# --- What keeps them ----------------------------------------------------------------------------------------------


def test_a_band_that_takes_the_checkpoint_keeps_it_and_the_layer_says_so():
    bands = TILES.replace("layout: tiles", "layout: tiles, accepts: {m: {max: 64}}")
    table = load_table(overrides=[("tiles", bands)])
    layer = QuantLinear.from_tensors("w8a16_fp8", given(), table=table, device="cpu", keep_checkpoint=False)
    assert not released(layer)
    assert "kept     the checkpoint's tensors: reference computes m = 65, from the checkpoint's own" in layer.explain()
    assert [layer.kernel_for(m) for m in (64, 65)] == ["cpu_fp8", "reference"]


class OneWay(Tiles):
    """A layout without a way back."""

    unpack = None


class Wrong(Tiles):
    """Its way back loses the sign of zero."""

    @staticmethod
    def unpack(problem, packed):
        made = Tiles.unpack(problem, packed)
        made["weight"][made["weight"] == 0x80] = 0
        return made


class Broken(Tiles):
    """Its way back raises."""

    @staticmethod
    def unpack(problem, packed):
        raise RuntimeError("no way back")


class Holding(Tiles):
    """It reads the checkpoint's tensor too."""

    def __init__(self, problem, *, weight, **more):
        super().__init__(problem, weight=weight, **more)
        self.codes = weight.view(torch.uint8)[1:]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (OneWay, "cpu_fp8 computes m = 1, and its layout 'tiles' cannot be unpacked"),
        (Wrong, "unpacking layout 'tiles' of cpu_fp8 gives other bytes of weight"),
        (Broken, "unpacking layout 'tiles' of cpu_fp8 failed: RuntimeError: no way back"),
        (Holding, "cpu_fp8 refers to the checkpoint's own tensors"),
    ],
)
def test_a_copy_that_cannot_stand_for_the_tensors_releases_nothing(monkeypatch, kind, why):
    packing(monkeypatch, kind)
    layer = once(verify="never")
    assert not released(layer)
    assert layer.why_kept == why
    assert why in layer.explain()
    assert all(same_bytes(tensor, given()[name]) for name, tensor in layer.state_dict().items())


# --- A kernel that fails later ------------------------------------------------------------------------------------


class Failing(Tiles):
    """It fails for five rows."""

    def __call__(self, x, bias):
        if x.shape[0] == 5:
            raise RuntimeError("wrong arguments")
        return super().__call__(x, bias)


def test_a_kernel_that_fails_later_falls_back_on_tensors_made_again_once(monkeypatch):
    packing(monkeypatch, Failing)
    layer, right = once(), once(keep_checkpoint=True, kernel="reference")
    assert released(layer)
    assert torch.equal(layer(rows(5)), right(rows(5)))
    assert (layer.kernel_for(5), layer.kernel_for(40)) == ("reference", "cpu_fp8")
    assert layer.weight.data_ptr() == layer.weight.data_ptr()  # held again: `reference` works from it
    assert "kept     weight: unpacked again for a kernel that works from them" in layer.explain()
    assert layer.memory()["cpu_fp8"] == PACKED
    assert torch.equal(layer(rows(40)), right(rows(40)))
    assert all(same_bytes(tensor, given()[name]) for name, tensor in layer.state_dict().items())


def test_a_wrong_result_is_found_by_checking_against_tensors_made_again(monkeypatch):
    class Doubling(Tiles):
        def __call__(self, x, bias):
            return super().__call__(x, bias) * 2

    packing(monkeypatch, Doubling)
    layer = once()
    assert torch.equal(layer(rows(3)), once(keep_checkpoint=True, kernel="reference")(rows(3)))
    assert layer.kernel_for(3) == "reference"


def test_a_check_without_memory_for_the_tensors_counts_as_no_check(monkeypatch):
    layer = once()
    source = layer._ready[torch.bfloat16].plan.source

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(source, "whole", full)
    layer(rows(3))
    assert layer.kernel_for(3) == "cpu_fp8"
    assert shared_ledger().report().unchecked == {"cpu_fp8": 1}


# --- Everything that changes a layer ------------------------------------------------------------------------------


def test_two_types_of_input_share_the_packed_copy_of_a_released_layer(stand_ins):
    layer = once()
    layer.prepare((1, 40), input="f16")
    assert stand_ins.packed["cpu_fp8"] == 2
    assert layer.memory() == {"cpu_fp8": PACKED}
    assert released(layer)
    assert len({id(one.plan.packed["tiles"]) for one in layer._ready.values()}) == 1


@pytest.mark.parametrize("twice", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), copy.copy])
def test_copies_have_the_checkpoint_s_bytes_and_release_them_when_they_are_bound(twice):
    layer = once()
    twin = twice(layer)
    assert released(layer)
    assert not released(twin)
    assert twin._source is None
    assert same_bytes(twin.weight, given()["weight"])
    assert all(map(torch.equal, outputs(twin), outputs(layer)))
    assert released(twin)
    assert same_bytes(twin.weight, given()["weight"])


def test_moving_packing_again_and_rebinding_keep_every_byte_and_release_again(stand_ins):
    layer, before = once(), outputs(once(keep_checkpoint=True))
    outputs(layer)
    count = stand_ins.packed["cpu_fp8"]
    assert released(layer.half().to("cpu").eval())
    assert stand_ins.packed["cpu_fp8"] == count  # nothing changed, so nothing is packed again
    assert released(layer.repack())
    layer.rebind(load_table(overrides=[("tiles", TILES), ("more", "override: 1\nplans: {weight_copies: 2}\n")]))
    assert released(layer)
    assert all(map(torch.equal, outputs(layer), before))
    assert same_bytes(layer.weight, given()["weight"])
    away = copy.deepcopy(layer).to("meta")
    assert away.weight.is_meta
    assert away.place.type == "meta"


def test_rebinding_by_a_table_whose_kernel_takes_the_checkpoint_holds_it_and_drops_the_copy():
    layer = once()
    layer.rebind(load_table(overrides=[("only", "override: 1\nroutes: {w8a16_fp8: {cpu: {require: reference}}}\n")]))
    assert not released(layer)
    assert layer.why_kept == "reference computes m = 1, from the checkpoint's own tensors"
    assert "cpu_fp8" not in layer.memory()
    assert same_bytes(layer.weight, given()["weight"])


def test_a_table_without_a_kernel_leaves_a_released_layer_as_it_is():
    layer = once()
    ready = layer._ready[torch.bfloat16]
    large = "{accepts: {n: {min: 4096}}}"
    rows = ", ".join(f"{kernel}: {large}" for kernel in ("cpu_fp8", "cpu_fp8_amx", "reference"))
    nothing = load_table(overrides=[("none", f"override: 1\nkernels: {{{rows}}}")])
    with pytest.raises(NoKernelError, match=r"accepts\.n"):
        layer.rebind(nothing)
    assert released(layer)
    assert layer._ready[torch.bfloat16] is ready


@pytest.mark.parametrize("assign", [False, True])
def test_a_released_layer_loads_other_tensors_and_releases_them(assign):
    layer, other = once(), given(seed=4)
    layer.load_state_dict({name: tensor.clone() for name, tensor in other.items()}, assign=assign)
    assert released(layer)
    assert all(same_bytes(tensor, other[name]) for name, tensor in layer.state_dict().items())
    assert all(map(torch.equal, outputs(layer), outputs(once(other, keep_checkpoint=True))))


@pytest.mark.parametrize(
    ("change", "error"),
    [({"weight": torch.zeros(N, K)}, LayerError), ({"weight": given(n=96)["weight"]}, RuntimeError)],
)
def test_a_state_dict_that_does_not_fit_a_released_layer_is_refused_and_changes_nothing(change, error):
    layer = once()
    with pytest.raises(error, match="weight"):
        layer.load_state_dict(given(seed=4) | change)
    assert released(layer)
    assert all(same_bytes(tensor, given()[name]) for name, tensor in layer.state_dict().items())


def test_an_assigned_tensor_is_used_and_never_released_until_the_layer_is_packed_again():
    layer, other = once(), given(seed=4)["weight"]
    layer.weight = other
    changed = given() | {"weight": other}
    assert torch.equal(layer(rows(3)), once(changed, keep_checkpoint=True)(rows(3)))
    assert layer.weight is other
    assert released(layer.repack())
    assert same_bytes(layer.weight, other)


def test_a_functional_call_with_another_weight_gives_the_layer_its_own_back():
    layer, other = once(), given(seed=4)["weight"]
    for one in (layer, copy.deepcopy(layer)):
        swapped = {"weight": other}
        out = torch.func.functional_call(one, swapped, (rows(3),))
        assert torch.equal(out, once(given() | {"weight": other}, keep_checkpoint=True)(rows(3)))
        assert swapped["weight"] is other
        assert torch.equal(one(rows(3)), once(keep_checkpoint=True)(rows(3)))
        assert same_bytes(one.weight, given()["weight"])


def test_a_compiled_released_layer_computes_the_same_bits():
    layer = once()
    compiled = torch.compile(torch.nn.Sequential(layer), backend="eager", fullgraph=True)
    assert torch.equal(compiled(rows(5)), layer(rows(5)))
    assert released(layer)


def test_threads_that_call_while_a_layer_is_read_and_packed_again_get_right_results():
    layer, wrong = once(verify="never"), []
    right = once(keep_checkpoint=True)(rows(3))

    def call():
        for _ in range(40):
            if not torch.equal(layer(rows(3)), right):
                wrong.append(3)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if not same_bytes(layer.state_dict()["weight"], given()["weight"]):
            wrong.append(0)
        layer.repack()
        layer.to("cpu")
    for thread in threads:
        thread.join()
    assert not wrong
    assert released(layer.repack())


def test_a_state_dict_under_an_alias_keeps_the_name_and_strangers_are_refused():
    tensors = given()
    layer = once({"weight": tensors["weight"], "weight_scale_inv": tensors["weight_scale"]}, "w8a16_fp8")
    assert set(layer.state_dict()) == {"weight", "weight_scale_inv"}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        layer.load_state_dict(layer.state_dict() | {"zero_point": torch.zeros(1)})
    assert same_bytes(layer.weight, tensors["weight"])


# --- The shipped adapters -----------------------------------------------------------------------------------------

WAYS_BACK = ("hopper_w8a16", "marlin_w8a16")


def test_kernels_with_a_way_back_pack_a_layout_and_share_it():
    table = load_table()
    shipped = {name: row for name, row in table.kernels.items() if "def unpack(" in registry._shipped().get(name, "")}
    assert set(shipped) == set(WAYS_BACK)
    for name, row in shipped.items():
        adapter = registry.load(name)
        assert row.layout != CHECKPOINT
        assert registry.PACKED in signature(adapter).parameters
        assert list(signature(adapter.unpack).parameters) == ["problem", "packed"]


def test_the_reference_has_no_way_back():
    assert not hasattr(Reference, registry.UNPACK)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scheme", ["w8a16_fp8", "mxfp8"])
def test_a_gpu_holds_the_weight_once_and_replays_graphs_of_released_layers(monkeypatch, scheme):
    monkeypatch.undo()  # the kernels themselves
    tensors = {name: part.cuda() for name, part in given(scheme, 1024, 2048).items()}
    options = {"kernel": "marlin_w8a16", "device": "cuda"}
    kept = QuantLinear.from_tensors(scheme, tensors, **options)
    copies = {name: part.clone() for name, part in tensors.items()}
    before = torch.cuda.memory_allocated()
    layer = QuantLinear.from_tensors(scheme, copies, keep_checkpoint=False, **options)
    del copies
    assert layer.why_kept is None
    assert torch.cuda.memory_allocated() - before < 2**19  # the copies were there before; one weight is there now
    assert all(same_bytes(part, tensors[name]) for name, part in layer.state_dict().items())
    x = torch.randn(17, 2048, device="cuda").bfloat16()
    assert torch.equal(layer.prepare(17)(x), kept(x))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(x)
    layer.repack()
    out.fill_(torch.nan)
    graph.replay()
    assert torch.equal(out, kept(x))
    back = layer.cpu().cuda()
    assert torch.equal(back(x), kept(x))
    assert released(back)
