"""Other parameters that a chosen kernel could have, to be measured, and how measured ones replace the chosen.

A kernel is known by its text: precision, operators, shapes and layouts, and nothing that is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.dims import product
from opcel_compiler.ir.program import Buffer, Kernel, View
from opcel_compiler.ir.program_split import source
from opcel_compiler.ir.text import own_attrs
from opcel_compiler.schedule.choice.context import heights
from opcel_compiler.targets.schema import Target

Params = dict[str, Any]
Name = Callable[[str], str]
PRODUCTS = ("gemm", "gemm.bf16")


class CandidateError(OpcelError):
    """Parameters that a kernel cannot have."""


def kernel_text(kernel: Kernel) -> str:
    """The kernel's canonical text: equal for kernels that have the same candidates. Weights have no layout in it."""
    precision = kernel.params.get("precision", "f32")
    inside = ", ".join(
        node.op + "".join(f" {key}={value}" for key, value in sorted(own_attrs(node).items()))
        for node in kernel.body.nodes if node.op != "constant"
    )  # fmt: skip
    taken, given = (", ".join(map(_operand, views)) for views in (kernel.inputs, kernel.outputs))
    return f"{precision}: {inside}: {taken} -> {given}".replace("\n", " ")


def _operand(view: View) -> str:
    buffer = view.buffer
    text = f"{view.dtype.name}[{','.join(map(str, view.shape))}]"
    if buffer.kind == "weight":
        return f"weight {text}"
    if not buffer.layout.is_plain:
        text += f" {buffer.layout}"
    natural = buffer.layout.strides(view.shape) if len(view.shape) == len(buffer.type.dims) else ()
    return text if view.strides == natural else f"{text} by {','.join(map(str, view.strides))}"


def is_static(kernel: Kernel) -> bool:
    """Whether every size and parameter is known, so that it can be run by itself."""
    dims = [d for view in kernel.views for d in (*view.shape, *view.strides, view.offset, *view.buffer.type.dims)]
    return all(isinstance(d, int) for d in dims)


def settable(kernel: Kernel) -> tuple[str, ...]:
    """The parameters that candidates may differ in; empty where a kernel has no candidates."""
    if kernel.family in PRODUCTS:
        return tuple(key for key in ("panel", "rows", "rows_per_task", "panels_per_task") if key in kernel.params)
    if kernel.family == "conv.blocked":
        known = ("out_blocks", "tile_rows", "tile_widths", "rows_per_task", "panels_per_task", "extent")
        return tuple(key for key in known if key in kernel.params)
    if kernel.family == "conv.winograd":
        return ("tile",)
    if kernel.family == "gemm.strassen":
        return ()
    if kernel.family == "gemm.nbits":
        return ("panels_per_task",) if isinstance(kernel.params["panels_per_task"], int) else ()
    return tuple(key for key, value in kernel.params.items() if key.endswith("_per_task") and isinstance(value, int))


def candidates(kernel: Kernel, target: Target) -> list[Params]:
    """What may be measured of a static kernel, the choice that it has first; each valid for `apply`."""
    keys = settable(kernel)
    if not keys or not is_static(kernel):
        return []
    chosen = {key: kernel.params[key] for key in keys}
    if kernel.family in PRODUCTS:
        found = _gemm(kernel, chosen, target)
    elif kernel.family == "conv.blocked":
        found = _conv(kernel, chosen, target)
    else:
        found = _tasks(chosen)
    out = [chosen]
    for params in found:
        if params not in out and is_valid(kernel, params):
            out.append(params)
    return out


def is_valid(kernel: Kernel, params: Mapping[str, Any]) -> bool:
    """Whether a kernel can have these parameters: each of its own kind, and tiles that cover every task."""
    try:
        _check(kernel, params)
    except CandidateError:
        return False
    return True


