"""Prologue and epilogue functors: the elementwise parts of a body as C++ structs that the templates call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from opcel_compiler.codegen.cpu.expressions import emit_body, lane_load, lane_type, stored_type
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.ir.types import BOOL, F32
from opcel_compiler.schedule.choice.integers import is_integer

Steps = Callable[[View], Sequence[Dim]]
"""How far, in elements, a step along each coordinate of the functor moves in a view."""


@dataclass
class Functor:
    """A struct with one pointer and its steps for each outside value, and the C++ text that makes an instance."""

    unit: KernelUnit
    kernel: Kernel
    coordinates: tuple[str, ...]
    steps: Steps
    fields: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    far: list[str] = field(default_factory=list)
    """Addresses that differ from row to row: what a tile prefetches."""
    kept: str = ""
    """The lanes whose results are kept, as a C++ mask; the others become zero. Empty: all."""

    def keep_channels(self, channels: Dim, block: int) -> None:
        """Zero the lanes past the last channel, whatever the body makes of them: 0 times their infinity or NaN would
        reach every channel of a later convolution."""
        if type(channels) is not int or channels % block:
            self.fields.append("int64_t channels;")
            self.values.append(self.unit.integer(channels))
            self.kept = f"first_lanes(static_cast<int>(channels - cb * {block}))"

    def load(self, value: Value) -> str:
        """The C++ expression that reads `value` at the functor's coordinates, W lanes along the last one."""
        view = self.kernel.inputs[self.kernel.body.inputs.index(value)]
        k = len(self.values)
        ctype = stored_type(view)
        self.fields.append(f"const {ctype}* e{k};")
        self.values.append(self.unit.pointer(view, ctype))
        steps = list(self.steps(view))
        where = f"e{k}"
        for coordinate, step in zip(self.coordinates, steps, strict=True):
            if step == 0 or coordinate == "0":
                continue
            if step == 1:
                where += f" + {coordinate}"
                continue
            name = f"s{len(self.values)}"
            self.fields.append(f"int64_t {name};")
            self.values.append(self.unit.integer(step))
            where += f" + {coordinate} * {name}"
        if len(steps) > 2 and steps[-1] != 0 and any(s != 0 for s in steps[:-1]) and len(view.shape) > 1:
            self.far.append(where)
        return lane_load(value.tensor.dtype, where, steps[-1] == 0, "Tail")

    def struct(
        self, name: str, signature: str, nodes: Sequence[Node], known: dict[Value, str], result: Value, first: str = ""
    ) -> str:
        """The struct's text; `signature` is that of its only function, `known` the values it is handed, after the
        statement `first`."""
        loads: list[str] = [f"    {first}"] if first else []
        outside: dict[Value, None] = {}
        own = {r for n in nodes for r in n.results}
        for v in [v for n in nodes for v in n.operands if v is not None] + [result]:
            if v not in own and v not in known and v.constant is None:
                outside[v] = None
        for v in outside:
            loads.append(f"    const {lane_type(v.tensor.dtype)} {(local := f'x{len(loads)}')} = {self.load(v)};")
            known[v] = local
        lines = emit_body(list(nodes), known, True, apart=is_integer(self.kernel) or self.kernel.family == "gemm.int8")
        inside = [n.result.tensor.dtype for n in nodes if n.op == "constant" or n.result.tensor.dtype != BOOL]
        if any(d != F32 for d in (*inside, *(v.tensor.dtype for v in outside))):
            self.unit.headers.append("base/scalar.h")
        names = [c for c in self.coordinates if not c.isdigit()]
        unused = "".join(f" (void){c};" for c in (*names, "lanes"))
        prefetch = ""
        if self.far:
            parameters = signature.partition(", ")[2].rsplit(", int lanes", 1)[0]
            calls = " ".join(f"__builtin_prefetch({a});" for a in self.far)
            voids = " ".join(f"(void){c};" for c in names)
            prefetch = f"  OPCEL_INLINE void prefetch({parameters}) const {{ {calls} {voids} }}\n"
        returned = f"select({self.kept}, {known[result]}, vf{{}})" if self.kept else known[result]
        return (
            f"struct {name} {{\n  {' '.join(self.fields)}\n{prefetch}"
            f"  template <bool Tail>\n  OPCEL_INLINE vf {signature} const {{\n"
            f"   {unused}\n" + "\n".join([*loads, *lines]) + f"\n    return {returned};\n  }}\n}};\n"
        )

    def struct_with_bias(
        self, bias: Value | None, nodes: Sequence[Node], known: dict[Value, str], result: Value
    ) -> str:
        """The epilogue of an image kernel, where the anchor's own bias (per channel) is added first."""
        anchor = next(iter(known))
        if bias is not None:
            known[anchor] = f"(v + {self.load(bias)})"
        return self.struct(
            "Epilogue", "apply(vf v, int64_t n, int64_t cb, int64_t y, int64_t x, int lanes)", nodes, known, result
        )

    @property
    def instance(self) -> str:
        return "{" + ", ".join(self.values) + "}"


def after(body: Graph, anchor: Node) -> list[Node]:
    """The nodes of a body that compute its output from the anchor's result, constants included."""
    return between(body, body.outputs[:1], anchor.result)


def between(body: Graph, wanted: Sequence[Value | None], known: Value | None = None) -> list[Node]:
    """The nodes that `wanted` are computed by, in order, constants included; of those that `known` is computed by only
    what is needed beside it."""
    found: set[Node] = set()
    stack = list(wanted)
    while stack:
        value = stack.pop()
        if value is None or value is known or (node := value.producer) is None or node in found:
            continue
        found.add(node)
        stack += node.operands
    return [n for n in body.nodes if n in found]


def row_step(view: View, keep: int = 1) -> Dim:
    """The constant step of the merged axes before the last `keep`; 0 when they are broadcast or absent.

    Raises ValueError when they do not merge into one.
    """
    lead = View(view.buffer, view.shape[:-keep], view.strides[:-keep], view.offset)
    _, strides = lead.merged()
    if len(strides) > 1:
        raise ValueError(f"{view} is not a matrix of rows")
    return strides[0] if strides else 0


def last_step(view: View) -> Dim:
    """The innermost step: 0 when the last axis is broadcast or of extent 1."""
    return 0 if not view.shape or view.shape[-1] == 1 else view.strides[-1]
