"""Pad in all its modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, lowers, nonnegative
from opcel_compiler.frontend.lowerings import late
from opcel_compiler.frontend.lowerings.resample import Axis, Numbers, resampled
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32, I32


def _pads(c: Lowering, rank: int) -> tuple[Dim, ...] | None:
    """A begin for each axis, then an end for each; None when they are computed from data."""
    if c.opset < 11:
        pads: tuple[Dim, ...] = c.attr_ints("pads")
    elif not c.is_known(c.x(1)) or not late.known_axes(c, c.opt(3)):
        return None
    else:
        pads = c.dims(c.x(1), "the pads")
        axes_in = c.opt(3)
        if axes_in is not None:
            axes = [c.axis(a, rank) for a in c.known_ints(axes_in, "the axes")]
            if len(pads) != 2 * len(axes):
                raise ModelError(f"node {c.origin!r} (Pad): {len(pads)} pads for {len(axes)} axes")
            full: list[Dim] = [0] * (2 * rank)
            for i, a in enumerate(axes):
                full[a], full[rank + a] = pads[i], pads[len(axes) + i]
            pads = tuple(full)
    if len(pads) != 2 * rank:
        raise ModelError(f"node {c.origin!r} (Pad): {len(pads)} pads for rank {rank}")
    return pads


@lowers("Pad")
def pad(c: Lowering) -> Value:
    x = c.x()
    rank = c.rank(x)
    mode, fill = c.attr_str("mode", "constant"), c.attr_float("value", 0.0)
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise ModelError(f"node {c.origin!r} (Pad): mode {mode!r} is unknown")
    pads = _pads(c, rank)
    signed = pads is not None and all(isinstance(d, int) or nonnegative(d) for d in pads)
    if pads is None or (mode == "constant" and not signed):
        if c.opset < 11:
            raise ModelError(f"node {c.origin!r} (Pad): the pads {pads} are no integers")
        x, pads = late.cropped(c, x, late.paddings(c, c.x(1), c.opt(3), rank))
    cuts = [-d if isinstance(d, int) and d < 0 else 0 for d in pads]
    for i in range(rank):
        x = c.slice(x, i, cuts[i], c.shape(x)[i] - cuts[i] - cuts[rank + i])
    pads = tuple(0 if isinstance(d, int) and d < 0 else d for d in pads)
    if all(d == 0 for d in pads):
        return x
    if mode != "constant":
        return _extended(c, x, pads, mode)
    value = c.number(fill, x) if c.opset < 11 else c.opt(2)
    if value is not None:
        return c.emit("pad", x, c.reshape(value, ()), pads=pads, mode=mode)
    return c.emit("pad", x, pads=pads, mode=mode)


def _extended(c: Lowering, x: Value, pads: Sequence[Dim], mode: str) -> Value:
    """`x` read at places that continue it on each side; a pad may be negative."""
    k, dims = Numbers(c), c.shape(x)
    rank = len(dims)
    tables = {}
    for a, d in enumerate(dims):
        if pads[a] == 0 and pads[rank + a] == 0:
            continue
        size = pads[a] + d + pads[rank + a]
        places = k.range(size, -pads[a])
        tables[a] = Axis(size, k.shaped(_continued(k, places, d, mode), 1, size))
    if c.dtype(x) == F32 and set(tables) <= {rank - 2, rank - 1}:
        return resampled(c, x, tables)
    for a, table in tables.items():
        x = c.emit("gather", x, k.value(k.shaped(table.places, table.size)), axis=a)
    return x


def _continued(k: Numbers, places: Any, d: Dim, mode: str) -> Any:
    """Where on an axis of `d` elements the element at each of `places` is taken from."""
    size = k("cast", k.integer(d), dtype=I32)
    one, zero = k("cast", 1.0, dtype=I32), k("cast", 0.0, dtype=I32)
    last = k("sub", size, one)
    if mode == "edge":
        return k("min", k("max", places, zero), last)
    if mode == "wrap":
        return k("mod", places, size, fmod=False)
    period = k("max", k("add", last, last), one)
    at = k("mod", places, period, fmod=False)
    return k("min", at, k("sub", period, at))
