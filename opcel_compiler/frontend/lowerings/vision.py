"""Images sampled at computed positions, windows as columns, determinants."""

from __future__ import annotations

from typing import Any

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.nn import per_axis
from opcel_compiler.frontend.lowerings.resample import Numbers
from opcel_compiler.ir.dims import Dim, floordiv, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32


def _one_of(c: Lowering, name: str, default: str, known: dict[str, str]) -> str:
    """What the attribute stands for. Raises ModelError for a word that is not known."""
    given = c.attr_str(name, default)
    if given not in known:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): {name} {given!r} is unknown")
    return known[given]


@lowers("GridSample", first=16)
def grid_sample(c: Lowering) -> Value:
    modes = {"linear": "linear", "bilinear": "linear", "nearest": "nearest", "cubic": "cubic", "bicubic": "cubic"}
    mode = _one_of(c, "mode", "linear", modes)
    padding = _one_of(c, "padding_mode", "zeros", {k: k for k in ("zeros", "border", "reflection")})
    corners = bool(c.attr_int("align_corners", 0))
    x, grid = c.x(0), c.x(1)
    if not c.dtype(grid).is_float:
        raise ModelError(
            f"node {c.origin!r} (GridSample): the grid must hold floating-point numbers, not {c.dtype(grid)}"
        )
    y = c.emit("grid_sample", c.cast(x, F32), c.cast(grid, F32), mode=mode, padding=padding, align_corners=corners)
    return c.cast(y, c.dtype(x))


@lowers("AffineGrid", first=20)
def affine_grid(c: Lowering) -> Value:
    """For each position of an image of `size`, theta times its coordinates, each from -1 to 1."""
    theta, k = c.x(0), Numbers(c)
    n, axes = c.shape(theta)[0], c.shape(theta)[1]
    size = c.sizes(c.x(1), "the size")
    if not isinstance(axes, int) or len(size) != axes + 2:
        raise ModelError(f"node {c.origin!r} (AffineGrid): theta {c.shape(theta)} does not fit a size {list(size)}")

    def column(i: int) -> Value:
        """theta's column i, [n, 1, …, axes]."""
        return c.reshape(c.slice(theta, 2, i, 1), (n, *[1] * axes, axes))

    total = column(axes)
    for i in range(axes):
        d = size[2 + i]
        at, extent = k("cast", k.range(d), dtype=F32), k.of(d)
        if c.attr_int("align_corners", 0):
            last = k("max", k("sub", extent, 1.0), 1.0)
            coordinate = k("sub", k("div", k("mul", at, 2.0), last), 1.0)
        else:
            coordinate = k("sub", k("div", k("add", k("mul", at, 2.0), 1.0), extent), 1.0)
        along = c.cast(k.value(k.shaped(coordinate, d, *[1] * (axes - i))), c.dtype(theta))
        total = c.emit("add", total, c.emit("mul", along, column(axes - 1 - i)))
    return c.emit("expand", total, shape=(n, *size[2:], axes))


@lowers("RoiAlign", first=10)
def roi_align(c: Lowering) -> Value:
    x = c.x(0)
    default = "output_half_pixel" if c.opset < 16 else "half_pixel"
    half = _one_of(c, "coordinate_transformation_mode", default, {"half_pixel": "yes", "output_half_pixel": ""})
    y = c.emit(
        "roi_align",
        c.cast(x, F32),
        c.cast(c.x(1), F32),
        c.x(2),
        size=(c.attr_int("output_height", 1), c.attr_int("output_width", 1)),
        mode=_one_of(c, "mode", "avg", {"avg": "avg", "max": "max"}),
        samples=max(c.attr_int("sampling_ratio", 0), 0),
        scale=c.attr_float("spatial_scale", 1.0),
        half_pixel=bool(half),
    )
    return c.cast(y, c.dtype(x))


