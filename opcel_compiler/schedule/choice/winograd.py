"""Winograd convolutions F(m x m, 3 x 3): where they are faster than direct ones, and how tiles are grouped."""

from __future__ import annotations

from dataclasses import dataclass

from opcel_compiler.ir.dims import product
from opcel_compiler.ir.program import Kernel
from opcel_compiler.schedule.choice.context import TASKS, Choosing
from opcel_compiler.schedule.choice.convolution import image_tile

SIZES = (2, 4)
"""Output pixels of a tile along an axis."""
STACK = 704 << 10
"""Bytes of scratch that a kernel may take from the stack of the thread that runs it."""
EFFICIENCY = 0.95
"""Of the peak, what register tiles reach."""
WORTH = 20e-6
"""Seconds of a core that a direct convolution must take before another one is considered: less is mostly overhead."""
GAIN = 0.9
"""Of the direct convolution's time, what Winograd's may take at most."""


@dataclass(frozen=True)
class Winograd:
    """F(`m` x `m`, 3 x 3) for one kernel: `tiles` of all images in `groups`, whose tiles are transformed by
    each task that needs them (`fused`), or all before tasks for each group and panel of `vectors` output blocks."""

    m: int
    tiles: int
    groups: int
    fused: bool
    vectors: int
    blocks: tuple[int, int]

    @property
    def group(self) -> int:
        """The most tiles in a group."""
        return -(-self.tiles // self.groups)


def plan_winograd(kernel: Kernel, choosing: Choosing) -> Winograd | None:
    """The tile that makes this convolution on blocked channels fastest; None where that is the direct one."""
    plans = winograd_plans(kernel, choosing)
    if not plans:
        return None
    anchor, y = kernel.anchor, kernel.outputs[0]
    assert anchor is not None
    w = anchor.operand(1).tensor.static_shape
    cost, best = min(((_seconds(p, choosing), p) for p in plans), key=lambda c: c[0])
    pixels = product((y.shape[0], *y.shape[2:], *w[2:]))
    work = 2.0 * pixels * product(best.blocks) * choosing.width**2  # type: ignore[operator]
    x = kernel.inputs[list(kernel.body.inputs).index(anchor.operand(0))].buffer
    peak = float(choosing.target.peak(x.layout.storage)) if x.layout.storage else f32_peak(choosing)
    direct = max(work / (EFFICIENCY * peak), read_seconds(w[0] * w[1] * 9 * x.element_bytes, choosing))
    return best if direct > WORTH and cost < GAIN * direct else None


def winograd_plans(kernel: Kernel, choosing: Choosing) -> list[Winograd]:
    """A plan for each size of tile; none where the convolution is of another kind."""
    anchor, y = kernel.anchor, kernel.outputs[0]
    assert anchor is not None
    a = anchor.attrs
    w = anchor.operand(1).tensor.static_shape
    fits = (
        not a["exact"]
        and w[2:] == (3, 3)
        and set(a["strides"]) == {1}
        and set(a["dilations"]) == {1}
        and a["groups"] == 1
    )
    sizes = [d for d in (y.shape[0], *y.shape[2:]) if isinstance(d, int) and d > 0]
    if not fits or kernel.params["kind"] != "blocked" or len(sizes) != 3:
        return []
    ocb, icb = (-(-c // choosing.width) for c in w[:2])
    n, oh, ow = sizes
    vectors, _ = image_tile(ocb, choosing)
    return [_group(m, n * -(-oh // m) * -(-ow // m), vectors, (ocb, icb), choosing) for m in SIZES]


def use_winograd(kernel: Kernel, plan: Winograd, choosing: Choosing) -> None:
    """Make `kernel`, a convolution on blocked channels, one of family conv.winograd."""
    anchor = kernel.anchor
    assert anchor is not None
    least, most = plan.tiles // plan.groups, plan.group
    tallest = image_tile(plan.blocks[0], choosing)[1]
    if plan.fused:
        choosing.by_rows.add(kernel.outputs[0].buffer)
    kernel.family = "conv.winograd"
    kernel.params = {
        "tile": plan.m, "out_blocks": plan.vectors, "group_blocks": plan.blocks, "groups": plan.groups,
        "group": most, "heights": tuple(sorted({h for g in (least, most) for h in _even(g, tallest)}, reverse=True)),
        "fused": plan.fused,
    }  # fmt: skip
    weight = kernel.inputs[list(kernel.body.inputs).index(anchor.operand(1))].buffer
    weight.packing = f"winograd:{plan.m}:{choosing.width}:{plan.vectors * choosing.width}"


def transformed_bytes(shape: tuple[int, ...], packing: str) -> int:
    """Bytes of filters of `shape` in `packing`; "winograd:m:block:panel"."""
    m, block, panel = map(int, packing.split(":")[1:])
    return 4 * (m + 2) ** 2 * (-(-shape[0] // panel) * panel) * (-(-shape[1] // block) * block)


def _group(m: int, tiles: int, vectors: int, blocks: tuple[int, int], choosing: Choosing) -> Winograd:
    """As many groups as there are tasks wanted, of a register tile or more, V and M in half a core's cache if that
    leaves so much; staged where even a few tiles do not fit the stack."""
    tallest = image_tile(blocks[0], choosing)[1]
    tile = 4 * choosing.width * (m + 2) ** 2 * (blocks[1] + vectors)
    groups = TASKS
    while groups > 1 and tiles < groups * tallest:
        groups //= 2
    while tile * -(-tiles // groups) > choosing.cache // 2 and tiles >= 2 * groups * tallest:
        groups *= 2
    while tile * -(-tiles // groups) > STACK and tiles >= 2 * groups * tallest // 3:
        groups += 1
    if tile * -(-tiles // groups) <= STACK:
        return Winograd(m, tiles, groups, True, vectors, blocks)
    groups = max(1, tiles // tallest, -(-TASKS * vectors // blocks[0]))
    return Winograd(m, tiles, min(tiles, groups), False, vectors, blocks)


def _seconds(plan: Winograd, choosing: Choosing) -> float:
    """What a core's part takes: products at the peak, transforms at one vector operation a cycle; or reading U."""
    ocb, icb = plan.blocks
    points, width = (plan.m + 2) ** 2, choosing.width
    peak = f32_peak(choosing)
    products = 2.0 * plan.tiles * points * ocb * icb * width**2 / (EFFICIENCY * peak)
    operations = {2: 70, 4: 250}[plan.m] * plan.tiles * (icb + ocb)
    transforms = operations * 2.0 * width / peak
    return max(products + transforms, read_seconds(4 * points * ocb * icb * width**2, choosing))


def read_seconds(size: int, choosing: Choosing) -> float:
    """Seconds to read weights of `size` bytes from where the program's weights stay."""
    level = next(m for m in choosing.target.memories if m.managed == "hardware")
    for m in choosing.target.memories:
        if m.managed == "hardware" and m.size >= choosing.weights:
            level = m
    return size / float(level.bandwidth) * (2 if level is choosing.target.memories[0] else 1)


def f32_peak(choosing: Choosing) -> float:
    """Operations on f32 a second of a core, a multiply-add counted as two."""
    return float(choosing.target.peak("f32"))


def _even(count: int, tallest: int) -> set[int]:
    tiles = -(-count // tallest)
    return {-(-count // tiles), count // tiles}
