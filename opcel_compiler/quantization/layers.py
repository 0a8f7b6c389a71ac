"""The layers of a Graph: which can compute in 8 bits, and which values are to be quantized for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from opcel_compiler.ir.analysis import flops
from opcel_compiler.ir.dims import evaluate
from opcel_compiler.ir.encodings import DENSE
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.quantization import CONVOLUTIONS, LAYERS
from opcel_compiler.ir.recurrent import MOST_UNITS, RECURRENT, special
from opcel_compiler.ir.types import F32, I8, TensorType
from opcel_compiler.schedule.cost import nominal, peak
from opcel_compiler.targets.schema import Target

MOST_TERMS = (2**31 - 1) // (255 * 128)
"""The most products of a code of u8 and one of s8 whose sum an s32 holds."""
LEAST_UNITS = 32
"""The hidden units from which a recurrent layer in bytes is faster, as measured: with VNNI and one sequence an LSTM of
16 takes 1.1 times as long as in f32, one of 32 three quarters."""
WITHOUT_VNNI = 1.5
"""How much faster products of bytes are than of f32 where they are widened first: two terms an instruction, for one, of
which the widening takes its part."""


@dataclass
class Candidate:
    """A contraction and why it cannot be quantized; "" where it can."""

    node: Node
    reason: str = ""

    @property
    def name(self) -> str:
        return self.node.results[0].name


def candidates(graph: Graph, target: Target | None = None) -> list[Candidate]:
    """Every contraction of `graph` and of the regions of its control flow, in order."""
    found = [Candidate(n, _reason(n, target)) for n in graph.nodes if _contracts(n)]
    for node in graph.nodes:
        for region in node.regions:
            inside = "it is inside a loop or a branch, whose values are not observed"
            found += [Candidate(n, inside) for n in region.walk() if _contracts(n)]
    return found


def _contracts(node: Node) -> bool:
    return "contraction" in node.definition.traits and bool(node.results)


def _reason(node: Node, target: Target | None) -> str:
    if node.op in RECURRENT:
        return _recurrent_reason(node, target)
    if node.op not in LAYERS:
        return f"{node.op} is computed in f32"
    x, w = node.operand(0), node.operand(1)
    if w.constant is None:
        if x.constant is not None:
            return "its weights are the first operand"
        return "both operands are activations"
    if node.attrs.get("exact"):
        return "its sums are of integers already, and exact"
    if x.constant is not None:
        return "its operands are constants"
    if x.tensor.dtype != F32 or w.tensor.dtype != F32 or w.constant.encoding != DENSE:
        return f"its operands are {x.tensor.dtype} and {w.tensor.dtype}, not f32"
    if x.tensor.shape is None:
        return "the rank of its operand is not known"
    if node.op == "matmul" and (len(w.tensor.dims) != 2 or len(x.tensor.dims) < 2):
        return "its weights are no matrix"
    bias = node.optional(2)
    if bias is not None and bias.constant is None:
        return "its bias is not constant"
    if not w.constant.array.size:
        return "it has no weights"
    if (terms := terms_of(node)) > MOST_TERMS:
        return f"sums of {terms} products may leave 32 bits"
    return _slow(target)


def _recurrent_reason(node: Node, target: Target | None) -> str:
    x, r, w = node.operand(0), node.operand(1), node.optional(2)
    if r.tensor.dtype == I8:
        return "its weights are of s8 already"
    if reason := special(node):
        return reason
    if w is None or w.constant is None or r.constant is None:
        return "it has no weights for its input"
    if x.tensor.shape is None:
        return "the rank of its operand is not known"
    if any(c.encoding != DENSE or not c.array.size for c in (w.constant, r.constant)):
        return "its weights are no dense array"
    if (terms := terms_of(node)) > MOST_TERMS:
        return f"sums of {terms} products may leave 32 bits"
    if (units := r.tensor.static_shape[2]) > MOST_UNITS:
        return f"it has {units} hidden units, more than {MOST_UNITS}"
    if target is not None and units < LEAST_UNITS:
        return f"it has {units} hidden units: below {LEAST_UNITS}, to round them at each step takes what bytes save"
    return _slow(target)


def _slow(target: Target | None) -> str:
    if target is not None and not faster(target):
        return f"target {target.id} multiplies bytes no faster than f32"
    return ""


def terms_of(node: Node) -> int:
    """The products in one element of a layer's result, or in a gate of a recurrent one, of x or of the state."""
    dims = node.operand(1).tensor.static_shape
    if node.op in RECURRENT:
        return max(dims[2], node.operand(2).tensor.static_shape[2])
    if node.op == "matmul":
        return dims[-2]
    if node.op == "conv":
        return math.prod(dims[1:])
    return dims[0] // int(node.attrs["groups"]) * math.prod(dims[2:])


