"""How a buffer's logical elements lie in memory. Only Program buffers carry a layout."""

from __future__ import annotations

from dataclasses import dataclass, replace

from opcel_compiler.ir.dims import Dim, ceildiv, product

STORAGES = ("", "bf16")


@dataclass(frozen=True, slots=True)
class Layout:
    """Row-major over `order` (outermost axis first; () means 0..rank-1), with one axis optionally split.

    `block`: axis `block_axis` is cut into blocks of this many elements; the block index keeps the axis' place in the
    order and the position inside the block is innermost. The last block is filled with `pad_value`.
    `halo[i]`: (before, after) elements of `pad_value` around axis i; () means none anywhere.
    `storage`: "bf16" when elements that are logically f32 lie in memory as bf16, rounded to nearest even as they are
    written; "" when they lie as their type.
    `room`: (axis, size): in memory the axis has `size` places, of which the tensor takes the first; () means none.
    """

    order: tuple[int, ...] = ()
    block_axis: int = 1
    block: int = 1
    halo: tuple[tuple[int, int], ...] = ()
    pad_value: float = 0.0
    storage: str = ""
    room: tuple[int, int] | tuple[()] = ()

    @property
    def is_plain(self) -> bool:
        """Row-major in the logical order, unblocked, without a halo, elements as their type."""
        in_order = self.block == 1 and list(self.order) == sorted(self.order)
        return in_order and not any(sum(h) for h in self.halo) and not self.storage and not self.room

    def _outer(self, shape: tuple[Dim, ...]) -> list[Dim]:
        dims: list[Dim] = list(shape)
        for axis, (before, after) in enumerate(self.halo):
            dims[axis] = dims[axis] + before + after
        if self.room:
            dims[self.room[0]] = self.room[1]
        if self.block > 1:
            dims[self.block_axis] = ceildiv(dims[self.block_axis], self.block)
        return dims

    def elements(self, shape: tuple[Dim, ...]) -> Dim:
        """How many elements a buffer of this logical shape occupies."""
        return product(self._outer(shape)) * self.block

    def strides(self, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """The step in elements per logical axis; for the blocked axis, the step from block to block."""
        dims = self._outer(shape)
        out: list[Dim] = [0] * len(dims)
        step: Dim = self.block
        for axis in reversed(self.order or tuple(range(len(dims)))):
            out[axis] = step
            step = step * dims[axis]
        return tuple(out)

    def interior(self, shape: tuple[Dim, ...]) -> Dim:
        """The offset in elements of the first logical element, past the leading halo."""
        strides = self.strides(shape)
        out: Dim = 0
        for axis, (before, _) in enumerate(self.halo):
            out = out + strides[axis] * before
        return out

    def with_halo(self, halo: tuple[tuple[int, int], ...]) -> Layout:
        """This layout with a halo at least as wide as `halo` on every side."""
        if not halo:
            return self
        have = self.halo or tuple((0, 0) for _ in halo)
        joined = tuple((max(a, c), max(b, d)) for (a, b), (c, d) in zip(have, halo, strict=True))
        return replace(self, halo=joined)

    def stored_as(self, storage: str) -> Layout:
        """This layout with elements that lie in memory as `storage`."""
        return replace(self, storage=storage)

    def __str__(self) -> str:
        if self.is_plain and not self.order:
            return "plain"
        parts = []
        if self.order:
            parts.append("order=" + ".".join(map(str, self.order)))
        if self.block > 1:
            parts.append(f"block={self.block}@{self.block_axis}")
        if self.halo:
            parts.append("halo=" + ".".join(f"{a}-{b}" for a, b in self.halo))
        if self.pad_value:
            parts.append(f"pad={float(self.pad_value)!r}")
        if self.storage:
            parts.append(f"storage={self.storage}")
        if self.room:
            parts.append(f"room={self.room[1]}@{self.room[0]}")
        return f"layout<{', '.join(parts)}>"


PLAIN = Layout()
