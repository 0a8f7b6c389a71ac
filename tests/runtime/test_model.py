"""CompiledModel: runs, feeds that do not fit, threads, weights, regions, damaged artifacts."""

from __future__ import annotations

import json
import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from opcel_compiler.runtime import ArtifactError, FeedError, RunError, load, read_manifest
from opcel_compiler.runtime.integrity import stamped

from .conftest import MakeArtifact


def feeds(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal((n, 3)).astype(np.float32) for name in ("a", "b")}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_symbolic_dims(make_artifact: MakeArtifact, threads: int) -> None:
    with load(make_artifact(), threads=threads) as model:
        for n in (5, 1, 70000, 0, 100, 70000):  # 70000: the arena is larger than a huge page's worth of small ones
            given = feeds(n)
            result = model.run(given)
            assert list(result) == ["c", "d"]
            np.testing.assert_array_equal(result["c"], given["a"] + given["b"])
            np.testing.assert_array_equal(result["d"], 2 * (given["a"] + given["b"]))


def test_facts(make_artifact: MakeArtifact) -> None:
    model = load(make_artifact(), threads=2)
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.inputs] == [
        ("a", np.dtype("float32"), ("N", 3)),
        ("b", np.dtype("float32"), ("N", 3)),
    ]
    assert [spec.name for spec in model.outputs] == ["c", "d"]
    assert (model.threads, model.regions, model.weights_bytes, model.arena_bytes) == (2, 0, 0, -1)
    assert model.report == {"kernels": 2}
    assert model.manifest["name"] == "add"


@pytest.mark.parametrize("view", ["transposed", "reversed", "stepped", "field", "misaligned"])
def test_feeds_that_are_not_dense(make_artifact: MakeArtifact, view: str) -> None:
    base = np.arange(60, dtype=np.float32)
    record = np.zeros((4, 3), np.dtype([("tag", "u1"), ("value", "f4")]))
    record["value"] = base[:12].reshape(4, 3)
    a = {
        "transposed": base[:12].reshape(3, 4).T,
        "reversed": base[:12].reshape(4, 3)[::-1, ::-1],
        "stepped": base.reshape(10, 6)[1:9:2, ::2],
        "field": record["value"],
        "misaligned": np.frombuffer(b"." + base[:12].tobytes(), np.float32, offset=1).reshape(4, 3),
    }[view]
    b = np.ones((4, 3), np.float32)
    result = load(make_artifact(), threads=1).run({"a": a, "b": b})
    np.testing.assert_array_equal(result["c"], a + b)


def test_results_stay_the_callers(make_artifact: MakeArtifact) -> None:
    """Large results lie in memory that is used again, and not while an array, a view or a buffer is left on it."""
    with load(make_artifact(), threads=1) as model:
        held = []
        for seed in range(6):
            given = feeds(30000, seed)
            result = model.run(given)
            kept = {0: result["c"], 1: result["c"][5:].T, 2: memoryview(result["c"])}.get(seed % 3)
            held.append((kept, np.array(kept)))
        for kept, was in held:
            np.testing.assert_array_equal(kept, was)
        result["c"][:] = 0  # the caller may write to what it was given
        result.clear()
        np.testing.assert_array_equal(model.run(given)["c"], given["a"] + given["b"])
    np.testing.assert_array_equal(held[0][0], held[0][1])  # also once the model is closed


def test_results_are_written_where_dropped_ones_lay(make_artifact: MakeArtifact) -> None:
    with load(make_artifact(), threads=1) as model:
        address = [model.run(feeds(30000 + i))["c"].ctypes.data for i in range(4)]
        assert len(set(address)) == 1
        first = model.run(feeds(30000))["c"]
        second = model.run(feeds(30000))["c"]
        assert not np.shares_memory(first, second)
        del first
        assert model.run(feeds(30000))["c"].ctypes.data == address[0]
        with pytest.raises(FeedError, match="shares memory"):
            model.run(feeds(30000) | {"a": second}, {"c": second})


WRONG_FEEDS = {
    "missing": ({"a": np.zeros((2, 3), np.float32)}, r"input 'b' is missing; given: \['a'\]"),
    "unknown": (feeds(2) | {"x": np.zeros(1)}, r"no input 'x'; it has 'a', 'b'"),
    "list": (feeds(2) | {"b": [1.0]}, r"input 'b': a list given, a NumPy array of float32 \('N', 3\) expected"),
    "dtype": (feeds(2) | {"b": np.zeros((2, 3))}, r"input 'b': element type float64 given, float32 expected"),
    "order": (feeds(2) | {"b": np.zeros((2, 3), ">f4")}, r"input 'b': element type >f4 given, float32 expected"),
    "rank": (feeds(2) | {"b": np.zeros(3, np.float32)}, r"input 'b': shape \[3\] given, \[N, 3\] expected"),
    "scalar": (feeds(2) | {"b": np.float32(3)}, r"input 'b': shape \[\] given, \[N, 3\] expected"),
    "dim": (feeds(2) | {"b": np.zeros((2, 4), np.float32)}, r"input 'b': shape \[2, 4\] given, \[N, 3\] expected"),
    "symbol": (
        feeds(2) | {"b": np.zeros((4, 3), np.float32)},
        r"input 'b': shape \[4, 3\] given, \[N, 3\] expected, and N is 2 in this call",
    ),
    "bound": (
        dict.fromkeys("ab", np.broadcast_to(np.float32(0), (1000001, 3))),
        r"N is at most 1000000",
    ),
}


