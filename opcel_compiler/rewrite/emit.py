"""Adding nodes beside a node, for passes that are no rules."""

from __future__ import annotations

from typing import Any

import numpy as np

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.types import DType


class Emit:
    """Adds nodes in front of `node`, or with `after` right behind it, with its origin."""

    def __init__(self, node: Node, after: bool = False) -> None:
        assert node.graph is not None
        self.graph, self.origin = node.graph, node.origin
        self.before = node._next if after else node

    def __call__(self, op: str, *operands: Value | None, **attrs: Any) -> Value:
        return self.graph.add(op, operands, attrs, before=self.before, origin=self.origin).result

    def constant(self, array: Any, dtype: DType) -> Value:
        """A constant of `array` converted to `dtype`."""
        data = Constant(np.asarray(array, dtype.numpy, order="C"), dtype)
        return self.graph.constant(data, before=self.before, origin=self.origin)
