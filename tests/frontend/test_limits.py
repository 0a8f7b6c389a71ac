"""What a model from a stranger may take while it is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import LIMITS, Limits, ModelError
from opcel_compiler.ir.dims import MAX_DEPTH, DimError, dim_max, mod, symbol


@contextlib.contextmanager
def limited(**given: int) -> Iterator[None]:
    token = LIMITS.set(Limits.of(given))
    try:
        yield
    finally:
        LIMITS.reset(token)


def model(nodes: list[onnx.NodeProto], shape: list[int | str], **more: object) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_empty_tensor_value_info("y")
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=imports, **more)


def test_functions_that_multiply() -> None:
    """Thirty functions of two calls each are a billion nodes, of which no more are made than the limit."""
    functions = []
    for i in range(30):
        inner = ("Neg", "") if i == 0 else (f"f{i - 1}", "own")
        body = [helper.make_node(inner[0], [a], [b], domain=inner[1]) for a, b in (("a", "m"), ("m", "b"))]
        imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
        functions.append(helper.make_function("own", f"f{i}", ["a"], ["b"], body, imports))
    bomb = model([helper.make_node("f29", ["x"], ["y"], domain="own")], [2], functions=functions)
    with limited(nodes=1000), pytest.raises(ModelError, match=r"more than 1000 operators.*--limit nodes"):
        import_model(bomb)
    with limited(seconds=0), pytest.raises(ModelError, match=r"more than 0 seconds.*--limit seconds"):
        import_model(bomb)


def test_rank_and_bytes() -> None:
    plain = model([helper.make_node("Neg", ["x"], ["y"])], [2, 3, 4])
    with limited(rank=2), pytest.raises(ModelError, match="3 dimensions; at most 2"):
        import_model(plain)
    with limited(**{"tensor-bytes": 64}), pytest.raises(ModelError, match="a tensor may take at most"):
        import_model(plain)
    with pytest.raises(ModelError, match="no limit 'bytes'"):
        Limits.of({"bytes": 1})


def test_sizes_that_multiply() -> None:
    n, m = symbol("n"), symbol("m")
    with pytest.raises(DimError, match="terms"):
        product = n + m + 1
        for _ in range(8):
            product = product * product
    with pytest.raises(DimError, match="deep"):
        for i in range(MAX_DEPTH + 2):
            n = dim_max(mod(n, 7 + i), m - i)


def test_two_outputs_of_one_name() -> None:
    twice = model([helper.make_node("Neg", ["x"], ["y"])], [2])
    twice.graph.output.add().CopyFrom(twice.graph.output[0])
    with pytest.raises(ModelError, match="two outputs of the model are called 'y'"):
        import_model(twice)


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_bytes(np.ones(2, np.float32).tobytes())
    (tmp_path / "model" / "w.bin").symlink_to(tmp_path / "secret")
    w = TensorProto(name="w", dims=[2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    w.external_data.add(key="location", value="w.bin")
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], [2])
    proto.graph.initializer.append(w)
    onnx.save(proto, tmp_path / "model" / "m.onnx")
    with pytest.raises(ModelError, match="leads outside the model's folder"):
        import_model(tmp_path / "model" / "m.onnx")
