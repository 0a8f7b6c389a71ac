"""What each target starts from: small, valid, and made when it is asked for."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.random_graphs.generate import sample
from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.ir.clone import clone
from opcel_compiler.ir.program_text import print_program
from opcel_compiler.ir.text import print_graph
from opcel_compiler.schedule.lower import lower
from opcel_compiler.targets.load import FOLDER
from tests.fuzz.targets import _artifact

COUNT = 40


def _hand_made() -> Iterator[bytes]:
    """Branches, loops, functions, sparse and external data."""
    f = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "b", [], [f])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    yield helper.make_model(helper.make_graph([node], "g", [c, x], [f])).SerializeToString()
    call = helper.make_node("twice", ["x"], ["y"], domain="own")
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    function = helper.make_function("own", "twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    graph = helper.make_graph([call], "g", [x], [f])
    yield helper.make_model(graph, functions=[function], opset_imports=imports).SerializeToString()
    far = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    far.ClearField("raw_data")
    far.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "16")):
        far.external_data.add(key=key, value=value)
    values = helper.make_tensor("s", TensorProto.FLOAT, [2], [1.0, 2.0])
    places = helper.make_tensor("s_indices", TensorProto.INT64, [2], [0, 3])
    nodes = [helper.make_node("Add", ["x", "w"], ["t"]), helper.make_node("Add", ["t", "s"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [f], [far], sparse_initializer=[
        helper.make_sparse_tensor(values, places, [4])
    ])  # fmt: skip
    yield helper.make_model(graph).SerializeToString()


def _models() -> Iterator[bytes]:
    yield from _hand_made()
    for seed in range(COUNT):
        try:
            yield export_model(clone(sample(seed, most=5).graph)).SerializeToString()
        except OpcelError:
            continue


def _texts() -> Iterator[bytes]:
    for seed in range(3 * COUNT):
        graph = sample(seed, most=4).graph
        for written in (print_graph(graph, origins=True), print_program(lower(clone(graph)))):
            if len(written) < 1400 and "#" not in written:
                yield written.encode()


def _artifacts() -> Iterator[bytes]:
    _, manifest, weights = _artifact()
    yield json.dumps(manifest).encode()
    yield json.dumps(manifest).encode() + b"\0\0" + weights[:-1]
    yield json.dumps({**manifest, "stamp": False}).encode()


def _targets() -> Iterator[bytes]:
    """Each section of each description, over another description; the whole of the smallest."""
    head = b"extends: x86-64\nid: fuzzed\nname: a\n"
    yield head + b"memories:\n  l1: {size: 48 KiB, bandwidth: 100 GB/s}\n"
    for path in sorted(FOLDER.glob("*/*.yaml")):
        lines = [line for line in path.read_bytes().split(b"\n") if line and not line.lstrip().startswith(b"#")]
        starts = [i for i, line in enumerate(lines) if not line.startswith(b" ")]
        for a, b in zip(starts, [*starts[1:], len(lines)], strict=True):
            section = b"\n".join(lines[a:b]) + b"\n"
            if not section.startswith((b"extends", b"id:", b"name:")):
                yield (head if path.stem != "null" else head.replace(b"x86-64", b"null")) + section
    for base in (b"null", b"x86-64-avx512"):
        yield head.replace(b"x86-64", base)


def _feeds() -> Iterator[bytes]:
    rng = random.Random(0)
    for _ in range(COUNT):
        yield rng.randbytes(24)


SEEDS = {"importer": _models, "text": _texts, "artifact": _artifacts, "target": _targets, "run": _feeds}
