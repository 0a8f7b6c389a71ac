"""Choose blocked channels for images: put layout conversions around convolutions, then move and cancel them.

A conversion is an explicit `relayout` kernel. First every convolution that has a blocked kernel gets its input
converted and its output converted back. Then, in program order, kernels that work on any layout take over their inputs'
blocked form, two conversions that undo each other cancel, and conversions nobody reads go. Halos wanted by several
readers of a buffer are joined, so that one padded buffer serves them all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from opcel_compiler.ir.dims import product
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.parts import Parts, part_of
from opcel_compiler.ir.program import Buffer, Control, Kernel, Program, Step, View, block_end, loops, whole
from opcel_compiler.ir.program_split import fresh_name, source, split_quantized, zero_number
from opcel_compiler.ir.types import F32, I8, U8, TensorType
from opcel_compiler.rewrite.pass_ import Pass, PassContext
from opcel_compiler.schedule.choice.convolution import depthwise_quads, depthwise_tile
from opcel_compiler.schedule.choice.integers import integer_form, is_integer, quantized_conv

REDUCES = frozenset({"reduce_mean", "reduce_max", "reduce_min"})
AGNOSTIC = REDUCES | {"elementwise", "max_pool", "avg_pool", "resample"}
BLOCKED = frozenset({F32, U8, I8})
"""Element types of images that have a blocked form."""


@dataclass(frozen=True)
class Relayout(Pass):
    """Block image channels by the target's vector width and remove the conversions that this allows to remove."""

    name: ClassVar[str] = "relayout"
    summary: ClassVar[str] = "block image channels; move and cancel layout conversions"
    level: ClassVar[str] = "program"

    def run(self, program: Program, ctx: PassContext) -> None:
        target = ctx.target
        width = target.vector.width_f32 if target is not None and target.vector is not None else 1
        _to_integers(program, width)
        if width > 1 and any(k.family == "conv" for k in program.kernels):
            _Relayout(program, width, target.vector.registers).run()


def _to_integers(program: Program, width: int) -> None:
    """Quantized convolutions in the form of integer products; those without such a kernel in f32, between kernels that
    convert. The images that one buffer serves have one zero point: that is what its border holds."""
    names = {b.name for b in program.buffers}
    zeros: dict[Buffer, int] = {}

    def name(base: str) -> str:
        return fresh_name(base, names)

    def parts(kernel: Kernel) -> list[Kernel]:
        quantized = quantized_conv(kernel)
        if quantized is not None and width > 1:
            image = kernel.inputs[kernel.body.inputs.index(quantized.image)].buffer
            made = integer_form(kernel, quantized, name)
            kind = conv_kind(made, width)
            if kind is not None and zeros.setdefault(image, quantized.zero) == quantized.zero:
                return [made]
        return split_quantized(kernel, name)

    program.steps = [
        part
        for step in program.steps
        for part in (parts(step) if isinstance(step, Kernel) and step.family == "conv" else (step,))
    ]


