"""Tensor data: every element type, external files, the model file itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from onnx_harness import floats, reference, same

from opcel_compiler.frontend import digest
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.weights import Weights, to_proto
from opcel_compiler.frontend.wire import MARK, WireError, without_weights
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.types import DTYPES

W = floats(40, 50)


def adding(weight: TensorProto, opset: int = 13) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(weight.dims))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(weight.dims))
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def constant_of(path: Path | bytes) -> np.ndarray:
    (node,) = [n for n in import_model(path).graph.nodes if n.op == "constant"]
    array: np.ndarray = node.attrs["value"].array
    return array


@pytest.mark.parametrize("name", [n for n, d in DTYPES.items() if d.kind != "s"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_every_type_survives_writing_and_reading(name: str, count: int) -> None:
    dtype = DTYPES[name]
    if dtype.bits < 8 and dtype.kind == "f":
        array = np.arange(count, dtype=np.uint8).view(dtype.numpy)
    elif dtype.kind in "iu" and dtype.bits < 8:
        low = -(1 << dtype.bits - 1) if dtype.kind == "i" else 0
        array = (np.arange(count) % (1 << dtype.bits) + low).astype(dtype.numpy)
    else:
        array = np.arange(count).astype(np.float32).astype(dtype.numpy)
    got = Weights(None, None).constant(to_proto(Constant(array, dtype), "w"), "w")
    assert got.dtype == dtype
    assert got == Constant(array, dtype)


@pytest.mark.parametrize(
    "code, values",
    [
        (TensorProto.FLOAT, [1.5, -2.0, 3.0]),
        (TensorProto.DOUBLE, [1.5, -2.0, 3.0]),
        (TensorProto.INT64, [1, -2, 3]),
        (TensorProto.INT8, [1, -2, 3]),
        (TensorProto.UINT32, [1, 2, 3]),
        (TensorProto.BOOL, [True, False, True]),
        (TensorProto.FLOAT16, [1.5, -2.0, 3.0]),
        (TensorProto.BFLOAT16, [1.5, -2.0, 3.0]),
        (TensorProto.INT4, [1, -2, 3]),
        (TensorProto.UINT4, [1, 2, 15]),
        (TensorProto.COMPLEX64, [1 + 2j, 3 - 1j, 0j]),
        (TensorProto.FLOAT8E4M3FN, [1.5, -2.0, 3.0]),
    ],
)
def test_typed_fields(code: int, values: list[float]) -> None:
    t = helper.make_tensor("w", code, [3], values)
    assert not t.HasField("raw_data")
    assert np.array_equal(Weights(None, None).constant(t, "w").array, numpy_helper.to_array(t))


def test_strings() -> None:
    t = helper.make_tensor("w", TensorProto.STRING, [2], [b"text", b"\xff"])
    assert Weights(None, None).constant(t, "w").array.tolist() == ["text", b"\xff"]


@pytest.mark.parametrize("pad", range(4))
def test_embedded_data_at_any_alignment(tmp_path: Path, pad: int) -> None:
    weight = numpy_helper.from_array(W, "w")
    model = adding(weight)
    model.doc_string = "x" * pad
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    got = constant_of(path)
    assert got.flags.aligned and np.array_equal(got, W)


def test_large_data_is_cut_out_of_the_message() -> None:
    data = adding(numpy_helper.from_array(W, "w")).SerializeToString()
    thin = without_weights(data)
    (t,) = onnx.ModelProto.FromString(thin).graph.initializer
    entries = {e.key: e.value for e in t.external_data}
    assert len(thin) < 500 and entries["location"] == MARK
    start = int(entries["offset"])
    assert data[start : start + int(entries["length"])] == W.tobytes()


def test_a_written_place_of_large_data_is_that_of_the_cut() -> None:
    """Some writers say that the data lies in the message, which is also what absence says."""
    model = adding(numpy_helper.from_array(W, "w"))
    model.graph.initializer[0].data_location = TensorProto.DEFAULT
    data = model.SerializeToString()
    assert np.array_equal(constant_of(data), W)


@pytest.mark.parametrize("cut", [1, 10, 100, 7000])
def test_cut_files_are_no_messages(cut: int) -> None:
    data = adding(numpy_helper.from_array(W, "w")).SerializeToString()
    with pytest.raises(WireError):
        without_weights(data[:-cut])


def test_data_inside_nested_graphs_and_attributes_is_found() -> None:
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(W))], "inner", [],
                              [helper.make_tensor_value_info("c", TensorProto.FLOAT, W.shape)])  # fmt: skip
    scalar = helper.make_graph([helper.make_node("Constant", [], ["s"], value_float=1.0)], "scalar", [],
                               [helper.make_tensor_value_info("s", TensorProto.FLOAT, [])])  # fmt: skip
    node = helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=scalar)
    b = helper.make_tensor_value_info("b", TensorProto.BOOL, [])
    graph = helper.make_graph([node], "g", [b], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    imported = import_model(model.SerializeToString())
    (foreign,) = imported.foreign
    kept = onnx.NodeProto.FromString(foreign.attrs["node"])
    (branch,) = [a.g for a in kept.attribute if a.name == "then_branch"]
    assert branch.node[0].attribute[0].t.raw_data == W.tobytes()


# -- external data ---------------------------------------------------------------------------------------------------


def external(folder: Path, location: str, data: bytes = W.tobytes(), **entries: int) -> Path:
    weight = numpy_helper.from_array(W, "w")
    external_data_helper.set_external_data(weight, location, **entries)
    weight.ClearField("raw_data")
    path = folder / "m.onnx"
    path.write_bytes(adding(weight).SerializeToString())
    return path


def test_external_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(b"\0" * 64 + W.tobytes())
    path = external(tmp_path, "data/w.bin", offset=64, length=W.nbytes)
    assert np.array_equal(constant_of(path), W)


def test_external_data_without_length(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    assert np.array_equal(constant_of(external(tmp_path, "w.bin")), W)


def test_external_data_is_mapped_and_not_copied(tmp_path: Path) -> None:
    big = floats(600, 600)
    onnx.save(
        adding(numpy_helper.from_array(big, "w")), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin"
    )
    got = constant_of(tmp_path / "m.onnx")
    assert np.array_equal(got, big) and not got.flags.owndata


@pytest.mark.parametrize(
    "location, why",
    [
        ("../w.bin", "only files below the model's folder"),
        ("/etc/passwd", "only files below the model's folder"),
        ("a/../../w.bin", "only files below the model's folder"),
        ("missing.bin", "is missing from the model's folder"),
        ("link.bin", "leads outside the model's folder"),
        ("sub", "is missing"),
    ],
)
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str, why: str) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ModelError, match=why) as e:
        import_model(external(folder, location))
    assert "'w'" in str(e.value)


@pytest.mark.parametrize(
    "entries, why",
    [
        ({"offset": 16}, "which has 8000; the file is truncated"),
        ({"length": 16}, "needs 8000 bytes, and its external data entry holds 16"),
        ({"offset": -4}, "not a number of bytes"),
    ],
)
def test_external_data_that_does_not_fit(tmp_path: Path, entries: dict[str, int], why: str) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    with pytest.raises(ModelError, match=why):
        import_model(external(tmp_path, "w.bin", **entries))


def test_external_data_of_a_model_in_memory(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin")
    with pytest.raises(ModelError, match="load the model by its path"):
        import_model(path.read_bytes())


def test_a_model_is_known_by_its_external_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "PIECE", 4096)
    big = floats(600, 600)
    path, data = tmp_path / "m.onnx", tmp_path / "w.bin"
    onnx.save(adding(numpy_helper.from_array(big, "w")), path, save_as_external_data=True, location="w.bin")
    before = import_model(path)
    assert before.model_hash == import_model(path).model_hash != hashlib.sha256(path.read_bytes()).hexdigest()
    with data.open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(7).tobytes())
    assert import_model(path).model_hash != before.model_hash
    with data.open("r+b") as file:
        file.seek(-4, 2)
        file.write(big[-1, -1].tobytes())
    again = import_model(path)
    assert again.model_hash == before.model_hash
    assert np.array_equal(constant_of(path), big)


def test_model_by_path_bytes_and_message_are_the_same(tmp_path: Path) -> None:
    model = adding(numpy_helper.from_array(W, "w"))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    hashes = {import_model(m).model_hash for m in (path, str(path), path.read_bytes(), model)}
    assert hashes == {hashlib.sha256(path.read_bytes()).hexdigest()}
    same([constant_of(path) + W], reference(model, {"x": W}))
