"""The artifact by itself: the same bytes from everywhere, no libraries, a C program, several threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import opcel_compiler as oc

from .builder import Net
from .conftest import GetTwin, assert_same, reference
from .twins import TWINS, feeds

ROOT = Path(__file__).resolve().parents[2]
COMPILE = "import sys, opcel_compiler as oc; oc.compile(sys.argv[1], output=sys.argv[2], fallback='error')"


@pytest.mark.parametrize(("name", "shared_cache"), [("mlp", False), ("bert-torchscript-symbolic", True)])
def test_every_folder_and_process_gives_the_same_bytes(
    twin: GetTwin, tmp_path: Path, name: str, shared_cache: bool
) -> None:  # fmt: skip
    twin(name)
    artifacts = []
    for i, seed in enumerate(("1", "2")):
        folder = tmp_path / f"folder{i}" / ("deeper" * i)
        folder.mkdir(parents=True)
        onnx.save(TWINS[name].build(), folder / "model.onnx")
        given, output = ("model.onnx", "out") if i else (str(folder / "model.onnx"), str(tmp_path / "another-name"))
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        if not shared_cache:
            environment["OPCEL_CACHE"] = str(folder / "cache")
        subprocess.run([sys.executable, "-c", COMPILE, given, output], cwd=folder, env=environment, check=True)
        artifacts.append(folder / output)
    for file in ("manifest.json", "model.so", "weights.bin", "report.json"):
        first, second = ((a / file).read_bytes() for a in artifacts)
        assert first == second, file


def test_the_library_needs_only_the_c_library(twin: GetTwin) -> None:
    for name in ("mlp", "bert-torchscript-symbolic", "integers", "reductions"):
        library = str(twin(name).path / "model.so")
        text = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
        needed = {line.split("[")[1].rstrip("]").split(".so")[0] for line in text.splitlines() if "(NEEDED)" in line}
        assert needed <= {"libc", "libm", "libpthread", "libgcc_s"}
        assert "RPATH" not in text and "RUNPATH" not in text


@pytest.fixture(scope="module")
def c_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c")
    # A copy of the header by itself shows that nothing else is needed.
    (folder / "opcel.h").write_bytes((ROOT / "csrc" / "runtime" / "opcel.h").read_bytes())
    source, program = Path(__file__).parent / "run.c", folder / "run"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Werror", f"-I{folder}"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(program), "-ldl"], check=True)
    return program


@pytest.mark.parametrize("threads", [1, 3])
def test_a_c_program_runs_two_artifacts_on_one_pool(
    twin: GetTwin, c_program: Path, tmp_path: Path, threads: int
) -> None:  # fmt: skip
    arguments: list[str] = []
    wanted = []
    for name in ("bert-torchscript", "resnet"):
        model = TWINS[name].build()
        given = feeds(model, seed=4)
        inputs, outputs = tmp_path / f"{name}.in", tmp_path / f"{name}.out"
        inputs.write_bytes(b"".join(v.tobytes() for v in given.values()))
        arguments += [str(twin(name).path), str(inputs), str(outputs)]
        wanted.append((outputs, reference(model, given)))
    done = subprocess.run([str(c_program), str(threads), *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"threads {threads}\n"), done.stderr
    for file, want in wanted:
        flat = np.frombuffer(file.read_bytes(), np.float32)
        parts = np.split(flat, np.cumsum([v.size for v in want.values()])[:-1])
        got = {name: part.reshape(value.shape) for (name, value), part in zip(want.items(), parts, strict=True)}
        assert_same(got, want)


def test_a_c_program_takes_results_whose_shape_the_data_tells(c_program: Path, tmp_path: Path) -> None:
    net = Net("late")
    x, shape = net.input("x", 4, 6), net.input("shape", 2, dtype=TensorProto.INT64)
    net.output("same", net("Exp", x))
    net.output("places", net("NonZero", net("Greater", net("Reshape", x, shape), 0.0)), TensorProto.INT64)
    given = {"x": np.linspace(-1, 2, 24, dtype=np.float32).reshape(4, 6), "shape": np.array([3, -1])}
    oc.compile(net.model(), output=tmp_path / "late.opcel", proof=False, fallback="error")
    (tmp_path / "in").write_bytes(b"".join(v.tobytes() for v in given.values()))
    arguments = [str(tmp_path / name) for name in ("late.opcel", "in", "out")]
    done = subprocess.run([str(c_program), "2", *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "threads 2\n"), done.stderr
    want = reference(net.model(), given)
    assert (tmp_path / "out").read_bytes() == want["same"].tobytes() + want["places"].tobytes()


def test_four_threads_run_one_artifact_at_once(twin: GetTwin) -> None:
    name = "bert-torchscript-symbolic"
    model, spec = TWINS[name].build(), TWINS[name]
    cases = [feeds(model, sizes, seed) for seed, sizes in enumerate(spec.sizes)]
    with oc.load(twin(name).path, threads=2) as compiled:
        alone = [compiled.run(given) for given in cases]
        wrong: list[str] = []
        start = threading.Barrier(4)

        def work(first: int) -> None:
            start.wait()
            for i in range(first, first + 40):
                got = compiled.run(cases[i % 4])
                if any(not np.array_equal(got[k], v) for k, v in alone[i % 4].items()):
                    wrong.append(f"thread {first}, run {i}")

        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(timeout=60)
        assert not any(worker.is_alive() for worker in workers)
        assert wrong == []
