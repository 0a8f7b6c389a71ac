"""Choose each kernel's family and its compile-time parameters from the target's vector unit and register tiles.

A matrix product gets its second operand in column panels, packed when the artifact is written or, where it is known
only at run time, by a kernel of its own. What no fast family takes goes to the reference family of its operator, its
epilogue split off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from opcel_compiler.ir.dims import Dim, ceildiv, dim_min, equal, product
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer, Kernel, Program, Step, View, whole
from opcel_compiler.ir.program_split import split_epilogue
from opcel_compiler.ir.types import F32, TensorType
from opcel_compiler.rewrite.pass_ import Pass, PassContext

TASKS = 16
"""Tasks per kernel that are aimed at: enough to even out threads that run at different speeds."""


@dataclass(frozen=True)
class ChooseKernels(Pass):
    """Pick kernel families, register tiles, task sizes and weight packings."""

    name: ClassVar[str] = "choose-kernels"
    summary: ClassVar[str] = "pick kernel families, register tiles and weight packings"
    level: ClassVar[str] = "program"

    def run(self, program: Program, ctx: PassContext) -> None:
        target = ctx.target
        if target is None or target.vector is None:
            return
        chooser = _Chooser(program, target)
        program.steps = [s for step in program.steps for s in chooser.choose(step)]


class _Chooser:
    def __init__(self, program: Program, target: Any) -> None:
        self.target = target
        self.width: int = target.vector.width_f32
        self.names = {b.name for b in program.buffers}
        self.packed: dict[tuple[View, Layout], Buffer] = {}
        cache = [m.size for m in target.memories if m.managed == "hardware"]
        self.cache: int = int(sorted(cache)[1]) if len(cache) > 1 else 1 << 18

    def name(self, base: str) -> str:
        name, count = base, 0
        while name in self.names:
            count += 1
            name = f"{base}{count}"
        self.names.add(name)
        return name

    def choose(self, step: Step) -> list[Step]:
        if not isinstance(step, Kernel):
            return [step]
        if step.family == "matmul":
            return self._matmul(step)
        if step.family == "conv.blocked":
            self._conv(step)
        elif step.family == "conv.depthwise":
            n, oh, rows = step.outputs[0].shape[0], *_rows(step.outputs[0])
            step.params["rows_per_task"] = _split(oh, product([n, ceildiv(step.outputs[0].shape[1], self.width)]), rows)
        elif step.family in ("lstm", "gru", "rnn"):
            self._recurrent(step)
        elif step.family == "conv":
            return self._reference(step, "conv.reference")
        elif step.family in ("max_pool", "avg_pool"):
            step.family = "pool.reference"
        elif step.family.startswith("reduce_") and self._row_reduction(step):
            step.family = "reduce.rows"
        return [step]

    def _reference(self, kernel: Kernel, family: str) -> list[Step]:
        parts = split_epilogue(kernel, self.name(f"{kernel.outputs[0].buffer.name}.anchor"))
        parts[0].family = family
        out = parts[0].outputs[0]
        if out.is_contiguous:
            return list(parts)
        dense = whole(Buffer(self.name(f"{out.buffer.name}.dense"), TensorType(out.dtype, out.shape)))
        parts[0].outputs = [dense]
        return [parts[0], Kernel("copy", _copy_body(dense), [dense], [out], origin=kernel.origin), *parts[1:]]

    @staticmethod
    def _row_reduction(kernel: Kernel) -> bool:
        assert kernel.anchor is not None
        axes, x = kernel.anchor.attrs["axes"], kernel.inputs[0]
        adjacent = bool(axes) and list(axes) == list(range(axes[0], axes[-1] + 1))
        return adjacent and x.dtype == F32 and x.is_contiguous

    # -- matrix products -------------------------------------------------------------------------------------------

    def _matmul(self, kernel: Kernel) -> list[Step]:
        anchor = kernel.anchor
        assert anchor is not None
        at = {v: i for i, v in enumerate(kernel.body.inputs)}
        ia, ib = at[anchor.operand(0)], at[anchor.operand(1)]
        a, b, c = kernel.inputs[ia], kernel.inputs[ib], kernel.outputs[0]
        lead = product(b.shape[:-2])
        batch = c.shape[:-2]
        fits = c.dtype == F32 and len(a.shape) >= 1 and len(b.shape) >= 2 and ia != ib
        if fits and len(b.shape) > 2:
            same = lead == 1 or equal(lead, product(batch)) is True
            wide = (
                View(a.buffer, a.shape, a.strides, a.offset).expand((*batch, *a.shape[-2:])) if len(a.shape) > 1 else a
            )
            merges = len(View(wide.buffer, wide.shape[:-2], wide.strides[:-2]).merged()[0]) <= 1
            fits = same and merges and len(a.shape) > 1
        if not fits:
            return self._reference(kernel, "matmul.reference")
        m = product(a.shape[:-1]) if len(b.shape) == 2 else c.shape[-2]
        n, k = b.shape[-1], b.shape[-2]
        pref = self.target.kernel("gemm")
        vectors, tallest = (pref.vectors, pref.rows[0]) if pref is not None else (2, 6)
        if m in (1, 2) and type(n) is int and n >= 64 * self.width:
            vectors *= 2
        panel = vectors * self.width
        while panel > self.width and type(n) is int and n <= panel // 2:
            panel //= 2
        layout = Layout((*range(len(b.shape) - 2), len(b.shape) - 1, len(b.shape) - 2), len(b.shape) - 1, panel)
        steps: list[Step] = []
        if b.buffer.kind == "weight":
            kernel.inputs[ib] = whole(self._packed_weight(b, layout))
        else:
            packed = Buffer(self.name(f"{b.buffer.name}.panels"), TensorType(F32, b.shape), layout=layout)
            steps.append(Kernel("pack", _copy_body(b), [b], [whole(packed)], origin=kernel.origin))
            kernel.inputs[ib] = whole(packed)
        kernel.family = "gemm"
        rows_per_task = self._rows_per_task(m, k, tallest)
        kernel.params = {
            "panel": panel, "rows": heights(m, tallest, rows_per_task, pref.rows if pref else (tallest, 4, 2, 1)),
            "rows_per_task": rows_per_task,
            "panels_per_task": self._panels_per_task(
                product(batch) if len(b.shape) > 2 else 1, m, n, panel, rows_per_task
            ),
        }  # fmt: skip
        return [*steps, kernel]

    def _rows_per_task(self, m: Dim, k: Dim, tallest: int) -> Dim:
        depth = k if isinstance(k, int) else 1024
        rows = max(tallest, self.cache // (8 * max(1, depth)) // tallest * tallest)
        return dim_min(m, rows) if isinstance(m, int) else rows

    @staticmethod
    def _panels_per_task(batch: Dim, m: Dim, n: Dim, panel: int, rows: Dim) -> Dim:
        if not (isinstance(m, int) and isinstance(n, int) and isinstance(rows, int)):
            return 4
        groups = ceildiv(m, max(1, rows)) * (batch if isinstance(batch, int) else 1)
        assert isinstance(groups, int)
        panels = -(-n // panel)
        return max(1, -(-panels // max(1, TASKS // max(1, groups))))

    def _packed_weight(self, view: View, layout: Layout) -> Buffer:
        key = (view, layout)
        if key not in self.packed:
            t = TensorType(F32, view.shape)
            self.packed[key] = Buffer(
                self.name(f"{view.buffer.name}.packed"), t, "weight", layout, data=Constant(weight_array(view))
            )
        return self.packed[key]

    # -- convolutions ----------------------------------------------------------------------------------------------

    def _conv(self, kernel: Kernel) -> None:
        anchor, y = kernel.anchor, kernel.outputs[0]
        assert anchor is not None
        w = anchor.operand(1).tensor.static_shape
        groups = anchor.attrs["groups"]
        planar = kernel.params["kind"] == "planar"
        in_block = 1 if planar else self.width
        ocb, icb = -(-w[0] // groups // self.width), -(-w[1] // in_block)
        vectors, tallest = self._image_tile(ocb)
        oh, ow = y.shape[2:] if len(y.shape) == 4 else (1, y.shape[2])
        flat = all(d == 1 for d in w[2:]) and all(s == 1 for s in anchor.attrs["strides"])
        flat = flat and not any(any(sum(h) for h in v.buffer.layout.halo) for v in (*kernel.inputs, y)) and _dense(y)
        image = product(kernel.inputs[0].shape[1:]) * 4
        weights = 4 * w[0] * w[1] * int(np.prod(w[2:]))
        tile_rows, rows_per_task, panels_per_task = 1, 1, 1  # type: tuple[int, Dim, int]
        panels = groups * (ocb // vectors)
        if isinstance(oh, int) and isinstance(ow, int) and isinstance(image, int):
            n = y.shape[0] if isinstance(y.shape[0], int) else 1
            slices = _slices(n, oh, image, weights, panels, self.cache)
            if flat:
                parts = next(p for p in range(slices, 0, -1) if oh % p == 0)
                oh, ow = parts, ow * (oh // parts)
            else:
                tile_rows = max(1, min(tallest // max(1, ow), oh, 2))
                rows_per_task = max(tile_rows, -(-oh // slices) // tile_rows * tile_rows)
            if slices > 1 and weights <= self.cache // 2:
                panels_per_task = max(1, ocb // vectors)
        elif flat:
            oh, ow = 1, product([oh, ow])
        else:
            rows_per_task = 8
        pref = self.target.kernel("conv")
        limit = tallest // tile_rows
        general = tuple(r for r in (pref.rows if pref else (4, 2, 1)) if r <= limit) or (1,)
        kernel.params.update(
            group_blocks=(ocb, icb), in_block=in_block, out_blocks=vectors, tile_rows=tile_rows,
            tile_widths=heights(ow, 14 if ow == 14 and vectors == 2 and tallest >= 12 else limit, ow, general),
            rows_per_task=rows_per_task, panels_per_task=panels_per_task, extent=(oh, ow),
        )  # fmt: skip
        weight = kernel.inputs[list(kernel.body.inputs).index(anchor.operand(1))].buffer
        weight.packing = f"conv:{groups}:{in_block}:{vectors * self.width}"

    # -- recurrent layers ------------------------------------------------------------------------------------------

    def _recurrent(self, kernel: Kernel) -> None:
        """Tasks of a step share out blocks of hidden units, unless a step is too short to share."""
        anchor = kernel.anchor
        assert anchor is not None
        r = anchor.operand(1)
        directions, rows, n = r.tensor.static_shape
        kernel.inputs[list(kernel.body.inputs).index(r)].buffer.packing = f"recurrent:{self.width}"
        batch, gates, blocks = kernel.outputs[0].shape[2], rows // n, directions * -(-n // self.width)
        registers: int = self.target.vector.registers
        tallest = max(1, (registers - gates - 1) // gates)
        work = directions * rows * n * (batch if isinstance(batch, int) else 1)
        general = tuple(h for h in (8, 6, 4, 2, 1) if h <= tallest)
        kernel.params = {
            "rows": heights(batch, min(tallest, 8), batch, general),
            "blocks_per_task": blocks if work < 1 << 15 else max(1, blocks // TASKS),
        }

    def _image_tile(self, ocb: int) -> tuple[int, int]:
        """(output blocks, pixels) of a register tile: accumulators fill the registers, blocks divide."""
        registers: int = self.target.vector.registers
        pref = self.target.kernel("conv")
        vectors = pref.vectors if pref is not None else 2
        while ocb % vectors:
            vectors -= 1
        if vectors == 1 and ocb % 3 == 0 and registers >= 32:
            vectors = 3
        return vectors, min((registers - vectors - 1) // vectors, 12)


def heights(m: Dim, tallest: int, per_task: Dim, general: tuple[int, ...]) -> tuple[int, ...]:
    """The tile heights to instantiate: an even cut where the count is known and done by one task, else `general`."""
    if isinstance(m, int) and isinstance(per_task, int) and m <= per_task and m > 0:
        tiles = -(-m // tallest)
        return tuple(sorted({-(-m // tiles), max(1, m // tiles)}, reverse=True))
    return tuple(r for r in general if r <= tallest)


def _slices(n: int, rows: int, image: int, weights: int, panels: int, cache: int) -> int:
    """Into how many row slices an image is cut: where the weights fit half a cache, slices are the tasks, and stay in
    the cache that the thread filled with the previous kernel; else only as many as an image needs to fit."""
    fits = -(-image // (cache // 2))
    wanted = (
        -(-TASKS // (2 * n))
        if weights <= cache // 2
        else 1
        if panels * n >= TASKS // 2
        else -(-TASKS // (2 * panels * n))
    )
    return max(1, min(rows, max(fits, wanted)))


def _dense(image: View) -> bool:
    """Whether the pixels of a blocked image lie end to end."""
    step: Dim = image.buffer.layout.block
    for extent, stride in reversed(list(zip(image.shape[2:], image.strides[2:], strict=True))):
        if equal(stride, step) is not True:
            return False
        step = step * extent
    return True


def _rows(view: View) -> tuple[Dim, int]:
    return (view.shape[2], 1) if len(view.shape) == 4 else (1, 1)


def _split(rows: Dim, outer: Dim, multiple: int) -> Dim:
    """Rows per task so that some TASKS tasks come out, a multiple of the tile's rows."""
    if not (isinstance(rows, int) and isinstance(outer, int)):
        return 8 * multiple
    parts = max(1, min(rows, -(-TASKS // max(1, outer))))
    per = -(-rows // parts)
    return max(multiple, -(-per // multiple) * multiple)


def _copy_body(view: View) -> Graph:
    body = Graph("copy")
    body.add_output(body.add_input("x", TensorType(view.dtype, view.shape)))
    return body


def weight_array(view: View) -> np.ndarray:
    """The elements that a view of a row-major weight shows, as a NumPy view of the constant's data."""
    assert view.buffer.data is not None
    flat = np.ascontiguousarray(view.buffer.data.array).reshape(-1)
    shape = tuple(int(d) for d in view.shape)  # type: ignore[arg-type]
    strides = tuple(int(s) * flat.itemsize for s in view.strides)  # type: ignore[arg-type]
    assert isinstance(view.offset, int)
    return np.lib.stride_tricks.as_strided(flat[view.offset :], shape, strides, writeable=False)