@pytest.mark.parametrize("case", WRONG_FEEDS)
def test_wrong_feeds(make_artifact: MakeArtifact, case: str) -> None:
    given, message = WRONG_FEEDS[case]
    model = load(make_artifact(), threads=1)
    with pytest.raises(FeedError, match=message):
        model.run(given)  # type: ignore[arg-type]
    assert model.run(feeds(2)).keys() == {"c", "d"}


def test_given_outputs(make_artifact: MakeArtifact) -> None:
    model = load(make_artifact(), threads=1)
    given = feeds(4)
    d = np.empty((4, 3), np.float32)
    result = model.run(given, outputs={"d": d})
    assert result["d"] is d
    np.testing.assert_array_equal(d, 2 * result["c"])


def test_wrong_outputs(make_artifact: MakeArtifact) -> None:
    model = load(make_artifact(), threads=1)
    given = feeds(4)
    frozen = np.empty((4, 3), np.float32)
    frozen.setflags(write=False)
    for outputs, message in [
        ({"d": np.empty((5, 3), np.float32)}, r"output 'd': shape \[5, 3\] given, \[4, 3\] expected"),
        ({"d": np.empty((4, 3))}, r"output 'd': element type float64 given"),
        ({"d": np.empty((3, 4), np.float32).T}, r"output 'd': a writeable, aligned, C-contiguous"),
        ({"d": frozen}, r"output 'd': a writeable"),
        ({"d": given["a"]}, r"output 'd' shares memory with 'a'"),
        ({"e": frozen}, r"no output 'e'; it has 'c', 'd'"),
    ]:
        with pytest.raises(FeedError, match=message):
            model.run(given, outputs=outputs)


def test_several_threads_at_once(make_artifact: MakeArtifact) -> None:
    models = [load(make_artifact(), threads=2), load(make_artifact("WEIGHTS=0"), threads=2)]
    wrong: list[str] = []

    def work(seed: int) -> None:
        for i in range(200):
            given = feeds(1 + (seed * 37 + i * 101) % 3000, seed)
            result = models[(seed + i) % 2].run(given)
            if not np.array_equal(result["d"], 2 * (given["a"] + given["b"])):
                wrong.append(f"thread {seed}, run {i}")

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert not any(worker.is_alive() for worker in workers)
    assert wrong == []


@pytest.mark.parametrize("streams", [None, 1, 3, 8])
def test_streams_keep_the_order(make_artifact: MakeArtifact, streams: int | None) -> None:
    model = load(make_artifact(), threads=2)
    given = [feeds(1 + i * 101 % 3000, i) for i in range(40)]
    for one, result in zip(given, model.run_many(given, streams), strict=True):
        np.testing.assert_array_equal(result["d"], 2 * (one["a"] + one["b"]))
    assert model.run_many([], streams) == []


def test_streams_run_at_the_same_time_and_end_with_the_first_error(make_artifact: MakeArtifact) -> None:
    model = load(make_artifact(), threads=2)
    threads: set[int] = set()
    begun: list[int] = []
    both = threading.Barrier(2, timeout=30)

    class Feeds(list[dict[str, np.ndarray]]):
        def __getitem__(self, index: Any) -> Any:
            threads.add(threading.get_ident())
            begun.append(index)
            if index < 2:
                both.wait()
            return super().__getitem__(index)

    given = Feeds([feeds(10), feeds(10), *({"a": np.zeros((1, 3), np.float32)} for _ in range(50))])
    with pytest.raises(FeedError, match="'b' is missing"):
        model.run_many(given)
    assert len(threads) == 2 and len(begun) <= 4
    with pytest.raises(ValueError, match="at least 1"):
        model.run_many(given, 0)


def test_no_cpu_time_at_rest(make_artifact: MakeArtifact) -> None:
    model = load(make_artifact(), threads=3)
    model.run(feeds(5000))
    time.sleep(0.01)
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(0.5)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.05


def test_models_of_a_thread_count_share_their_threads(make_artifact: MakeArtifact) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    first = load(make_artifact(), threads=5)
    first.run(feeds(100))
    before = count()
    second = load(make_artifact("WEIGHTS=0"), threads=5)
    second.run(feeds(100))
    assert count() == before


def test_pinned_threads_stay_apart(make_artifact: MakeArtifact) -> None:
    def masks() -> dict[str, set[int]]:
        return {task.name: os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()}

    cpus, before = os.sched_getaffinity(0), masks()
    model = load(make_artifact(), threads=len(cpus) + 1, pin=True)
    given = feeds(5000)
    np.testing.assert_array_equal(model.run(given)["d"], 2 * (given["a"] + given["b"]))
    assert os.sched_getaffinity(0) == cpus

    def pinned() -> list[set[int]]:
        return [mask for task, mask in masks().items() if task not in before and len(mask) == 1]

    # A thread that leaves the caller's CPU is on one of the others alone for an instant.
    deadline = time.monotonic() + 10
    while len(pinned()) != len(cpus) - (len(cpus) > 1) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(pinned()) == len(set.union(set(), *pinned())) == len(cpus) - (len(cpus) > 1)


