"""Steps of optimizers, by elementwise operators."""

from __future__ import annotations

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, lowers
from opcel_compiler.ir.graph import Value

DOMAIN = "ai.onnx.preview.training"


class _Step:
    """One optimizer's node: the learning rate, the update count, and groups of tensors after them."""

    def __init__(self, c: Lowering, groups: int) -> None:
        self.c = c
        count, rest = divmod(len(c.inputs) - 2, groups)
        if rest or count < 1:
            raise ModelError(f"node {c.origin!r} ({c.op_type}) has {len(c.inputs)} inputs, not 2 and {groups} groups")
        tensors = [c.x(2 + i) for i in range(groups * count)]
        self.rows = list(zip(*(tensors[i * count : (i + 1) * count] for i in range(groups)), strict=True))
        self.rate = c.x(0)
        self.count = c.cast(c.x(1), c.dtype(self.rate))

    def op(self, name: str, *operands: Value | float) -> Value:
        """An operator on values and numbers, of which one at least is a value."""
        like = next(v for v in operands if isinstance(v, Value))
        return self.c.emit(name, *(v if isinstance(v, Value) else self.c.number(v, like) for v in operands))

    def regularized(self, x: Value, gradient: Value) -> Value:
        return self.op("add", self.op("mul", x, self.c.attr_float("norm_coefficient", 0.0)), gradient)

    def mixed(self, a: Value, share: float, b: Value) -> Value:
        """share a + (1 - share) b."""
        return self.op("add", self.op("mul", a, share), self.op("mul", b, 1.0 - share))

    def started(self, later: Value | float, first: Value | float) -> Value:
        """`later` but for the first update, whose count is 0."""
        return self.op("where", self.op("less", 0.0, self.count), *self._values(later, first))

    def _values(self, *operands: Value | float) -> list[Value]:
        return [v if isinstance(v, Value) else self.c.number(v, self.rate) for v in operands]


def _grouped(rows: list[tuple[Value, ...]]) -> list[Value]:
    return [value for group in zip(*rows, strict=True) for value in group]


@lowers("Adagrad", domain=DOMAIN, first=1)
def adagrad(c: Lowering) -> list[Value]:
    s = _Step(c, 3)
    decay, epsilon = c.attr_float("decay_factor", 0.0), c.attr_float("epsilon", 1e-6)
    rate = s.op("div", s.rate, s.op("add", s.op("mul", s.count, decay), 1.0))
    out: list[tuple[Value, ...]] = []
    for x, gradient, squares in s.rows:
        g = s.regularized(x, gradient)
        h = s.op("add", squares, s.op("mul", g, g))
        step = s.op("div", s.op("mul", rate, g), s.op("add", s.op("sqrt", h), epsilon))
        out.append((s.op("sub", x, step), h))
    return _grouped(out)


@lowers("Adam", domain=DOMAIN, first=1)
def adam(c: Lowering) -> list[Value]:
    s = _Step(c, 4)
    alpha, beta = c.attr_float("alpha", 0.9), c.attr_float("beta", 0.999)
    epsilon, after = c.attr_float("epsilon", 1e-6), c.attr_float("norm_coefficient_post", 0.0)
    squares_left = s.op("sub", 1.0, s.op("pow", beta, s.count))
    left = s.op("sub", 1.0, s.op("pow", alpha, s.count))
    rate = s.started(s.op("div", s.op("mul", s.rate, s.op("sqrt", squares_left)), left), s.rate)
    out: list[tuple[Value, ...]] = []
    for x, gradient, mean, squares in s.rows:
        g = s.regularized(x, gradient)
        v, h = s.mixed(mean, alpha, g), s.mixed(squares, beta, s.op("mul", g, g))
        step = s.op("div", s.op("mul", rate, v), s.op("add", s.op("sqrt", h), epsilon))
        out.append((s.op("mul", s.op("sub", x, step), 1.0 - after), v, h))
    return _grouped(out)


@lowers("Momentum", domain=DOMAIN, first=1)
def momentum(c: Lowering) -> list[Value]:
    s = _Step(c, 3)
    alpha, mode = c.attr_float("alpha"), c.attr_str("mode")
    if mode not in ("standard", "nesterov"):
        raise ModelError(f"node {c.origin!r} (Momentum): mode {mode!r}")
    beta = s.started(c.attr_float("beta"), 1.0)
    out: list[tuple[Value, ...]] = []
    for x, gradient, moment in s.rows:
        g = s.regularized(x, gradient)
        v = s.op("add", s.op("mul", moment, alpha), s.op("mul", beta, g))
        step = v if mode == "standard" else s.op("add", g, s.op("mul", v, alpha))
        out.append((s.op("sub", x, s.op("mul", s.rate, step)), v))
    return _grouped(out)
