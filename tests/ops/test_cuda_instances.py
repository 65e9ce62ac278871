"""Device code in CUDA: what a chip's row of the table gives it, and that every instance a launch asks for is known."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from kerneltable.errors import KernelUnavailable
from kerneltable.model import Architecture
from kerneltable.ops import cuda_instances, nvrtc
from kerneltable.ops.cuda_chip import cuda_chip
from kerneltable.ops.cuda_code import Instance, Product, compiled
from kerneltable.ops.settings import CompileSettings
from kerneltable.ops.sources import csrc_folder
from kerneltable.ops.triton_chip import abilities
from kerneltable.table import load_table

ARCHITECTURES = load_table().platforms["cuda"].architectures
KERNELS = Path(cuda_instances.__file__).parents[1] / "kernels"
SOME = cuda_instances.of_shapes([(4096, 7168), (64, 512)], 132)
DTYPES = [(input, output) for input in ("bf16", "f16", "f32") for output in ("bf16", "f16", "f32")]
HOPPER = Instance("cuda/hopper_w8a16.cu", "hopper_w8a16", (), 0, ())

NO_NVRTC = nvrtc.find_nvrtc() if isinstance(nvrtc.find_nvrtc(), str) else ""
needs_nvrtc = pytest.mark.skipif(bool(NO_NVRTC), reason=NO_NVRTC or "NVRTC is here")


@cache
def usual_of(kernel: str) -> tuple[Instance, ...]:
    """Every instance of a kernel, as `kerneltable build` compiles them."""
    return tuple(cuda_instances.instances(kernel, cuda_instances.usual()))


def described(name: str, **changes: object) -> Architecture:
    return replace(ARCHITECTURES[name], **changes)  # type: ignore[arg-type]


def test_a_chip_is_what_its_row_says() -> None:
    chip = cuda_chip(ARCHITECTURES["sm90"], 132)
    assert (chip.name, chip.target, chip.shared_bytes, chip.multiprocessors) == ("sm90", "sm_90a", 227 * 1024, 132)
    seen = dict(chip.macros)
    assert (seen["KT_SM"], seen["KT_SHARED_KIB"], seen["KT_HAS_WGMMA"], seen["KT_FAMILY_SM9X"]) == (90, 227, 1, 1)
    assert "KT_HAS_TCGEN05" not in seen


ABLE = {
    "fp8_convert": {"sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121"},
    "ptx": {"sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121"},
    "wgmma": {"sm90"},
}
"""Sources: PTX ISA 9.0, cvt with e4m3x2, fma with bf16x2, wgmma."""


def test_what_chips_can_do_stands_in_the_table_alone() -> None:
    for fact, chips in ABLE.items():
        assert {name for name, chip in ARCHITECTURES.items() if abilities(chip.features)[fact]} == chips
    described = {name: chip for name, chip in ARCHITECTURES.items() if chip.target is not None}
    overlapping = {name for name, chip in described.items() if cuda_chip(chip, 132).overlaps}
    assert overlapping == {"sm90", "sm100", "sm103", "sm110", "sm120", "sm121"}  # PTX ISA 9.0, griddepcontrol
    assert all(cuda_chip(chip, 132).features == chip.features for chip in described.values())


def test_device_code_asks_for_features_and_never_for_the_number_of_a_chip() -> None:
    texts = {file.name: file.read_text() for file in csrc_folder().rglob("*.cu*")}
    assert len(texts) > 20
    assert not [name for name, text in texts.items() if re.search(r"KT_SM\s*[<>=!]|__CUDA_ARCH__", text)]


def test_chips_of_one_family_share_the_code_of_the_chip_that_they_are_like() -> None:
    old, new = (cuda_chip(ARCHITECTURES[name], 48) for name in ("sm120", "sm121"))
    assert (old.target, old.macros) == (new.target, new.macros)


@pytest.mark.parametrize("key", ["target", "shared_memory_kib"])
def test_a_chip_whose_row_says_too_little_is_refused_with_its_place(key: str) -> None:
    with pytest.raises(KernelUnavailable, match=rf"dispatch\.yaml:\d+: architecture 'sm90'.*`{key}`"):
        cuda_chip(described("sm90", **{key: None}), 132)


def test_more_shared_memory_than_the_chip_has_is_refused_before_compiling(tmp_path: Path) -> None:
    chip = cuda_chip(ARCHITECTURES["sm120"], 48)
    large = replace(HOPPER, shared_bytes=99 * 1024 + 1)
    with pytest.raises(KernelUnavailable, match=r"wants 101377 bytes of shared memory.*sm120 has 101376"):
        compiled(large, chip, CompileSettings(folder=tmp_path))


@needs_nvrtc
def test_a_source_without_the_function_is_no_code(tmp_path: Path) -> None:
    one = cuda_instances.instances("hopper_w8a16", [Product(1, 64, 128, 132)])[0]
    part = replace(one, name=one.name[:-1])  # the beginning of a name is none
    with pytest.raises(KernelUnavailable, match=rf"{one.file}: compiled, but has no function {part.name}; it must"):
        compiled(part, cuda_chip(ARCHITECTURES["sm90"], 132), CompileSettings(folder=tmp_path))


@needs_nvrtc
def test_code_for_features_that_the_row_does_not_name_is_no_code(tmp_path: Path) -> None:
    without = described("sm90", features=ARCHITECTURES["sm90"].features - {"wgmma"})
    one = cuda_instances.instances("hopper_w8a16", [Product(1, 64, 128, 132)])[0]
    with pytest.raises(KernelUnavailable, match="needs the features tma and wgmma"):
        compiled(one, cuda_chip(without, 132), CompileSettings(folder=tmp_path))


@pytest.mark.parametrize("kernel", sorted(cuda_instances.MODULES))
def test_what_any_product_asks_for_is_among_the_usual_instances(kernel: str) -> None:
    known = set(usual_of(kernel))
    dice = random.Random(kernel)
    sizes = [
        Product(
            int(2 ** dice.uniform(0, 14)),
            16 * int(2 ** dice.uniform(0, 13)),
            16 * int(2 ** dice.uniform(0, 11)),
            dice.randint(14, 192),
        )
        for _ in range(20_000)
    ]
    asked = set(cuda_instances.instances(kernel, sizes))
    assert asked
    assert asked <= known


@pytest.mark.parametrize("kernel", sorted(cuda_instances.MODULES))
def test_fewer_sizes_and_other_dtypes_make_other_instances_each_once(kernel: str) -> None:
    some = cuda_instances.instances(kernel, SOME)
    assert len(some) == len(set(some))
    assert set(some) <= set(usual_of(kernel))
    assert not set(cuda_instances.instances(kernel, SOME, [("f16", "f16")])) & set(some)


def test_every_source_is_reached_and_each_instance_names_a_function_of_it() -> None:
    found = {one for kernel in cuda_instances.MODULES for one in cuda_instances.instances(kernel, SOME, DTYPES)}
    assert {one.file for one in found} == {f"cuda/{path.name}" for path in (csrc_folder() / "cuda").glob("*.cu")}
    for file, name in {(one.file, one.name) for one in found}:
        assert re.search(rf'extern "C" __global__[^{{]*\b{name}\(', (csrc_folder() / file).read_text()), (file, name)


def test_every_kernel_that_is_given_the_chip_has_its_instances_listed() -> None:
    given = {path.stem for path in KERNELS.glob("*.py") if re.search(r"\bchip: CudaChip\b", path.read_text())}
    assert given == set(cuda_instances.MODULES)


def test_sources_learn_of_the_chip_from_the_table_alone() -> None:
    files = [path for path in csrc_folder().rglob("*.cu*") if path.is_file()]
    assert files
    for path in files:
        assert not re.search(r"__CUDA_ARCH|#\s*if.*__NVCC__", path.read_text()), path.name
        used = set(re.findall(r"\bKT_(?:HAS|FAMILY)_\w+", path.read_text()))
        assert used <= {
            name for chip in ARCHITECTURES.values() if chip.target for name in dict(cuda_chip(chip, 1).macros)
        }


def test_a_spread_has_some_of_every_source() -> None:
    every = usual_of("hopper_fp8_block")
    few = cuda_instances.spread(every, 2)
    assert {one.file for one in few} == {one.file for one in every}
    assert max(sum(one.file == file for one in few) for file in {one.file for one in few}) <= 2
    assert cuda_instances.spread(every, len(every)) == list(every)
