"""How ONNX operators become ours, one function each. Importing this package registers them."""

from opcel_compiler.frontend.lowerings import (
    contrib,
    math,
    movement,
    nn,
    norm,
    recurrent,
    reduction,
    resize,
    scatter,
    shape,
)

__all__ = ["contrib", "math", "movement", "nn", "norm", "recurrent", "reduction", "resize", "scatter", "shape"]