@pytest.mark.parametrize("mode", ["map", "resident"])
@pytest.mark.parametrize("size", [4, 4096, 3 << 20])
def test_weights(make_artifact: MakeArtifact, mode: str, size: int) -> None:
    weights = np.full(size // 4, 7, np.float32).tobytes()
    model = load(make_artifact(weights=weights), threads=1, weights=mode)  # type: ignore[arg-type]
    given = feeds(4)
    result = model.run(given)
    np.testing.assert_array_equal(result["d"], result["c"] + np.float32(7))
    assert model.weights_bytes == size


def test_wrong_weights(make_artifact: MakeArtifact) -> None:
    artifact = make_artifact(weights=bytes(64))
    (artifact / "weights.bin").write_bytes(bytes(60))
    with pytest.raises(ArtifactError, match=r"weights\.bin has 60 bytes, the manifest says 64"):
        load(artifact)
    manifest = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps(stamped(manifest | {"weights": {}})))
    with pytest.raises(ArtifactError, match=r"weights\.bin has 60 bytes, the model expects 64"):
        load(artifact)
    (artifact / "weights.bin").unlink()
    with pytest.raises(ArtifactError, match=r"cannot open .*weights\.bin: No such file"):
        load(artifact)


def test_a_closed_model(make_artifact: MakeArtifact) -> None:
    model = load(make_artifact(), threads=1)
    result = model.run(feeds(3))
    model.close()
    model.close()
    assert model.closed and "closed" in repr(model)
    assert np.isfinite(result["c"]).all()  # the caller's, not the model's
    with pytest.raises(RunError, match="closed"):
        model.run(feeds(3))


def test_not_an_artifact(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"not a compiled model: cannot read manifest\.json"):
        load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ArtifactError, match="an object expected, found a list"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="lacks format, inputs, outputs, modules"):
        read_manifest(tmp_path)
    artifact = make_artifact()
    (artifact / "model.so").write_bytes(b"not a library")
    with pytest.raises(ArtifactError, match=r"cannot open .*invalid ELF header|file too short"):
        load(artifact)
    (artifact / "model.so").unlink()
    with pytest.raises(ArtifactError, match=r"incomplete: cannot read model\.so"):
        load(artifact)


def test_modules_stay_inside_the_artifact(make_artifact: MakeArtifact) -> None:
    modules = [{"kind": "cpu", "file": "model.so"}, {"kind": "onnxruntime", "file": "../region_0.onnx"}]
    with pytest.raises(ArtifactError, match="not a file of the artifact"):
        load(make_artifact(modules=modules))


def test_another_cpu(make_artifact: MakeArtifact) -> None:
    target = {"name": "cpu/future", "isa": "avx9", "features": ["avx9"]}
    with pytest.raises(ArtifactError, match=r"compiled for cpu/future, this CPU lacks avx9"):
        load(make_artifact(target=target))
    with pytest.raises(ArtifactError, match="this CPU lacks avx9, which the model was compiled for"):
        load(make_artifact('FEATURES="avx9"'))


def region_artifact(make_artifact: MakeArtifact, operator: str = "Neg", output: str = "e") -> Path:
    module = {"kind": "onnxruntime", "file": "region_0.onnx", "inputs": ["d"], "outputs": [output], "reason": "a test"}
    artifact = make_artifact("REGION", modules=[{"kind": "cpu", "file": "model.so"}, module])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["d"], ["e"])],
        "region",
        [value("d", onnx.TensorProto.FLOAT, ["N", 3])],
        [value("e", onnx.TensorProto.FLOAT, None)],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), artifact / "region_0.onnx")
    return artifact


def test_a_region(make_artifact: MakeArtifact) -> None:
    model = load(region_artifact(make_artifact), threads=2)
    assert model.regions == 1
    for n in (4, 300):
        result = model.run(feeds(n))
        np.testing.assert_array_equal(result["e"], -result["d"])


def test_a_region_of_another_shape(make_artifact: MakeArtifact) -> None:
    model = load(region_artifact(make_artifact, "Transpose"), threads=1)
    message = r"output 0 is float32 \(3, 4\), the model expects float32 \(4, 3\)"
    with pytest.raises(RunError, match=message) as raised:
        model.run(feeds(4))
    assert isinstance(raised.value.__cause__, RunError)


def test_a_region_that_fails(make_artifact: MakeArtifact) -> None:
    model = load(region_artifact(make_artifact, output="no"), threads=1)
    with pytest.raises(RunError, match=r"region 0: ONNX Runtime failed on region_0\.onnx"):
        model.run(feeds(4))


def test_a_region_without_its_module(make_artifact: MakeArtifact) -> None:
    with pytest.raises(ArtifactError, match="the host gives no region callback"):
        load(make_artifact("REGION"))