def apply(kernel: Kernel, params: Mapping[str, Any], name: Name) -> None:
    """Give a kernel these parameters and its weight the packing that goes with them; `name` makes a buffer's name.

    Raises CandidateError when it cannot have them.
    """
    _check(kernel, params)
    changed = {key for key, value in params.items() if kernel.params[key] != value}
    kernel.params.update(params)
    if not changed & {"panel", "out_blocks"}:
        return
    assert kernel.anchor is not None
    at = kernel.body.inputs.index(source(kernel.anchor.operand(1)))
    view = kernel.inputs[at]
    old = view.buffer
    layout, packing = old.layout, old.packing
    if "panel" in changed and packing:
        packing = f"{packing.rpartition(':')[0]}:{params['panel']}"
    elif "panel" in changed:
        layout = replace(layout, block=params["panel"])
    else:
        packing = f"{packing.rpartition(':')[0]}:{params['out_blocks'] * kernel.outputs[0].buffer.layout.block}"
    new = Buffer(name(f"{old.name}.tuned"), old.type, "weight", layout, old.memory, old.data, packing)
    strides = view.strides if layout == old.layout else layout.strides(view.shape)
    kernel.inputs[at] = View(new, view.shape, strides, view.offset)


def _check(kernel: Kernel, params: Mapping[str, Any]) -> None:
    keys = settable(kernel)
    for key, value in params.items():
        if key not in keys:
            raise CandidateError(f"a kernel of family {kernel.family} has no parameter {key!r} to set")
        if not _is_like(kernel.params[key], value):
            raise CandidateError(f"{key} of a kernel of family {kernel.family} cannot be {value!r}")
    if not is_static(kernel):
        raise CandidateError(f"a kernel of family {kernel.family} has sizes that are known only when it runs")
    p = {**kernel.params, **params}
    if p.get("tile") != kernel.params.get("tile"):
        raise CandidateError("the tile of a Winograd convolution is that of its transformed weights")
    if "blocks_per_task" in p and p["blocks_per_task"] % p.get("blocks", 1):
        raise CandidateError(f"blocks_per_task {p['blocks_per_task']} is no multiple of the {p['blocks']} done at once")
    if kernel.family in PRODUCTS:
        m = _rows(kernel)
        _check_cover("rows", p["rows"], _parts(m, p["rows_per_task"]))
        weight, before = _weight(kernel).buffer, kernel.params["panel"]
        packed = weight.kind == "weight" and (weight.layout.block == before or weight.packing == f"pairs:{before}")
        if p["panel"] != before and not packed:
            raise CandidateError("the panel of a product whose second operand is no packed weight cannot be set")
    elif kernel.family == "conv.blocked":
        blocks, before = p["out_blocks"], kernel.params["out_blocks"]
        if p["group_blocks"][0] % blocks:
            raise CandidateError(f"out_blocks {blocks} does not divide {p['group_blocks'][0]}")
        if blocks != before and not _weight(kernel).buffer.packing.startswith("conv:"):
            raise CandidateError("out_blocks of a convolution with weights in another packing cannot be set")
        if product(p["extent"]) != product(kernel.params["extent"]):
            raise CandidateError(f"an extent of {p['extent']} is not that of the image")
        _check_cover("tile_widths", p["tile_widths"], [p["extent"][1]])


def _is_like(chosen: Any, value: Any) -> bool:
    """A positive integer, or a tuple of some, as the chosen value is."""
    if isinstance(chosen, tuple):
        return isinstance(value, tuple) and bool(value) and all(_is_like(1, v) for v in value)
    return type(value) is int and 1 <= value <= 1 << 32


def _check_cover(key: str, sizes: tuple[int, ...], counts: Iterable[int]) -> None:
    if list(sizes) != sorted(set(sizes), reverse=True):
        raise CandidateError(f"{key} {sizes} do not descend")
    for count in counts:
        if not covers(sizes, count):
            raise CandidateError(f"{key} {sizes} do not add up to {count}")