def macs(node: Node) -> int:
    """Multiply-adds, at nominal sizes of symbols."""
    count = flops(node)
    return int(evaluate(count, nominal(count))) // 2


def faster(target: Target) -> bool:
    """Whether products of bytes are faster than of f32 on a target."""
    return seconds(1, target, True) < seconds(1, target, False)


def seconds(count: float, target: Target, integers: bool) -> float:
    """What `count` multiply-adds take at the target's rate, in 8 bits or in f32."""
    rate = peak(F32, target)
    if integers:
        rate = target.peak("u8", "i8") or (WITHOUT_VNNI * rate if target.codegen == "cpu" else rate)
    return 2 * count / rate


# -- values ------------------------------------------------------------------------------------------------------------

SAME_VALUES = frozenset({"max_pool"})
"""Operators whose results are elements of their operand, which they find among codes just as well."""
ELEMENTWISE = frozenset({"relu", "min", "max", "clip", "leaky_relu"})
"""What may stand between an addition and the value that is quantized."""


def root(x: Value) -> Value:
    """The value whose codes serve for `x`: what a max pool chooses from."""
    while x.producer is not None and x.producer.op in SAME_VALUES:
        x = x.producer.operand(0)
    return x


@dataclass
class Shared:
    """`values`: what is quantized, each with the values that are to be on the same grid (a concat with its parts);
    `readers`: other nodes that read codes, with the indices of their operands."""

    values: dict[Value, list[Value]] = field(default_factory=dict)
    readers: dict[Node, tuple[int, ...]] = field(default_factory=dict)

    @property
    def all(self) -> Iterator[Value]:
        seen: set[Value] = set()
        for v, parts in self.values.items():
            for one in (v, *parts):
                if one not in seen:
                    seen.add(one)
                    yield one


def shared_values(layers: Iterable[Node]) -> Shared:
    """What is quantized so that these layers, which have static grids, read codes.

    Beside their operands: the parts of a concat, which then joins codes; and where two images are added, the one that
    is not computed right before. The other one never leaves the kernel that computes it.
    """
    out = Shared()
    layers = list(layers)
    inside = set(layers)
    for layer in layers:
        v = root(layer.operand(0))
        out.values.setdefault(v, list(_parts(v)))
    images = {root(n.operand(0)) for n in layers if n.op in CONVOLUTIONS}
    for v in list(out.values):
        for node in _additions(v):
            a, b = node.operand(0), node.operand(1)
            coded = [i for i, x in enumerate((a, b)) if root(x) in out.values and root(x) in images]
            if not coded:
                i = 0 if _alone(a, inside) and _alone(b, inside) and _before(a, b) else 1
                x = (a, b)[i]
                if not _alone(x, inside):
                    continue
                out.values.setdefault(x, [])
                coded = [i]
            out.readers[node] = tuple(coded)
    return out


def _parts(v: Value) -> Iterator[Value]:
    node = v.producer
    if node is not None and node.op == "concat":
        for part in node.operands:
            if part is not None and part.constant is None:
                yield root(part)


def _additions(v: Value) -> Iterator[Node]:
    """The additions of two images that make `v`, and those that read it."""
    node = v.producer
    while node is not None and node.op in ELEMENTWISE and len(node.operand(0).uses) == 1:
        node = node.operand(0).producer
    if node is not None and _adds_images(node):
        yield node
    yield from (n for n in v.users if _adds_images(n))


def _adds_images(node: Node) -> bool:
    if node.op != "add":
        return False
    types = [v.type for v in node.operands if v is not None]
    return all(isinstance(t, TensorType) and t.shape is not None and len(t.shape) >= 3 for t in types) and (
        types[0] == types[1] and all(v is not None and v.constant is None for v in node.operands)
    )


def _alone(x: Value, layers: set[Node]) -> bool:
    """Whether `x` is the result of a convolution that nothing else reads."""
    return x.producer in layers and x.producer is not None and x.producer.op in CONVOLUTIONS and len(x.uses) == 1


def _before(a: Value, b: Value) -> bool:
    node = a.producer
    while node is not None and node is not b.producer:
        node = node._next
    return node is not None
