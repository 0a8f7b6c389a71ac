"""One module for each group of kernel families: a Program kernel in, its `KernelUnit`s out. Each names its emitters by
family in EMITTERS; the modules are discovered."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Union

from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.program import Kernel
from opcel_compiler.targets.schema import Target

Emitter = Callable[[Kernel, Target], Union[KernelUnit, list[KernelUnit]]]

EMITTERS: dict[str, Emitter] = {}
"""How to generate each family's kernels."""

for _module in iter_modules(__path__):
    EMITTERS |= getattr(import_module(f"{__name__}.{_module.name}"), "EMITTERS", {})
