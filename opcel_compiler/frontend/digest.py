"""The hash by which a model is known: of its file, and of the files that its tensors lie in."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.weights import Weights
from opcel_compiler.frontend.wire import MARK, Buffer

PIECE = 1 << 24
"""Bytes that are read at a time: of what is mapped no more is in memory."""


def model_digest(source: Buffer, weights: Weights, locations: tuple[str, ...]) -> str:
    """The SHA-256, in hex, of a model's bytes; with external data, of these and of each file's name, size and bytes.

    `locations` names the files; what cannot be read, and so is not used, does not count.
    """
    found = hashlib.sha256()
    _add(found, memoryview(source))
    for location in locations:
        try:
            data = weights.file(location, "the model")
        except ModelError:
            continue
        found.update(f"\0{location}\0{len(data)}\0".encode())
        _add(found, data)
    return found.hexdigest()


def _add(found: hashlib._Hash, data: memoryview) -> None:
    for at in range(0, len(data), PIECE):
        piece = data[at : at + PIECE]
        found.update(piece)
        if isinstance(data.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and len(data) == len(data.obj):
            data.obj.madvise(mmap.MADV_DONTNEED, at, len(piece))


def external_locations(proto: ModelProto) -> tuple[str, ...]:
    """The files that a model's tensors lie in, sorted."""
    tensors = [*_tensors_of(proto.graph), *(t for f in proto.functions for n in f.node for t in _attributes(n))]
    entries = (e for t in tensors if t.data_location == TensorProto.EXTERNAL for e in t.external_data)
    return tuple(sorted({e.value for e in entries if e.key == "location" and e.value != MARK}))


def _tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _attributes(node)


def _attributes(node: NodeProto) -> Iterator[TensorProto]:
    for a in node.attribute:
        if a.type == AttributeProto.TENSOR or a.HasField("t"):
            yield a.t
        yield from a.tensors
        if a.type == AttributeProto.GRAPH or a.HasField("g"):
            yield from _tensors_of(a.g)
        for graph in a.graphs:
            yield from _tensors_of(graph)
