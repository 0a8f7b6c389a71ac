"""Changes to inputs: of bytes, of words and numbers in text, and of the parts of a model."""

from __future__ import annotations

import random
import re
from functools import cache, lru_cache

from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto

from opcel_compiler.frontend.lowering import REGISTRY

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    64,
    127,
    255,
    -128,
    1 << 15,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    1 << 40,
    (1 << 63) - 1,
    -(1 << 63),
)
_TOKEN = re.compile(rb"-?\d+(?:\.\d+)?|[A-Za-z_]\w*|[^\w\s]")


def any_bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        size = min(rng.choice((1, 1, 2, 4, 8, 32)), len(out) - at)
        kind = rng.randrange(5)
        if kind == 0 and size:
            out[at] = rng.randrange(256)
        elif kind == 1:
            out[at:at] = rng.randbytes(size or 1)
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3 and size:
            out[at] ^= 1 << rng.randrange(8)
        else:
            start = rng.randrange(len(out) + 1)
            out[at:at] = out[start : start + rng.choice((4, 16, 64))]
    return bytes(out)


@lru_cache(2000)
def _tokens(data: bytes) -> tuple[tuple[int, int], ...]:
    return tuple(found.span() for found in _TOKEN.finditer(data))


def _alike(old: bytes, source: bytes, rng: random.Random) -> bytes:
    """A word for a word, a number for a number, a sign for a sign."""
    if old.isdigit() and rng.random() < 0.5:
        return str(max(0, int(old[:18]) + rng.choice((-1, 1, -2, 2, 8)))).encode()
    for _ in range(8):
        start, end = rng.choice(_tokens(source) or ((0, 0),))
        new = source[start:end]
        if new != old and (new[:1].isdigit(), new[:1].isalpha()) == (old[:1].isdigit(), old[:1].isalpha()):
            return new
    return b""


def tokens(data: bytes, rng: random.Random, donor: bytes) -> bytes:
    """Swap, repeat, drop or replace words, numbers and signs, or put a part of `donor` in."""
    found = _tokens(data)
    if not found:
        return any_bytes(data, rng)
    (start, end), (from_, to) = rng.choice(found), rng.choice(found)
    kind = rng.randrange(12)
    if kind >= 8:
        new = _alike(data[start:end], donor if kind == 11 else data, rng)
    elif kind == 0:
        new = data[from_:to]
    elif kind == 1:
        new = str(rng.choice(NUMBERS)).encode()
    elif kind == 2:
        new = b""
    elif kind == 3:
        new = data[start:end] * rng.choice((2, 3, 50))
    elif kind == 4:
        new = rng.choice(
            (b"[", b"(", b"{", b"seq<", b"-", b"%", b'"', b"nan", b"1e999", b"//", b"min(", b"null", b"&a", b"*a")
        )
        new *= rng.choice((1, 1, 3, 400))
    elif kind == 5:
        a, b = sorted((start, to))
        return data[:b] + data[a:b] + data[b:]
    elif kind == 6 and (parts := _tokens(donor)):
        at = rng.randrange(len(parts))
        new = donor[parts[at][0] : parts[min(at + rng.choice((0, 0, 1, 4, 16)), len(parts) - 1)][1]]
    else:
        lines, others = data.split(b"\n"), donor.split(b"\n")
        at = rng.randrange(len(lines))
        lines[at : at + rng.randrange(2)] = [rng.choice(others)] * rng.randrange(2)
        return b"\n".join(lines)
    return data[:start] + new + data[end:]


@cache
def _operators() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(REGISTRY))


def model(data: bytes, rng: random.Random, donor: bytes) -> bytes:
    """Change a node, an attribute, a dimension, a tensor or an opset of a model, or put a node of `donor` in."""
    try:
        proto = ModelProto.FromString(data)
        if rng.random() < 0.15:
            _graft(proto.graph, ModelProto.FromString(donor).graph, rng)
        for _ in range(rng.choice((1, 1, 2, 3))):
            _change(proto, rng)
        return proto.SerializeToString()
    except (DecodeError, ValueError, TypeError):  # broken bytes, and names that are no text
        return any_bytes(data, rng)


