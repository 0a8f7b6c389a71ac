"""Tuning: the lock file, what is stale, that entries take effect and that every candidate computes the same."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

import opcel_compiler as oc
from opcel_compiler.cli import main
from opcel_compiler.compilation import prepare
from opcel_compiler.ir.program import Kernel, Program
from opcel_compiler.runtime._runtime import usable_cpus
from opcel_compiler.schedule.choice.candidates import CandidateError, Params, candidates, kernel_text
from opcel_compiler.schedule.choice.context import Choosing
from opcel_compiler.schedule.choice.variants import Choice, choices
from opcel_compiler.search import lock
from opcel_compiler.search.lock import Entry, LockError, StaleWarning
from opcel_compiler.search.trial import trial_program
from opcel_compiler.search.tune import tune
from opcel_compiler.targets import load_target

from .builder import Net

BF16 = pytest.mark.skipif(not load_target("host").peak("bf16"), reason="this CPU has no products in bf16")


def product_net() -> onnx.ModelProto:
    net = Net("product")
    net.output("y", net("Relu", net("MatMul", net.input("x", 50, 40), net.weight(40, 70))))
    return net.model()


def square_net() -> onnx.ModelProto:
    net = Net("square")
    x, w = net.input("x", 1, 32, 20, 20), net.weight(32, 32, 3, 3)
    net.output("y", net("Relu", net("Conv", x, w, kernel_shape=[3, 3], pads=[1, 1, 1, 1])))
    return net.model()


def conv_net() -> onnx.ModelProto:
    net = Net("conv")
    x = net("Conv", net.input("x", 1, 32, 9, 9), net.weight(48, 32, 5, 5), kernel_shape=[5, 5], pads=[2, 2, 2, 2])
    net.output("y", net("Conv", net("Relu", x), net.weight(64, 48, 1, 1), kernel_shape=[1, 1]))
    return net.model()


def kernels(model: onnx.ModelProto, precision: str = "f32") -> list[Kernel]:
    program = prepare(model, precision=precision).program
    assert program is not None
    return [k for k in program.kernels if of(k)]


def of(kernel: Kernel) -> list[Choice]:
    return choices(kernel, Choosing(Program("p"), load_target("host")))


def here(kernel: Kernel, params: Params) -> Entry:
    machine = lock.machine_text(load_target("host"), usable_cpus())
    return Entry(kernel_text(kernel), machine, lock.sources_digest(), kernel.family, params, 1.5)


def test_a_lock_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "model.tune"
    entries = [
        Entry("f32: b", "CPU, level, 2 threads", "aa", "gemm", {"rows": (6, 5), "panel": 64}, 1.25),
        Entry("f32: a", "CPU, level, 2 threads", "bb", "conv.blocked", {"out_blocks": 2}, 1.0391),
        Entry("f32: a", "CPU, level, 1 thread", "bb", "conv.blocked", {"out_blocks": 3}, 1.1),
    ]
    lock.write_lock(file, entries)
    text = file.read_text()
    read = lock.read_lock(file)
    assert [(e.kernel, e.machine) for e in read] == sorted((e.kernel, e.machine) for e in entries)
    assert read[2] == entries[0] and read[1].gain == 1.039
    assert "params: {panel: 64, rows: [6, 5]}" in text.replace("\n    ", " ") or "rows: [6, 5]" in text
    lock.write_lock(file, reversed(read))
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: 2\nentries: []", "is no tuning lock file of format 1"),
        ("- 1", "is no tuning lock file"),
        ("format: 1\nentries: [{kernel: k}]", "entry 1 has not exactly the fields kernel, machine"),
        ("format: [", "cannot read the tuning lock file"),
        (
            "format: 1\nentries: [{kernel: k, machine: 1, sources: s, family: f, params: {}, gain: 1}]",
            "entry 1: machine cannot be 1",
        ),
    ],
)
def test_a_lock_file_that_is_wrong_says_where(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "model.tune"
    file.write_text(text)
    with pytest.raises(LockError, match=message):
        lock.read_lock(file)
    with pytest.raises(LockError, match="cannot read the tuning lock file"):
        lock.read_lock(tmp_path / "none.tune")


def test_what_was_measured_elsewhere_or_before_is_stale() -> None:
    def entry(kernel: str, machine: str, sources: str) -> Entry:
        return Entry(kernel, machine, sources, "gemm", {"panel": 32}, 1.1)

    entries = [entry("a", "here", "new"), entry("b", "there", "new"), entry("c", "here", "old")]
    found, why = lock.usable(entries, "here", "new")
    assert list(found) == ["a"] and dict(found["a"].params) == {"panel": 32}
    assert why == (
        "2 of 3 entries are stale and left alone: 1 for another machine than here, 1 of kernels that have changed since"
    )
    assert lock.usable(entries[:1], "here", "new")[1] == ""
    # Measured again on this machine, "c" is dropped as its own choice is best, and "a" replaced; others are kept.
    again = lock.merged(entries, [entry("a", "here", "newer")], ["a", "c"], "here")
    assert [(e.kernel, e.sources) for e in again] == [("b", "new"), ("a", "newer")]


def test_the_machine_is_named_by_cpu_level_and_threads(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU 9\n")
    assert lock.cpu_model(info) == "Some CPU 9" and lock.cpu_model(tmp_path / "none") == "unknown CPU"
    text = lock.machine_text(load_target("x86-64-avx2"), 1)
    assert text == f"{lock.cpu_model()}, x86-64-avx2, 1 thread"


def test_an_entry_takes_effect_and_a_stale_one_does_not(tmp_path: Path) -> None:
    (kernel,) = kernels(product_net())
    other = candidates(kernel, load_target("host"))[-1]
    file = tmp_path / "model.tune"
    entry = here(kernel, other)
    lock.write_lock(file, [entry])
    with oc.compile(product_net(), output=tmp_path / "tuned.opcel", tune=file) as model:
        assert model.report["tuned_kernels"] == 1
    with oc.compile(product_net(), output=tmp_path / "own.opcel") as model:
        assert model.report["tuned_kernels"] == 0
    lock.write_lock(file, [Entry(entry.kernel, entry.machine, "0" * 16, entry.family, other, 1.5)])
    with pytest.warns(StaleWarning, match="1 of 1 entries are stale") as caught:
        model = oc.compile(product_net(), output=tmp_path / "stale.opcel", tune=file)
    with model:
        assert model.report["tuned_kernels"] == 0 and len(caught) == 1
    same = [(tmp_path / name / "model.so").read_bytes() for name in ("own.opcel", "stale.opcel", "tuned.opcel")]
    assert same[0] == same[1] != same[2]


def test_an_entry_that_a_kernel_cannot_have_is_an_error(tmp_path: Path) -> None:
    (kernel,) = kernels(product_net())
    lock.write_lock(tmp_path / "model.tune", [here(kernel, {"panels_per_task": 0})])
    with pytest.raises(CandidateError, match="panels_per_task of a kernel of family gemm cannot be 0"):
        oc.compile(product_net(), output=tmp_path / "m.opcel", tune=tmp_path / "model.tune")


NETS = [(product_net, "f32"), (conv_net, "f32"), (square_net, "f32"), pytest.param(product_net, "bf16", marks=BF16)]


@pytest.mark.parametrize(("net", "precision"), NETS)
def test_every_candidate_computes_the_same(net: object, precision: str, tmp_path: Path) -> None:
    """Compiling proves the artifact, so a candidate that computes something else cannot be compiled."""
    model = net()  # type: ignore[operator]
    each = [of(kernel) for kernel in kernels(model, precision)]
    for i in range(1, max(map(len, each))):
        entries = [here(*found[i % len(found)]) for found in each]
        lock.write_lock(tmp_path / "model.tune", entries)
        with oc.compile(
            model, output=tmp_path / f"{i}.opcel", tune=tmp_path / "model.tune", precision=precision
        ) as compiled:
            assert compiled.report["tuned_kernels"] == len(each)
            families = [kernel["family"] for kernel in compiled.report["kernels"]]
            assert {entry.family for entry in entries} <= set(families)
            assert compiled.report["proof"]["status"] == "proved"


def test_a_convolution_is_measured_in_both_families() -> None:
    (kernel,) = kernels(square_net())
    assert {one.family for one, _ in of(kernel)} == {"conv.blocked", "conv.winograd"}


def test_a_trial_runs_each_candidate_twice_on_weights_of_its_own() -> None:
    (kernel,) = kernels(product_net())
    three = of(kernel)[:3]
    program, order = trial_program(three)
    assert order == [None, 0, 1, 2, 0, 2, 1], "the first step may run on one thread"
    steps = list(program.kernels)
    assert len(steps) == 7 and steps[0].body is steps[1].body and steps[0].params == steps[1].params
    weights = [step.inputs[1].buffer for step in steps[1:]]
    assert weights[0] is weights[3] and len(set(weights)) == 3
    assert weights[0].data is not None and weights[1].data is not None and weights[0].data != weights[1].data
    assert len({step.inputs[0].buffer for step in program.kernels}) == 1
    assert len({step.outputs[0].buffer for step in steps}) == 7
    assert [step.params["panel"] for step in steps[1:]] == [three[i][1]["panel"] for i in (0, 1, 2, 0, 2, 1)]


def test_tuning_keeps_what_is_faster_and_stops_in_time() -> None:
    model = conv_net()
    program, target = prepare(model).program, load_target("host")
    assert program is not None
    asked: list[str] = []

    def slow_first(found: list[Choice]) -> tuple[float, float, int] | None:
        asked.append(kernel_text(found[0][0]))
        return (3.0, 2.0, 1) if len(asked) == 1 else (2.0, 2.5, 2)

    first, second = tune(program, target, 1, measured=slow_first)
    assert first.gain == 1.5 and first.params == candidates(first.kernel, target)[1]
    entry = first.entry("machine", "sources")
    assert entry is not None and entry.params == first.params and entry.kernel == asked[0]
    # What did not win again when it was measured by itself is no choice, and no entry.
    assert second.gain == 1.0 and second.params == candidates(second.kernel, target)[0]
    assert second.entry("machine", "sources") is None
    assert list(tune(program, target, 1, seconds=-1, measured=slow_first)) == []
    assert list(tune(program, target, 1, measured=lambda *_: None)) == []


def test_the_command_writes_a_file_that_compile_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Net("small")
    net.output("y", net("MatMul", net.input("x", "n", 16), net.weight(16, 16)))
    onnx.save(net.model(), tmp_path / "small.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((8, 16), np.float32))
    command = ["tune", str(tmp_path / "small.onnx"), "-o", str(tmp_path / "small.tune")]
    assert main(command) == 0
    assert "no kernel has other candidates" in capsys.readouterr().err
    assert main([*command, "--inputs", str(tmp_path / "x.npz"), "--threads", "1"]) == 0
    assert "measured    1 kernels on " in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "small.tune").read_text())["format"] == 1
    compile_ = ["compile", str(tmp_path / "small.onnx"), "-o", str(tmp_path / "s.opcel"), "--dim", "n=8", "--quiet"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main([*compile_, "--threads", "1", "--tune", str(tmp_path / "small.tune")]) == 0
    stale = Entry("k", "elsewhere", "s", "gemm", {"panel": 32}, 1.1)
    lock.write_lock(tmp_path / "small.tune", [stale])
    assert main([*compile_, "--tune", str(tmp_path / "small.tune")]) == 0
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "1 of 1 entries are stale" in told and "opcel tune" in told
    assert main([*command, "--target", "null"]) == 2
    assert "cannot run null" in capsys.readouterr().err
