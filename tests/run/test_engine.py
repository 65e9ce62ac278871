"""Engine: a good file takes over at once, a bad one changes nothing, layers are stale until they are bound again."""

from __future__ import annotations

import gc
import logging
import random
import threading
from pathlib import Path
from weakref import WeakSet

import pytest

import kerneltable as kt
from kerneltable.model import Device, Problem
from kerneltable.select import device

FIRST = "override: 1\nroutes: {mxfp8: {cuda: {order: {prepend: [reference]}}}}\n"
SECOND = "override: 1\nroutes: {mxfp8: {cuda: {order: {prepend: [triton_mxfp8_w8a16]}}}}\n"
BAD = {
    "torn": FIRST[:50],
    "empty": "",
    "not yaml": "override: 1\nroutes: [\n",
    "unknown kernel": "override: 1\ndisable: [{kernel: nope, reason: x}]\n",
    "no kernel left": "override: 1\nroutes: {mxfp8: {cuda: {order: {replace: []}}}}\n",
    "guard": "override: 1\nexpects: {table: 9}\nroutes: {mxfp8: {cuda: {prefer: reference}}}\n",
}
ASKED = Problem("mxfp8", n=64, k=64, m=4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "deploy.yaml"
    return write(path, FIRST)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture
def engine(file: Path) -> kt.Engine:
    return kt.Engine(None, [file])


def a100(engine: kt.Engine) -> Device:
    return device("a100", engine.table)


def test_an_engine_selects_by_its_table(engine: kt.Engine) -> None:
    assert engine.select(a100(engine), ASKED) == kt.select(engine.table, a100(engine), ASKED)
    assert engine.select(a100(engine), ASKED).kernel == "reference"


def test_a_good_file_takes_over(engine: kt.Engine, file: Path) -> None:
    before = engine.digest
    write(file, SECOND)
    found = engine.reload()
    assert (found.ok, found.changed, found.digest) == (True, True, engine.digest)
    assert engine.digest != before
    assert engine.select(a100(engine), ASKED).kernel == "triton_mxfp8_w8a16"


def test_an_unchanged_file_keeps_the_very_table(engine: kt.Engine) -> None:
    before = engine.table
    found = engine.reload()
    assert (found.ok, found.changed) == (True, False)
    assert engine.table is before


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_leaves_the_last_good_table_in_force_and_says_so(
    engine: kt.Engine, file: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = engine.table
    write(file, BAD[kind])
    with caplog.at_level(logging.ERROR, "kerneltable"):
        found = engine.reload()
    assert (found.ok, found.changed, engine.table is before) == (False, False, True)
    assert any(finding.severity == "error" for finding in found.findings)
    assert "stays in force" in str(found)
    assert str(file) in caplog.text
    write(file, SECOND)
    assert engine.reload().changed


@pytest.mark.parametrize("change", ["missing", "folder", "writable"])
def test_a_file_that_cannot_be_trusted_changes_nothing(engine: kt.Engine, file: Path, change: str) -> None:
    before = engine.table
    write(file, SECOND)
    if change == "writable":
        file.chmod(0o666)
    else:
        file.unlink()
    if change == "folder":
        file.mkdir()
    assert not engine.reload().ok
    assert engine.table is before


def test_a_bad_file_at_the_start_is_an_error(file: Path) -> None:
    with pytest.raises(kt.ConfigError, match="KT120"):
        kt.Engine(None, [write(file, "")])


def test_a_warning_does_not_stop_a_reload(engine: kt.Engine, file: Path) -> None:
    write(file, SECOND + 'disable: [{kernel: cpu_fp8, reason: slow, until: "2020-01-01"}]\n')
    found = engine.reload()
    assert (found.ok, found.changed) == (True, True)
    assert [finding.severity for finding in found.findings] == ["warning"]


def test_threads_never_see_a_wrong_or_torn_table_while_it_is_exchanged(engine: kt.Engine, file: Path) -> None:
    """16 threads and 1,000 reloads with 100,000 selections each were run by hand; here a part of it."""
    chosen = {engine.digest: engine.select(a100(engine), ASKED).kernel}
    write(file, SECOND)
    engine.reload()
    chosen[engine.digest] = engine.select(a100(engine), ASKED).kernel
    assert len(set(chosen.values())) == 2
    where, wrong, done = a100(engine), [], []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(1500):
            problem = Problem("mxfp8", n=64, k=64, m=draw.randrange(1, 500))
            table = engine.table
            answer = kt.select(table, where, problem).kernel
            if answer != chosen[table.digest] or engine.select(where, problem).kernel not in chosen.values():
                wrong.append((seed, answer))
        done.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    texts = [FIRST, *BAD.values(), SECOND, BAD["torn"]]
    refused = 0
    while any(thread.is_alive() for thread in threads):
        for text in texts:
            write(file, text)
            refused += not engine.reload().ok
    for thread in threads:
        thread.join(60)
    assert (wrong, sorted(done)) == ([], list(range(16)))
    assert refused >= len(BAD) + 1


# --- Layers ---------------------------------------------------------------------------------------------------------

ON_CPU = "override: 1\nroutes: {w8a16_fp8: {cpu: {prefer: reference}}}\n"
NO_SCHEME_LEFT = (
    "override: 1\nallow_empty: true\nroutes: {w8a16_fp8: {cpu: {order: {remove: [reference, cpu_fp8, cpu_fp8_amx]}}}}\n"
)


def tensors() -> dict:
    torch = pytest.importorskip("torch")
    weight = torch.randn(32, 64).to(torch.float8_e4m3fn)
    return {"weight": weight, "weight_scale": torch.rand(32, 1) + 0.5}


def test_a_bound_layer_stays_on_its_kernel_until_it_is_bound_again(engine: kt.Engine, file: Path) -> None:
    torch = pytest.importorskip("torch")
    layer = engine.linear("w8a16_fp8", tensors(), name="mlp.up", input="f32", device="cpu")
    x = torch.randn(3, 64)
    before, kernel = layer(x), layer.kernel
    assert (engine.stale(), kernel) == ((), "cpu_fp8")
    write(file, ON_CPU)
    found = engine.reload()
    assert (found.stale, layer.kernel) == (("mlp.up",), kernel)
    assert "1 bound layers are stale" in str(found)
    assert torch.equal(layer(x), before)
    assert engine.rebind() == ()
    assert (layer.kernel, layer.table is engine.table) == ("reference", True)
    torch.testing.assert_close(layer(x), before)


def test_a_layer_that_the_new_table_cannot_serve_stays_and_is_listed(
    engine: kt.Engine, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip("torch")
    layer = engine.linear("w8a16_fp8", tensors(), name="mlp.up", input="f32", device="cpu")
    write(file, NO_SCHEME_LEFT)
    assert engine.reload().ok
    assert engine.rebind() == (layer,)
    assert "mlp.up stays on its kernel: no kernel for w8a16_fp8" in caplog.text
    assert layer(torch.randn(3, 64)).isfinite().all()


def test_memory_that_runs_out_at_one_layer_leaves_the_others_bound(
    engine: kt.Engine, file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    names = ("a", "b", "c")
    layers = {name: engine.linear("w8a16_fp8", tensors(), name=name, input="f32", device="cpu") for name in names}
    write(file, ON_CPU)
    assert engine.reload().stale == names

    def full(table: kt.Table) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(layers["b"], "rebind", full)
    assert engine.rebind() == (layers["b"],)
    assert [layers[name].kernel for name in names] == ["reference", "cpu_fp8", "reference"]
    assert "b stays on its kernel: OutOfMemoryError: CUDA out of memory" in caplog.text


def test_layers_are_made_while_others_ask_which_are_stale(engine: kt.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Layer:
        name, table = "layer", engine.table

    asked, added, layers = threading.Event(), threading.Event(), [Layer() for _ in range(3)]

    class Slow(WeakSet):
        def __iter__(self):
            for layer in super().__iter__():
                asked.set()
                added.wait(0.1)
                yield layer

    def make() -> None:
        asked.wait(10)
        engine.track(layers[2:])
        added.set()

    monkeypatch.setattr(engine, "_layers", Slow(layers[:2]))
    thread = threading.Thread(target=make)
    thread.start()
    assert engine.stale() == ()
    thread.join(10)
    assert len(engine._layers) == 3


def test_layers_made_elsewhere_can_be_tracked_and_are_let_go(engine: kt.Engine, file: Path) -> None:
    layer = kt.QuantLinear.from_tensors("w8a16_fp8", tensors(), table=engine.table, device="cpu", name="other")
    engine.track([layer])
    write(file, SECOND)
    assert engine.reload().stale == ("other",)
    del layer
    gc.collect()
    assert engine.stale() == ()


def test_one_path_of_an_override_stands_for_itself(file: Path) -> None:
    assert (
        kt.Engine(overrides=file).digest == kt.Engine(overrides=str(file)).digest == kt.Engine(overrides=[file]).digest
    )
    with pytest.raises(kt.ProblemError, match="overrides must be a list of paths"):
        kt.Engine(overrides=7)  # type: ignore[arg-type]