def _change(proto: ModelProto, rng: random.Random) -> None:
    graph = proto.graph
    kind = rng.randrange(10)
    if kind < 5 and graph.node:
        _change_node(graph, rng)
    elif kind == 5 and graph.initializer:
        t = rng.choice(graph.initializer)
        if rng.random() < 0.5:
            t.data_type = rng.randrange(30)
        elif t.dims:
            t.dims[rng.randrange(len(t.dims))] = rng.choice(NUMBERS)
        else:
            t.dims.append(rng.choice(NUMBERS))
    elif kind == 6 and graph.input:
        v = rng.choice(graph.input)
        dims = v.type.tensor_type.shape.dim
        if dims and rng.random() < 0.7:
            d = rng.choice(dims)
            if rng.random() < 0.4:
                d.dim_param = rng.choice(("n", "m", "n + 1", "n//2", "", "%"))
            else:
                d.dim_value = rng.choice(NUMBERS)
        elif rng.random() < 0.5:
            dims.add().dim_value = rng.choice(NUMBERS)
        else:
            v.type.tensor_type.elem_type = rng.randrange(30)
    elif kind == 7 and proto.opset_import:
        rng.choice(proto.opset_import).version = rng.choice((*range(1, 27), *NUMBERS))
    elif kind == 8 and graph.initializer:
        t = rng.choice(graph.initializer)
        t.raw_data = any_bytes(t.raw_data, rng)
    elif graph.output:
        rng.choice(graph.output).name = _name(graph, rng)


def _graft(graph: GraphProto, donor: GraphProto, rng: random.Random) -> None:
    """A node of `donor` with its constants, and inputs of this graph for some of its others."""
    if not donor.node:
        return
    new = rng.choice(donor.node)
    graph.initializer.extend(t for t in donor.initializer if t.name in new.input)
    constant = {t.name for t in graph.initializer}
    at = graph.node.add()
    at.CopyFrom(new)
    for i, name in enumerate(at.input):
        if name and name not in constant:
            at.input[i] = _name(graph, rng)
    if at.output and graph.output and rng.random() < 0.5:
        rng.choice(graph.output).name = at.output[0]


def _name(graph: GraphProto, rng: random.Random) -> str:
    names = [n for node in graph.node for n in (*node.input, *node.output)] + [v.name for v in graph.input]
    return rng.choice([*names, "", "new"])


def _change_node(graph: GraphProto, rng: random.Random) -> None:
    node = rng.choice(graph.node)
    kind = rng.randrange(7)
    if kind == 0:
        node.domain, node.op_type = rng.choice(_operators())
    elif kind == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = _name(graph, rng)
    elif kind == 2:
        node.input.append(_name(graph, rng))
    elif kind == 3:
        new = graph.node.add()
        new.CopyFrom(node)
        new.output[:] = [n + "_" for n in node.output]
    elif kind == 4 and node.attribute:
        _change_attribute(rng.choice(node.attribute), rng)
    elif kind == 5 and node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]
    elif node.input:
        del node.input[rng.randrange(len(node.input))]


def _change_attribute(a: AttributeProto, rng: random.Random) -> None:
    if a.ints and rng.random() < 0.8:
        a.ints[rng.randrange(len(a.ints))] = rng.choice(NUMBERS)
    elif a.type == AttributeProto.INT:
        a.i = rng.choice(NUMBERS)
    elif a.type == AttributeProto.FLOAT:
        a.f = rng.choice((0.0, -1.0, 1e30, float("inf"), float("nan")))
    elif a.type == AttributeProto.STRING:
        a.s = rng.choice((b"", b"SAME_UPPER", b"VALID", b"linear", b"\xff", a.s * 2))
    else:
        a.ints.append(rng.choice(NUMBERS))


def mutate(target: str, data: bytes, rng: random.Random, donor: bytes) -> bytes:
    """A change that suits the target's inputs. `donor` is another input, of which it may take parts."""
    if target == "importer":
        return model(data, rng, donor) if rng.random() < 0.8 else any_bytes(data, rng)
    if target == "run" or rng.random() < 0.3:
        return any_bytes(data, rng)
    return tokens(data, rng, donor)
