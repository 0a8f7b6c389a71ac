"""The iteration domain of a kernel, from its body."""

from __future__ import annotations

from opcel_compiler.ir.access import analyze
from opcel_compiler.ir.program import AccessMap, Axis, Kernel, Program


def domain(kernel: Kernel) -> tuple[tuple[Axis, ...], tuple[AccessMap, ...]]:
    """(axes, maps) of a kernel: what `Kernel.axes` and `Kernel.maps` hold.

    Parallel axes d0, d1, … are the axes of the body's principal output, less those of extent 1 and those that an
    operator needs whole (the row of a softmax, the joined axis of a concat). Reduce axes are the anchor's: k of a
    matmul; ic, k0, k1, … of a conv; k0, … of a pool; r<axis> of a reduction; t (keys) of an attention.
    """
    access = analyze(kernel.body, kernel.anchor)
    return access.axes, tuple(access.values[v] for v in (*kernel.body.inputs, *kernel.body.outputs))


def set_domains(program: Program) -> None:
    """Set the axes and maps of every kernel; tiles, which are stated over the old axes, are dropped."""
    for kernel in program.kernels:
        kernel.axes, kernel.maps = domain(kernel)
        kernel.tiles = {}
