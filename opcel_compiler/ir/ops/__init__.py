"""The operators of the IR. Importing this package registers every definition.

Two conventions hold in all of them. `infer` gives an unknown-rank result for an unknown-rank operand wherever the
shape matters, and raises InferenceError only for what is provably wrong: dims that may be equal are taken as equal.
`evaluate` wants every dim in `attrs` bound to an integer; floats narrower than 32 bits are computed in float32 and
rounded once, contractions run in the operands' precision, reductions and norms of float32 accumulate in float64.
"""

from opcel_compiler.ir.ops import (
    contraction,
    control,
    elementwise,
    foreign,
    movement,
    norm,
    quant,
    recurrent,
    reduction,
    sampling,
    scatter,
)

__all__ = [
    "contraction",
    "control",
    "elementwise",
    "foreign",
    "movement",
    "norm",
    "quant",
    "recurrent",
    "reduction",
    "sampling",
    "scatter",
]
