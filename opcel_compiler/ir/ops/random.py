"""Random numbers."""

from __future__ import annotations

import math

import numpy as np

from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, Operands, define
from opcel_compiler.ir.ops.common import ints
from opcel_compiler.ir.types import F32, TensorType, Type

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _infer(_: Operands, attrs: Attrs) -> tuple[Type, ...]:
    return (TensorType(F32, attrs["shape"]),)


def _evaluate(_: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    shape = ints(attrs, "shape")
    if not attrs["fixed"]:
        return (np.random.default_rng().random(shape, np.float32),)
    key = np.uint64(attrs["key"] & (1 << 64) - 1)
    z = key + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (((z >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).reshape(shape),)


define(
    "random_uniform",
    "Random numbers in [0, 1), each from its place and `key` alone if `fixed`, else others in every run",
    "",
    _infer,
    _evaluate,
    (AttrDef("shape", "dims"), AttrDef("key", "int"), AttrDef("fixed", "bool", True)),
)
