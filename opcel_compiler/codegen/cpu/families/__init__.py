"""One module for each group of kernel families: a Program kernel in, its `KernelUnit`s out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

from opcel_compiler.codegen.cpu.families import (
    attention,
    contraction,
    convolution,
    loops,
    movement,
    recurrent,
    rows,
    sampling,
    scatter,
    strassen,
    vector,
    winograd,
)
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.program import Kernel
from opcel_compiler.targets.schema import Target

Emitter = Callable[[Kernel, Target], Union[KernelUnit, list[KernelUnit]]]

EMITTERS: dict[str, Emitter] = {
    **attention.EMITTERS, **contraction.EMITTERS, **convolution.EMITTERS, **loops.EMITTERS,
    **movement.EMITTERS, **recurrent.EMITTERS, **rows.EMITTERS, **sampling.EMITTERS, **scatter.EMITTERS,
    **strassen.EMITTERS, **vector.EMITTERS, **winograd.EMITTERS,
}  # fmt: skip
"""How to generate each family's kernels."""
