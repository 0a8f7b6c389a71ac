"""Writes small ONNX models: operators are calls, arrays among their operands become initializers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Operand = str | np.ndarray | float | None


class Net:
    """One model under construction. Values are their names; weights are drawn from a generator of its own."""

    def __init__(self, name: str, opset: int = 17, **domains: int) -> None:
        self.name = name
        self.imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in domains.items())]
        self.random = np.random.default_rng(len(name) + opset)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, name: str, *shape: int | str, dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, value: str, dtype: int = TensorProto.FLOAT, shape: Any = None) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name], f"out_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def weight(self, *shape: int, scale: float | None = None) -> np.ndarray:
        """Normal values, by default scaled to keep the variance of a contraction over all axes but the first."""
        spread = scale if scale is not None else float(np.prod(shape[1:])) ** -0.5
        return (self.random.standard_normal(shape) * spread).astype(np.float32)

    def const(self, value: Any, dtype: Any = None) -> str:
        name = f"c{len(self.initializers)}"
        array = np.asarray(value, dtype if dtype is not None else np.float32 if isinstance(value, float) else None)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def many(self, count: int, op: str, *operands: Operand, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node with `count` results."""
        names = ["" if v is None else v if isinstance(v, str) else self.const(v) for v in operands]
        label = f"{op.lower()}_{len(self.nodes)}"
        results = [label if count == 1 else f"{label}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op, names, results, f"node_{label}", domain=domain, **attributes))
        return results

    def __call__(self, op: str, *operands: Operand, **attributes: Any) -> str:
        return self.many(1, op, *operands, **attributes)[0]

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.initializers)
        return helper.make_model(graph, opset_imports=self.imports, ir_version=9)
