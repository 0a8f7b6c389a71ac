"""Lower a Graph to a Program: one kernel per (fused) operator, one buffer per value that must exist in memory.

Operators that only rearrange (reshape, transpose, expand, slice) become views where strides can say it. Families are
named after the anchor operator; a target's own passes refine them. Everything is row-major here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.analysis import made_symbols
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.outline import outline, outside_values
from opcel_compiler.ir.program import Buffer, Control, Kernel, Program, Read, Region, Requirement, View, whole
from opcel_compiler.ir.program_split import source
from opcel_compiler.ir.types import DType, TensorType
from opcel_compiler.schedule.assumed import assumed
from opcel_compiler.schedule.attention import lower_attention
from opcel_compiler.schedule.control import lower_if, lower_loop
from opcel_compiler.schedule.domain import set_domains
from opcel_compiler.schedule.normalized import lower_layer_norm, lower_softmax
from opcel_compiler.schedule.recurrent import lower_recurrent
from opcel_compiler.schedule.transposed import lower_conv_transpose, lower_fused_transpose

VIEWS = frozenset({"reshape", "transpose", "expand", "slice"})


class LoweringError(OpcelError):
    """A node cannot be lowered; the text names it and says why."""


def copy_body(type: TensorType) -> Graph:
    """The body of a kernel that moves data unchanged: one input, returned."""
    body = Graph("copy")
    body.add_output(body.add_input("x", type))
    return body


def anchor_of(body: Graph) -> Node | None:
    """The one node of a body that is not elementwise, constant or a size; None when there is none."""
    for node in body.nodes:
        if node.op not in ("constant", "dims") and "elementwise" not in node.definition.traits:
            return node
    return None


class Lowering:
    """One run over a graph; `program` is the result."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.program = Program(graph.name)
        self.views: dict[Value, View] = {}
        self._names: dict[str, int] = {}
        self._origin: tuple[str, ...] = ()
        self._required: list[tuple[list[Requirement], set[tuple[Dim, bool]]]] = [(self.program.requirements, set())]

    def run(self) -> Program:
        for value in self.graph.inputs:
            buffer = Buffer(self.name(value.name), self.type_of(value), "input")
            self.program.inputs.append(buffer)
            self.views[value] = whole(buffer)
        self.nodes(self.graph)
        for value, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
            self._origin = value.producer.origin if value.producer is not None else ()
            self._output(value, name)
        return self.program

    def nodes(self, graph: Graph) -> None:
        for node in graph.nodes:
            self._origin = node.origin
            self._node(node)
            self._require(node)

    def _require(self, node: Node) -> None:
        """Note what the types of a node, or of those that it fuses, take for granted."""
        for inner in node.regions[0].nodes if node.op == "fused" else (node,):
            for a in assumed(inner):
                made = Requirement(a.left, a.right, a.exact, node.origin[:2])
                key = (a.left - a.right, a.exact)
                if not any(key in known for _, known in self._required):
                    self._required[-1][0].append(made)
                    self._required[-1][1].add(key)

    def block(self, mark: Control, graph: Graph) -> None:
        """The steps of a region, after the mark of control flow that it hangs on."""
        self.program.steps.append(mark)
        self._required.append((mark.requirements, set()))
        self.nodes(graph)
        self._required.pop()

    # -- values, buffers, views ----------------------------------------------------------------------------------

    def name(self, base: str) -> str:
        count = self._names.get(base, -1) + 1
        self._names[base] = count
        return base if not count else self.name(f"{base}.{count}")

    def type_of(self, value: Value) -> TensorType:
        """The type of a value that memory holds. Raises LoweringError for any other."""
        t = value.type
        where = ", ".join(value.producer.origin) if value.producer else f"input {value.name}"
        if not isinstance(t, TensorType) or t.dtype.kind == "s":
            raise LoweringError(
                f"{where}: %{value.name} is {t}; strings, sequences, optionals and maps have no place in an artifact's "
                "memory. Cut the part of the model that makes or reads them off before compiling"
            )
        if t.shape is None:
            raise LoweringError(f"{where}: {value!r} has no known rank, so no memory can be planned for it")
        return t

    def view(self, value: Value) -> View:
        found = self.views.get(value)
        if found is None:
            data = value.constant
            if data is None:
                raise LoweringError(f"%{value.name} is used before it is computed")
            found = self.views[value] = whole(self.weight(data, value.name))
        return found

    def weight(self, data: Constant, name: str) -> Buffer:
        return Buffer(self.name(name), data.type, "weight", data=data)

    def temp(self, dtype: DType, shape: Sequence[Dim], name: str) -> View:
        return whole(Buffer(self.name(name), TensorType(dtype, tuple(shape))))

    def emit(
        self, family: str, body: Graph, inputs: Sequence[View], outputs: Sequence[View], anchor: Node | None = None
    ) -> Kernel:
        kernel = Kernel(family, body, list(inputs), list(outputs), anchor, origin=self._origin)
        self.program.steps.append(kernel)
        return kernel

    def copy(self, source: View, target: View) -> None:
        self.emit("copy", copy_body(TensorType(source.dtype, source.shape)), [source], [target])

    def contiguous(self, view: View) -> View:
        """`view` itself when it is dense, else a dense copy of it."""
        if view.is_contiguous:
            return view
        target = self.temp(view.dtype, view.shape, f"{view.buffer.name}.dense")
        self.copy(view, target)
        return target

    def unit_inner(self, view: View) -> View:
        """A view whose innermost axis has stride 1."""
        return view if _has_unit_inner(view) else self.contiguous(view)

    def rows(self, view: View, keep: int = 1) -> View:
        """A view whose axes before the last `keep` merge into one with a constant stride, innermost stride 1."""
        lead = View(view.buffer, view.shape[:-keep], view.strides[:-keep], view.offset)
        if len(lead.merged()[0]) <= 1 and _has_unit_inner(view):
            return view
        return self.contiguous(view)

    # -- operators -----------------------------------------------------------------------------------------------

    def _node(self, node: Node) -> None:
        if node.op == "constant":
            return
        if node.op in VIEWS:
            self.views[node.result] = self._rearranged(node)
            return
        special: Callable[[Node], None] | None = getattr(self, f"_lower_{node.op}", None)
        if special is not None:
            special(node)
            return
        self.whole_kernel(node)

    def _rearranged(self, node: Node) -> View:
        x = self.view(node.operand(0))
        out = self.type_of(node.result)
        if node.op == "transpose":
            return x.transpose(node.attrs["perm"])
        if node.op == "expand":
            return x.expand(out.dims, late=True)
        if node.op == "slice":
            return x.slice(node.attrs["starts"], out.dims, node.attrs["steps"])
        return x.reshape(out.dims) or self.reshaped(self.contiguous(x), out.dims, node)

    def reshaped(self, view: View, shape: Sequence[Dim], node: Node) -> View:
        """A dense view under another shape. Raises LoweringError, naming the node, where strides cannot say it."""
        out = view.reshape(shape)
        if out is not None:
            return out
        if view.is_contiguous:
            return whole_as(view, shape)
        raise LoweringError(f"{', '.join(node.origin)}: cannot reshape {view.shape} to {tuple(shape)}")

    def whole_kernel(self, node: Node) -> None:
        """One kernel that does all that the node does."""
        body = node.regions[0] if node.op == "fused" else outline([node], node.results)
        self.kernel(node, body, [self.view(v) for v in body_operands(node)])

    def kernel(self, node: Node, body: Graph, inputs: list[View]) -> None:
        """A kernel with this body, whose results are the node's; `inputs` are brought into the form it reads."""
        anchor = anchor_of(body)
        for i, value in enumerate(body.inputs):
            inputs[i] = self.suited(inputs[i], value, anchor)
        outputs = [self.result(r, anchor) for r in node.results]
        family = anchor.op if anchor is not None else "dims" if node.op == "dims" else "elementwise"
        self.emit(family, body, inputs, outputs, anchor)
        self.views.update(zip(node.results, outputs, strict=True))

    def suited(self, view: View, value: Value, anchor: Node | None) -> View:
        """`view` in a form that every kernel of this anchor can read as `value`."""
        if anchor is None:
            return view
        position = next((i for i, v in enumerate(anchor.operands) if v is not None and source(v) is value), None)
        if anchor.op == "attention":
            return self.unit_inner(view) if position != 3 or view.strides[-1:] != (0,) else view
        if anchor.op in ("matmul", "matmul_nbits"):
            if position == 0:
                b = anchor.operand(1).tensor
                return self.rows(view) if len(b.dims) <= 2 else self.rows_batched(view)
            if position == 1:
                return view if len(view.shape) <= 2 else self.rows_batched(view, inner=False)
            return self._broadcast_rows(view)
        if "row" in anchor.definition.traits and "contraction" not in anchor.definition.traits:
            return self._broadcast_rows(view)
        return self.contiguous(view)

    def rows_batched(self, view: View, inner: bool = True) -> View:
        """A view whose axes before the last two merge into one; with `inner`, its innermost stride is 1."""
        lead = View(view.buffer, view.shape[:-2], view.strides[:-2], view.offset)
        if len(lead.merged()[0]) <= 1 and (not inner or _has_unit_inner(view)):
            return view
        return self.contiguous(view)

    def _broadcast_rows(self, view: View) -> View:
        return view if all(d == 1 for d in view.shape[:-1]) and _has_unit_inner(view) else self.rows(view)

    def result(self, value: Value, anchor: Node | None) -> View:
        """Memory for a result: dense in the order in which its only user reads it."""
        t = self.type_of(value)
        if anchor is not None and anchor.op == "attention" and len(value.uses) == 1:
            user = value.uses[0][0]
            if isinstance(user, Node) and user.op == "transpose" and user.attrs["perm"][-1] == len(t.dims) - 1:
                perm = user.attrs["perm"]
                inverse = sorted(range(len(perm)), key=perm.__getitem__)
                return self.temp(t.dtype, [t.dims[p] for p in perm], value.name).transpose(inverse)
        return self.temp(t.dtype, t.dims, value.name)

    def _lower_external(self, node: Node) -> None:
        for r in node.results:
            if not isinstance(r.type, TensorType) or r.type.shape is None:
                raise LoweringError(
                    f"{', '.join(node.origin)}: cannot run natively ({node.attrs['reason']}), and as the shape of its "
                    f"result %{r.name} is not known ({r.type}) no other engine can be handed it either; replace the "
                    "operator, or state the shape in the model's value_info"
                )
        inputs = [self.contiguous(self.view(v)) for v in node.operands if v is not None]
        outputs = [self.result(r, None) for r in node.results]
        index = sum(isinstance(s, Region) for s in self.program.steps)
        nodes = tuple(node.regions[0].nodes)
        region = Region(index, nodes, inputs, outputs, node.attrs["reason"], node.origin)
        self.program.steps.append(region)
        self.views.update(zip(node.results, outputs, strict=True))

    def _lower_read_dims(self, node: Node) -> None:
        source = self.contiguous(self.view(node.operand(0)))
        self.program.steps.append(Read([source], made_symbols(node), node.origin))

    def _lower_softmax(self, node: Node) -> None:
        lower_softmax(self, node)

    _lower_log_softmax = _lower_softmax

    def _lower_layer_norm(self, node: Node) -> None:
        lower_layer_norm(self, node)

    _lower_rms_norm = _lower_layer_norm

    def _lower_conv_transpose(self, node: Node) -> None:
        lower_conv_transpose(self, node)

    def _lower_fused(self, node: Node) -> None:
        anchor = anchor_of(node.regions[0])
        if anchor is None or anchor.op != "conv_transpose" or not lower_fused_transpose(self, node, anchor):
            self.whole_kernel(node)

    def _lower_attention(self, node: Node) -> None:
        lower_attention(self, node)

    def _lower_recurrent(self, node: Node) -> None:
        self.views.update(zip(node.results, lower_recurrent(self, node), strict=True))

    _lower_lstm = _lower_gru = _lower_rnn = _lower_recurrent

    def _lower_invalid(self, node: Node) -> None:
        where = ", ".join(node.origin)
        self._required[-1][0].append(Requirement(0, 1, True, node.origin, f"{where}: {node.attrs['reason']}"))
        for r in node.results:
            t = self.type_of(r)
            zero = self.weight(Constant(np.zeros((), t.dtype.numpy), t.dtype), "zero")
            self.views[r] = View(zero, (), ()).expand(t.dims)

    def _lower_if_(self, node: Node) -> None:
        lower_if(self, node)

    def _lower_loop(self, node: Node) -> None:
        lower_loop(self, node)

    def _lower_concat(self, node: Node) -> None:
        out = self.result(node.result, None)
        axis: int = node.attrs["axis"]
        at: Dim = 0
        for v in node.operands:
            assert v is not None
            x = self.view(v)
            starts: list[Dim] = [0] * len(x.shape)
            starts[axis] = at
            part = out.slice(starts, x.shape, [1] * len(x.shape))
            if not self._observed_into(v, x, part):
                self.copy(x, part)
            at = at + x.shape[axis]
        self.views[node.result] = out

    def _observed_into(self, value: Value, view: View, part: View) -> bool:
        """Let the `observe` kernel that made a value, if one did and it has no other user, write the dense `part`."""
        while value.producer is not None and value.producer.op == "reshape" and len(value.uses) == 1:
            value = value.producer.operand(0)
        if value.producer is None or value.producer.op != "observe" or len(value.uses) != 1:
            return False
        outputs = next(s.outputs for s in self.program.steps if any(o.buffer is view.buffer for o in s.outputs))
        at = next(i for i, o in enumerate(outputs) if o.buffer is view.buffer)
        outputs[at] = whole_as(part, outputs[at].shape)
        return True

    def _lower_pad(self, node: Node) -> None:
        pads, x = node.attrs["pads"], self.view(node.operand(0))
        if node.attrs["mode"] != "constant":
            self.kernel(node, outline([node], node.results), [x])
            return
        out = self.result(node.result, None)
        value = node.optional(1)
        fill = self.view(value) if value is not None else self.view(self._zero(node))
        self.copy(View(fill.buffer, (), (), fill.offset).expand(out.shape), out)
        self.copy(x, out.slice(pads[: len(x.shape)], x.shape, [1] * len(x.shape)))
        self.views[node.result] = out

    def _zero(self, node: Node) -> Value:
        t = self.type_of(node.result)
        assert node.graph is not None
        return node.graph.constant(Constant(np.zeros((), t.dtype.numpy), t.dtype), before=node)

    def _output(self, value: Value, name: str) -> None:
        """Make `value` graph output `name`: its own buffer where it has one to itself, else a copy."""
        view = self.view(value)
        buffer = view.buffer
        t = self.type_of(value)
        if buffer.kind == "temp" and view.is_whole and buffer.layout.is_plain:
            buffer.kind, buffer.name = "output", self.name(name)
            if buffer.type != t:
                self._retype(buffer, t)
            self.program.outputs.append(buffer)
            return
        target = Buffer(self.name(name), t, "output")
        self.copy(view, whole(target))
        self.program.outputs.append(target)

    def _retype(self, buffer: Buffer, t: TensorType) -> None:
        """Give a dense buffer another shape with as many elements; existing views keep their strides."""
        buffer.type = t


def _has_unit_inner(view: View) -> bool:
    return not view.shape or view.shape[-1] == 1 or view.strides[-1] == 1


def body_operands(node: Node) -> list[Value]:
    """The values that the inputs of the node's kernel body stand for, in order."""
    return [v for v in node.operands if v is not None] if node.op == "fused" else outside_values([node])


def whole_as(view: View, shape: Sequence[Dim]) -> View:
    """A dense view under another shape that the caller knows to have as many elements."""
    strides: list[Dim] = []
    step: Dim = 1
    for d in reversed(shape):
        strides.insert(0, step)
        step = step * d
    return View(view.buffer, tuple(shape), tuple(strides), view.offset)


def lower(graph: Graph) -> Program:
    """The Program of a graph whose nodes are all native or `external`. Raises LoweringError."""
    program = Lowering(graph).run()
    set_domains(program)
    return program