@lowers("DeformConv", first=19)
def deform_conv(c: Lowering) -> Value:
    """A product of the weights and the columns of shifted windows."""
    x, w, offset, bias, mask = c.x(0), c.x(1), c.x(2), c.opt(3), c.opt(4)
    kernel = c.shape(w)[2:]
    if c.rank(x) != 4 or not all(isinstance(d, int) for d in kernel):
        raise Unsupported(f"a DeformConv of rank {c.rank(x)} with a kernel {list(kernel)} has no lowering")
    taps, groups = tuple(int(d) for d in kernel if isinstance(d, int)), c.attr_int("group", 1)
    window: dict[str, Any] = {"strides": per_axis(c, "strides", 2), "dilations": per_axis(c, "dilations", 2)}
    pads = c.attr_ints("pads", (0, 0, 0, 0))
    if len(pads) != 4 or any(p < 0 for p in pads):
        raise Unsupported(f"pads {list(pads)} of a DeformConv have no lowering")
    columns = c.emit(
        "deform_columns", x, offset, mask, kernel=taps, pads=tuple(pads), groups=c.attr_int("offset_group", 1), **window
    )
    n, rows, oh, ow = c.shape(columns)
    channels, own = c.shape(w)[0], floordiv(rows, groups)
    weights = c.reshape(w, (groups, floordiv(channels, groups), own))
    y = c.emit("matmul", weights, c.reshape(columns, (n, groups, own, oh * ow)))
    y = c.reshape(y, (n, channels, oh, ow))
    return y if bias is None else c.emit("add", y, c.channels(bias, 4))


@lowers("Col2Im", first=18)
def col2im(c: Lowering) -> Value:
    x = c.x(0)
    size, kernel = c.sizes(c.x(1), "the size of the images"), c.sizes(c.x(2), "the size of the windows", 1)
    n = len(size)
    pads = c.attr_ints("pads", (0,) * (2 * n))
    window = {"strides": per_axis(c, "strides", n), "dilations": per_axis(c, "dilations", n)}
    y = c.emit("col2im", c.cast(x, F32), size=tuple(size), kernel=tuple(kernel), pads=tuple(pads), **window)
    return c.cast(y, c.dtype(x))


@lowers("Det", first=11)
def determinant(c: Lowering) -> Value:
    """The product of the diagonal of an upper triangle."""
    x = c.x()
    dims = c.shape(x)
    if len(dims) < 2:
        raise ModelError(f"node {c.origin!r} (Det): %{x.name} has rank {len(dims)}; a matrix has two axes")
    lead, n = dims[:-2], dims[-1]
    wide = c.dtype(x) if c.dtype(x).bits > 32 else F32
    flat = c.reshape(c.emit("echelon", c.cast(x, wide)), (*lead, n * n))
    if not isinstance(n, int):
        raise Unsupported(f"the determinant of matrices of symbolic size {n} has no lowering")
    at = {"starts": (0,) * (len(lead) + 1), "sizes": (*lead, n), "steps": (*[1] * len(lead), n + 1)}
    y = c.emit("reduce_prod", c.emit("slice", flat, **at), axes=(len(lead),), keepdims=False)
    return c.cast(y, c.dtype(x))


@lowers("MaxUnpool", first=9)
def max_unpool(c: Lowering) -> Value:
    """Zeros with each element at its index."""
    x, indices, given = c.x(0), c.x(1), c.opt(2)
    dims, n = c.shape(x), c.rank(x) - 2
    kernel, strides = per_axis(c, "kernel_shape", n), per_axis(c, "strides", n)
    pads = c.attr_ints("pads", (0,) * (2 * n))
    own: list[Dim] = list(dims[:2])
    own += [(dims[2 + i] - 1) * strides[i] - pads[i] - pads[n + i] + kernel[i] for i in range(n)]
    total, count = product(own), product(dims)
    zeros = c.emit("expand", c.number(0, x), shape=(total,))
    flat = c.emit(
        "scatter_elements", zeros, c.reshape(indices, (count,)), c.reshape(x, (count,)), axis=0, reduction="none"
    )
    y = c.reshape(flat, own)
    if given is None:
        return y
    wanted = c.sizes(given, "the size of the result")
    if len(wanted) != len(own):
        raise ModelError(f"node {c.origin!r} (MaxUnpool): an output_shape of {len(wanted)} sizes for rank {len(own)}")
    beyond = tuple(a - b for a, b in zip(wanted, own, strict=True))
    return c.emit("pad", y, pads=(*[0] * len(own), *beyond)) if any(d != 0 for d in beyond) else y
