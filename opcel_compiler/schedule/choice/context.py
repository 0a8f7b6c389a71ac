"""Which family computes a kernel and with which parameters: what the choices of all families share."""

from __future__ import annotations

from typing import Any

import numpy as np

from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer, Control, Kernel, Program, Step, View, whole
from opcel_compiler.ir.program_split import fresh_name, split_epilogue
from opcel_compiler.ir.types import TensorType

TASKS = 16
"""Tasks per kernel that are aimed at: enough to even out threads that run at different speeds."""


class Choosing:
    """One program being decided: its target, the names that are taken, and the weights packed so far.

    `by_rows` are the images that threads write by rows, all channels of each. `weights` are the bytes of the program's
    weights, `cache` those of a core's second-level cache, 256 KiB where the description has none. `precision` is that
    of `PassContext`; a kernel that is computed in bf16 says so with params["precision"] = "bf16".
    """

    def __init__(self, program: Program, target: Any, precision: str = "f32") -> None:
        self.target = target
        self.precision = precision
        self.width: int = target.vector.width_f32
        self.names = {b.name for b in program.buffers}
        self.by_rows: set[Buffer] = set()
        self.packed: dict[tuple[View, Layout, str], Buffer] = {}
        self.rounded: dict[View, View] = {}
        """What holds the same elements in bf16, or in whole quads."""
        self.weights = sum(_bytes(b) for b in program.buffers if b.kind == "weight")
        cache = [m.size for m in target.memories if m.managed == "hardware"]
        self.cache: int = int(sorted(cache)[1]) if len(cache) > 1 else 1 << 18

    def name(self, base: str) -> str:
        """A name for a new buffer that begins with `base`."""
        return fresh_name(base, self.names)

    def packed_weight(self, view: View, layout: Layout, packing: str = "") -> Buffer:
        """The weight that `view` shows in `layout` and `packing`, made at the first call and shared by later ones."""
        key = (view, layout, packing)
        if key not in self.packed:
            t, data = TensorType(view.dtype, view.shape), Constant(weight_array(view), view.dtype)
            self.packed[key] = Buffer(
                self.name(f"{view.buffer.name}.packed"), t, "weight", layout, data=data, packing=packing
            )
        return self.packed[key]

    def passed(self, step: Step) -> None:
        """After `step` has been decided: forget what it makes untrue."""
        written = {v.buffer for v in step.outputs}
        every = isinstance(step, Control)
        self.rounded = {v: r for v, r in self.rounded.items() if not every and v.buffer not in written}

    def reference(self, kernel: Kernel, family: str) -> list[Step]:
        """`kernel` in its operator's reference family, its epilogue in a kernel of its own."""
        parts = split_epilogue(kernel, self.name(f"{kernel.outputs[0].buffer.name}.anchor"))
        parts[0].family = family
        out = parts[0].outputs[0]
        if out.is_contiguous:
            return list(parts)
        dense = whole(Buffer(self.name(f"{out.buffer.name}.dense"), TensorType(out.dtype, out.shape)))
        parts[0].outputs = [dense]
        return [parts[0], Kernel("copy", copy_body(dense), [dense], [out], origin=kernel.origin), *parts[1:]]


def _bytes(weight: Buffer) -> int:
    elements = weight.elements
    return elements * weight.element_bytes if isinstance(elements, int) else 0


def heights(m: Dim, tallest: int, per_task: Dim, general: tuple[int, ...]) -> tuple[int, ...]:
    """The tile heights to instantiate: an even cut where the count is known and done by one task, else `general`."""
    if isinstance(m, int) and isinstance(per_task, int) and m <= per_task and m > 0:
        tiles = -(-m // tallest)
        return tuple(sorted({-(-m // tiles), max(1, m // tiles)}, reverse=True))
    return tuple(r for r in general if r <= tallest)


def copy_body(view: View) -> Graph:
    """A body that moves what `view` shows."""
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