def covers(sizes: tuple[int, ...], count: int) -> bool:
    """Whether tiles of these sizes cut an axis of `count`, taken as `detail::Cut` of csrc/base/tiling.h takes them."""
    while count > 0:
        even = -(-count // -(-count // sizes[0]))
        fitting = [size for size in sizes if size <= count]
        if not fitting:
            return False
        count -= min((size for size in fitting if size >= even), default=fitting[0])
    return True


def _parts(count: int, size: int) -> list[int]:
    """The different sizes of the parts of `count` when all but the last have `size`."""
    return list(dict.fromkeys([min(size, count), count % size or min(size, count)]))


def _rows(kernel: Kernel) -> int:
    assert kernel.anchor is not None
    a = kernel.inputs[kernel.body.inputs.index(source(kernel.anchor.operand(0)))]
    rows = product(a.shape[:-1]) if len(_weight(kernel).shape) == 2 else kernel.outputs[0].shape[-2]
    assert isinstance(rows, int)
    return rows


def _weight(kernel: Kernel) -> View:
    assert kernel.anchor is not None
    return kernel.inputs[kernel.body.inputs.index(source(kernel.anchor.operand(1)))]


def _tasks(chosen: Params) -> list[Params]:
    """Tasks of half and twice the size, in each of the ways that a task has a size."""
    out: list[Params] = []
    for key, value in chosen.items():
        if key.endswith("_per_task"):
            out += [{**chosen, key: size} for size in (2 * value, max(1, value // 2), 4 * value, max(1, value // 4))]
    return out


def _gemm(kernel: Kernel, chosen: Params, target: Target) -> list[Params]:
    """Tile heights and task sizes, and panels of half and twice the width."""
    assert target.vector is not None
    m, width = _rows(kernel), target.vector.width_f32
    preferred = target.kernel("gemm")
    general = preferred.rows if preferred is not None else (4, 2, 1)

    def tiled(params: Params, tallest: int) -> Params:
        cut = heights(m, tallest, params["rows_per_task"], (tallest, *(r for r in general if r < tallest), 1))
        return {**params, "rows": tuple(dict.fromkeys(cut))}

    def limit(panel: int) -> int:
        assert target.vector is not None
        vectors = max(1, panel // width)
        return max(1, min((target.vector.registers - vectors - 1) // vectors, 14))

    tallest = max(chosen["rows"])
    out: list[Params] = []
    for panel in (chosen["panel"], 2 * chosen["panel"], chosen["panel"] // 2):
        if panel < width:
            continue
        tasks = max(1, chosen["panels_per_task"] * chosen["panel"] // panel)
        base = {**chosen, "panel": panel, "panels_per_task": tasks}
        tall = tallest if panel == chosen["panel"] else min(limit(panel), m)
        out.append(tiled(base, tall))
        for rows in (2 * base["rows_per_task"], -(-base["rows_per_task"] // 2), m):
            out.append(tiled({**base, "rows_per_task": max(1, min(rows, m))}, tall))
        out += [{**tiled(base, tall), "panels_per_task": size} for size in (2 * tasks, max(1, tasks // 2), 1)]
        out += [tiled(base, t) for t in (tall - 1, tall + 1) if 1 <= t <= min(limit(panel), m)]
    return out


def _conv(kernel: Kernel, chosen: Params, target: Target) -> list[Params]:
    """Tiles of other widths and of other numbers of output blocks, and task sizes."""
    assert target.vector is not None
    registers = target.vector.registers
    preferred = target.kernel("conv")
    general = preferred.rows if preferred is not None else (4, 2, 1)

    def tiled(params: Params, widest: int) -> Params:
        width = params["extent"][1]
        return {
            **params,
            "tile_widths": heights(width, widest, width, (widest, *(w for w in general if w < widest), 1)),
        }

    out = _tasks(chosen)
    for blocks in (chosen["out_blocks"], 1, 2, 3, 4):
        limit = max(1, min((registers - blocks - 1) // blocks, 14))
        panels = max(1, chosen["panels_per_task"] * chosen["out_blocks"] // blocks)
        base = {**chosen, "out_blocks": blocks, "panels_per_task": panels}
        widest = max(1, limit // chosen["tile_rows"])
        out += [tiled(base, wide) for wide in dict.fromkeys((widest, widest - 1, -(-2 * widest // 3))) if wide > 0]
    if chosen["tile_rows"] > 1:
        out.append(tiled({**chosen, "tile_rows": 1}, max(chosen["tile_widths"])))
    oh, ow = chosen["extent"]
    image = kernel.outputs[0].shape[2:]
    if (oh, ow) != (image if len(image) == 2 else (1, *image)):
        for parts in (2 * oh, oh // 2):
            if parts and oh * ow % parts == 0:
                out.append(tiled({**chosen, "extent": (parts, oh * ow // parts)}, max(chosen["tile_widths"])))
    return out
