"""The operators of the IR. Importing this package registers the definitions of all its modules.

Two conventions hold in all of them. `infer` gives an unknown-rank result for an unknown-rank operand wherever the
shape matters, and raises InferenceError only for what is provably wrong: dims that may be equal are taken as equal.
`evaluate` wants every dim in `attrs` bound to an integer; floats narrower than 32 bits are computed in float32 and
rounded once, contractions run in the operands' precision, reductions and norms of float32 accumulate in float64.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