class _Relayout:
    def __init__(self, program: Program, width: int, registers: int) -> None:
        self.program = program
        self.width = width
        self.registers = registers
        self.blocked: dict[Buffer, Buffer] = {}
        """Row-major buffer → the blocked buffer that holds the same values."""
        self.steps: list[Step] = []
        self.names = {b.name for b in program.buffers}
        self.made: set[Buffer] = set()
        self.parts = Parts(program, width)

    def run(self) -> None:
        around: list[dict[Buffer, Buffer]] = []
        for i, step in enumerate(self.program.steps):
            if isinstance(step, Control):
                self._cross(i, step, around)
                self.steps.append(step)
            elif isinstance(step, Kernel) and step.family == "observe":
                self._observe(step)
            elif isinstance(step, Kernel) and self._takes_blocks(step):
                self._convert(step)
            elif isinstance(step, Kernel) and step.family == "copy" and self._blocked_part(step) is not None:
                self._copy_part(step)
            else:
                self.steps.append(step)
                for v in step.outputs:
                    self.blocked.pop(v.buffer, None)
        self.program.steps = self.steps
        self._drop_dead()
        self._refresh()
        self.parts.join(self.program)

    def _cross(self, at: int, mark: Control, around: list[dict[Buffer, Buffer]]) -> None:
        """Forget at a mark of control flow which blocked copies hold no more: those made in another branch, and those
        of what a block may write."""
        steps = self.program.steps
        if mark.kind in ("if", "loop"):
            written = {v.buffer for s in steps[at : block_end(steps, at)[1]] for v in s.outputs}
            self.blocked = {plain: b for plain, b in self.blocked.items() if plain not in written}
            around.append(dict(self.blocked))
        else:
            self.blocked = dict(around[-1])
            if mark.kind == "end":
                around.pop()

    # -- which kernels ---------------------------------------------------------------------------------------------

    def _takes_blocks(self, kernel: Kernel) -> bool:
        images = kernel.views if kernel.family != "resample" else (kernel.inputs[0], kernel.outputs[0])
        if any(v.dtype not in BLOCKED for v in images) or len(kernel.outputs) != 1:
            return False
        if kernel.family == "conv":
            return conv_kind(kernel, self.width) is not None and self._extras_fit(kernel)
        if any(v.dtype != F32 for v in images) and not _pools_bytes(kernel):
            return False
        if kernel.family not in AGNOSTIC or not any(self._is_blocked(v) for v in images):
            return False
        out = kernel.outputs[0].shape
        if kernel.family == "elementwise":
            return len(out) in (3, 4) and self._extras_fit(kernel)
        anchor = kernel.anchor
        assert anchor is not None
        if anchor.op == "resample" and type(out[1]) is int and 4 * out[1] < self.width:
            return False  # three quarters of each block would be padding
        if anchor.op in REDUCES:
            rank = len(kernel.inputs[0].shape)
            return rank in (3, 4) and anchor.attrs["axes"] == tuple(range(2, rank))
        return len(out) in (3, 4) and (len(kernel.inputs) == 1 or anchor.op == "resample")

    def _is_blocked(self, view: View) -> bool:
        """Whether there is a blocked form of what a view shows, or one of which it is to be a part."""
        found = self.blocked.get(view.buffer)
        return found is not None and (part_of(view) is not None or found.type.shape == view.shape)

    def _writes_parts(self, kernel: Kernel) -> bool:
        """Whether a blocked kernel can write what `kernel` does; a depthwise one only pixels that are adjacent."""
        part = part_of(kernel.outputs[0])
        apart = part is not None and any(step != 1 for step in part.steps[2:])
        return self._takes_blocks(kernel) and not (apart and conv_kind(kernel, self.width) == "depthwise")

    def _extras_fit(self, kernel: Kernel) -> bool:
        """Whether every input that is not the anchor's own is an image of the output's shape, or per channel."""
        out = kernel.outputs[0].shape
        own = _sources(kernel)
        for value, view in zip(kernel.body.inputs, kernel.inputs, strict=True):
            if value in own or product(view.shape) == 1:
                continue
            if not (self._is_image(view, out) or self._per_channel(view, out)):
                return False
        return True

    @staticmethod
    def _is_image(view: View, out: tuple[object, ...]) -> bool:
        if len(view.shape) != len(out) or not (view.is_contiguous and view.offset == 0):
            return False
        return all(a == b or (a == 1 and i != 1) for i, (a, b) in enumerate(zip(view.shape, out, strict=True)))

    @staticmethod
    def _per_channel(view: View, out: tuple[object, ...]) -> bool:
        """A constant that varies along the channel axis alone."""
        if view.buffer.kind != "weight" or len(view.shape) < len(out) - 1 or len(view.shape) > len(out):
            return False
        lead = len(view.shape) - (len(out) - 1)
        return all(d == 1 for i, d in enumerate(view.shape) if i != lead)

    # -- conversion ------------------------------------------------------------------------------------------------

    def _convert(self, kernel: Kernel) -> None:
        anchor = kernel.anchor
        kind = conv_kind(kernel, self.width) if kernel.family == "conv" else None
        integers = kind is not None and is_integer(kernel)
        tile = depthwise_tile(kernel, self.registers) if kind == "depthwise" and not integers else None
        if tile is not None:
            kernel.params["tile"] = tile
        for i, value in enumerate(kernel.body.inputs):
            view = kernel.inputs[i]
            own = _sources(kernel)
            operand = own.index(value) if value in own else -1
            if kind is not None and operand == 1:
                kernel.inputs[i] = self._weights(kernel, view, kind)
            elif (kind is not None and operand == 2) or (
                operand < 0 and self._per_channel(view, kernel.outputs[0].shape)
            ):
                kernel.inputs[i] = self._vector(view)
            elif (product(view.shape) == 1 and operand < 0) or (kernel.family == "resample" and operand > 0):
                continue
            elif kind == "planar" and operand == 0:
                kernel.inputs[i] = self._quads(kernel, view) if integers else self._planar(kernel, view)
            else:
                halo = self._halo(kernel) if kind is not None and operand == 0 and tile is None else ()
                pad = (zero_number(kernel) or 0) if integers and operand == 0 else 0
                kernel.inputs[i] = whole(self._to_blocked(view, halo, kernel.origin, pad))
        out = kernel.outputs[0]
        rank = len(out.shape)
        whole_of = self._blocked_part(kernel)
        target = whole_of or self._buffer(
            out.buffer.name, TensorType(out.dtype, out.shape), Layout(block_axis=1, block=self.width)
        )
        if kind is not None:
            kernel.family = "conv.depthwise" if kind == "depthwise" else "conv.blocked"
            kernel.params["kind"] = kind
            if kind == "blocked" and anchor is not None and anchor.attrs["groups"] > 1:
                filters, channels = anchor.operand(1).tensor.static_shape[:2]
                groups = anchor.attrs["groups"]
                kernel.params["together"] = groups_together(groups, channels, filters // groups, self.width)
        elif kernel.family != "elementwise":
            kernel.family = "resample.blocked" if kernel.family == "resample" else "pool.blocked"
        self.steps.append(kernel)
        if whole_of is not None:
            self._written(kernel, target)
            return
        kernel.outputs[0] = whole(target)
        self._emit_copy(whole(target), out, kernel.origin)
        if out.is_contiguous and out.offset == 0 and rank >= 2:
            self.blocked[out.buffer] = target

    def _observe(self, kernel: Kernel) -> None:
        """Read what is observed by channels where it lies blocked by them; the results are row-major."""
        assert kernel.anchor is not None
        view = kernel.inputs[0]
        found = self.blocked.get(view.buffer) if kernel.anchor.attrs["axis"] == 1 else None
        if found is not None and found.type.shape == view.shape and view.offset == 0 and view.is_contiguous:
            kernel.inputs[0] = whole(found)
        self.steps.append(kernel)

    def _blocked_part(self, kernel: Kernel) -> Buffer | None:
        """The blocked buffer of which `kernel` writes a part, made at the first; None where parts stay row-major."""
        plain = kernel.outputs[0].buffer
        if plain not in self.blocked and self.parts.fit(plain, self.blocked, self._writes_parts):
            layout = Layout(block_axis=1, block=self.width)
            self.blocked[plain] = self._buffer(plain.name, plain.type, layout)
        return self.blocked.get(plain) if part_of(kernel.outputs[0]) is not None else None

    def _copy_part(self, kernel: Kernel) -> None:
        source, target = kernel.inputs[0], self.blocked[kernel.outputs[0].buffer]
        found = self.blocked.get(source.buffer)
        if found is not None and found.type.shape == source.shape and source.is_contiguous and source.offset == 0:
            kernel.inputs[0] = whole(found)
            self.steps.append(kernel)
        else:
            self._emit_copy(source, kernel.outputs[0], kernel.origin)
            last = self.steps[-1]
            assert isinstance(last, Kernel)
            kernel = last
        self._written(kernel, target)

    def _written(self, kernel: Kernel, target: Buffer) -> None:
        """`kernel` writes its part of `target`; the last of them is followed by the way back to row-major order."""
        plain = kernel.outputs[0].buffer
        if self.parts.place(kernel, target):
            self._emit_copy(whole(target), whole(plain), kernel.origin)

    def _to_blocked(
        self, view: View, halo: tuple[tuple[int, int], ...], origin: tuple[str, ...], pad: int = 0
    ) -> Buffer:  # fmt: skip
        """The blocked form of `view`, with at least this halo of `pad`."""
        found = self.blocked.get(view.buffer)
        dense = view.offset == 0 and view.is_contiguous
        if found is not None and found.type.shape == view.shape and dense:
            found.layout = _with_halo(found.layout, halo, pad)
            return found
        layout = _with_halo(Layout(block_axis=1, block=self.width), halo, pad)
        found = self._buffer(view.buffer.name, TensorType(view.dtype, view.shape), layout)
        self._emit_copy(view, whole(found), origin)
        if dense:
            self.blocked[view.buffer] = found
        return found

    def _planar(self, kernel: Kernel, view: View) -> View:
        """The few-channel input of a first layer: row-major, with a halo where the convolution pads."""
        halo = self._halo(kernel)
        if not halo and view.is_contiguous:
            return view
        buffer = self._buffer(view.buffer.name, TensorType(F32, view.shape), Layout(halo=halo))
        self._emit_copy(view, whole(buffer), kernel.origin)
        return whole(buffer)

    def _quads(self, kernel: Kernel, view: View) -> View:
        """The few-channel input of a first layer of integers: in blocks of four channels."""
        layout = _with_halo(Layout(block_axis=1, block=4), self._halo(kernel), (zero_number(kernel) or 0))
        buffer = self._buffer(view.buffer.name, TensorType(view.dtype, view.shape), layout)
        self._emit_copy(view, whole(buffer), kernel.origin)
        return whole(buffer)

    def _halo(self, kernel: Kernel) -> tuple[tuple[int, int], ...]:
        assert kernel.anchor is not None
        pads = kernel.anchor.attrs["pads"]
        half = len(pads) // 2
        if is_integer(kernel) and conv_kind(kernel, self.width) == "depthwise":
            pads = (*pads[:-1], max(pads[-1], depthwise_quads(kernel).right))
        if not any(pads):
            return ()
        return ((0, 0), (0, 0), *((pads[i], pads[half + i]) for i in range(half)))

    def _weights(self, kernel: Kernel, view: View, kind: str) -> View:
        b = view.buffer
        if kind == "depthwise" and b.type.dtype == F32:
            order = (0, *range(2, len(view.shape)), 1)
            return whole(self._buffer(b.name, b.type, Layout(order, block_axis=0, block=self.width), like=b))
        packed = self._buffer(b.name, b.type, Layout(), like=b)
        packed.packing = "depthwise" if kind == "depthwise" else "conv"
        return whole(packed)

    def _vector(self, view: View) -> View:
        """A per-channel constant, padded with zeros to whole blocks."""
        axis = next((i for i, d in enumerate(view.shape) if d != 1), len(view.shape) - 1 if len(view.shape) == 1 else 0)
        layout = Layout(block_axis=axis, block=self.width)
        return whole(self._buffer(view.buffer.name, TensorType(view.dtype, view.shape), layout, like=view.buffer))

    def _emit_copy(self, source: View, target: View, origin: tuple[str, ...]) -> None:
        if source.buffer.layout.block == 1 and source.shape[-1] != 1 and source.strides[-1] != 1:
            dense = whole(self._buffer(source.buffer.name, TensorType(source.dtype, source.shape), Layout()))
            self._emit_move("copy", source, dense, origin)
            source = dense
        if target.buffer.layout.block == 1 and target.shape[-1] != 1 and target.strides[-1] != 1:
            dense = whole(self._buffer(target.buffer.name, TensorType(target.dtype, target.shape), Layout()))
            self._emit_move("relayout", source, dense, origin)
            self._emit_move("copy", dense, target, origin)
            return
        self._emit_move("relayout", source, target, origin)

    def _emit_move(self, family: str, source: View, target: View, origin: tuple[str, ...]) -> None:
        body = Graph("copy")
        body.add_output(body.add_input("x", TensorType(source.dtype, source.shape)))
        self.steps.append(Kernel(family, body, [source], [target], origin=origin))

    def _buffer(self, base: str, type: TensorType, layout: Layout, like: Buffer | None = None) -> Buffer:
        name = fresh_name(f"{base}.blocked", self.names)
        if like is not None:
            return Buffer(name, type, like.kind, layout, data=like.data)
        made = Buffer(name, type, layout=layout)
        self.made.add(made)
        return made

    # -- clean-up --------------------------------------------------------------------------------------------------

    def _drop_dead(self) -> None:
        live = set(self.program.outputs)
        for begin, end in loops(self.program.steps):
            live.update(v.buffer for s in self.program.steps[begin:end] for v in s.inputs)
        kept: list[Step] = []
        for step in reversed(self.program.steps):
            moves = isinstance(step, Kernel) and step.family in ("relayout", "copy")
            if moves and all(v.buffer not in live for v in step.outputs):
                continue
            kept.append(step)
            live.update(v.buffer for v in step.inputs)
        self.program.steps = kept[::-1]

    def _refresh(self) -> None:
        """Views of blocked buffers follow the halos that were joined after they were made."""
        joined = self.made
        for step in self.program.steps:
            for views in (step.inputs, step.outputs):
                for i, v in enumerate(views):
                    if v.buffer in joined:
                        views[i] = self.parts.view(views, i)


def conv_kind(kernel: Kernel, width: int) -> str | None:
    """Which blocked kernel computes this convolution: depthwise (also groups smaller than a
    block), planar, blocked; None for none."""
    anchor = kernel.anchor
    if anchor is None or anchor.op != "conv":
        return None
    x, w = anchor.operand(0).tensor, anchor.operand(1).tensor
    integers = is_integer(kernel)
    if not _is_weight(kernel, source(anchor.operand(1))) or not w.is_static or len(w.dims) not in (3, 4):
        return None
    if len(anchor.operands) > 2 and anchor.operands[2] is not None and not _is_weight(kernel, anchor.operand(2)):
        return None
    if type(x.dims[1]) is not int or source(anchor.operand(0)) not in kernel.body.inputs:
        return None
    if any(p < 0 for p in anchor.attrs["pads"]):
        return None
    groups, channels, filters = anchor.attrs["groups"], x.dims[1], w.static_shape[0]
    if groups == 1:
        few = channels < width // 2 or (channels < width and channels % 4 and not integers)
        return "planar" if few else "blocked"
    own = channels // groups
    if channels == filters and own < width and width % own == 0 and (not integers or own == 1):
        return "depthwise" if not integers or all(d == 1 for d in anchor.attrs["dilations"]) else None
    return "blocked" if groups_together(groups, own, filters // groups, width) else None


def _pools_bytes(kernel: Kernel) -> bool:
    """Whether a kernel of any layout can do with bytes what it does: take elements as they are, or compute in lanes."""
    anchor = kernel.anchor
    if anchor is None or anchor.op == "max_pool":
        return True
    return anchor.op == "resample" and all(anchor.operands[i] is None for i in (2, 4) if i < len(anchor.operands))


def _sources(kernel: Kernel) -> list[Value | None]:
    """What the anchor's operands are, or are the dequantizations of."""
    if kernel.anchor is None:
        return []
    return [None if v is None else source(v) for v in kernel.anchor.operands]


def _with_halo(layout: Layout, halo: tuple[tuple[int, int], ...], pad: int) -> Layout:
    return replace(layout.with_halo(halo), pad_value=pad) if halo else layout


MOST_TOGETHER = 16


def groups_together(groups: int, channels: int, filters: int, width: int) -> int:
    """How many groups of so many channels and filters make one group of whole blocks, the products between them times
    zero: the fewest, or all groups; 0 where that is more than MOST_TOGETHER."""
    whole_blocks = (
        m for m in range(1, groups) if groups % m == 0 and m * channels % width == 0 and m * filters % width == 0
    )
    together = next(whole_blocks, groups)
    return together if together <= MOST_TOGETHER else 0


def _is_weight(kernel: Kernel, value: Value) -> bool:
    return value in kernel.body.inputs and kernel.inputs[kernel.body.inputs.index(value)].buffer.kind == "weight"
