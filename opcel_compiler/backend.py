"""OPCEL behind ONNX's own backend interface (`onnx.backend.base`), for tools and test suites written for that.

    rep = opcel_compiler.backend.prepare(model)
    outputs = rep.run([x])

A model is compiled without a proof, and what has no kernel runs in ONNX Runtime, unless the options of `compile` that
are passed on say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TypeProto, helper
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict

from opcel_compiler.driver import compile as compile_model
from opcel_compiler.errors import OpcelError
from opcel_compiler.runtime.model import CompiledModel


class BackendError(OpcelError):
    """A device that is no CPU, or inputs that do not fit."""


class OpcelRep(BackendRep):
    """A compiled model: `model` is what `compile` returned, `inputs` and `outputs` are its names, in the order."""

    def __init__(self, model: CompiledModel) -> None:
        self.model = model
        self.inputs = tuple(spec.name for spec in model.inputs)
        self.outputs = tuple(spec.name for spec in model.outputs)
        self._result = namedtupledict("Outputs", list(self.outputs))

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs in order, which can be indexed by name too. Raises BackendError, FeedError and RunError.

        `inputs` are values in the order of the model's inputs, one value, or values by name.
        """
        if isinstance(inputs, Mapping):
            feeds = dict(inputs)
        else:
            values = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
            if len(values) > len(self.inputs):
                raise BackendError(f"{len(values)} inputs given; the model takes {', '.join(self.inputs) or 'none'}")
            feeds = dict(zip(self.inputs, values, strict=False))
        found = self.model.run(feeds)
        result: tuple[Any, ...] = self._result(*(found[name] for name in self.outputs))
        return result


class OpcelBackend(Backend):
    """The interface. Models are ModelProtos, bytes or paths."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the model compiles for the device; the import and the passes are run to find out."""
        from opcel_compiler.check import check

        try:
            return cls.supports_device(device) and not check(model).refused
        except OpcelError:
            return False

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> OpcelRep:
        """Compile a model; `kwargs` are those of `compile`. Raises BackendError, and what `compile` raises."""
        if not cls.supports_device(device):
            raise BackendError(f"the device {device!r} is not supported; models run on CPU")
        return OpcelRep(compile_model(model, **{"proof": False, "fallback": "allow", **kwargs}))

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Compile a model and run it once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one operator on arrays, one for each input that the node names.

        `opset_version` is that of the node's domain, by default the newest; `outputs_info` gives the types and shapes
        of outputs that ONNX's inference does not know.
        """
        version = int(kwargs.pop("opset_version", 0)) or _newest(node)
        values = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        model = _model_of(node, [np.asarray(v) for v in values], version, outputs_info)
        return cls.run_model(model, values, device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models run on the device, such as "CPU" or "CPU:0"."""
        try:
            return bool(Device(device).type == DeviceType.CPU)
        except (AttributeError, ValueError):
            return False


def _newest(node: NodeProto) -> int:
    return max((s.since_version for s in onnx.defs.get_all_schemas() if s.domain == node.domain), default=1)


def _model_of(
    node: NodeProto, arrays: Sequence[np.ndarray], version: int, outputs_info: Sequence[Any] | None
) -> ModelProto:
    names = [name for name in node.input if name]
    if len(names) != len(arrays):
        raise BackendError(f"the node has the inputs {', '.join(names) or 'none'}, and {len(arrays)} arrays are given")
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, arrays, strict=True)
    ]
    graph = helper.make_graph([node], "node", given, [])
    imports = [helper.make_opsetid(node.domain, version)]
    model = helper.make_model(graph, opset_imports=imports)
    types: dict[str, TypeProto] = {v.name: v.type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    for name, (dtype, shape) in zip(node.output, outputs_info or (), strict=False):
        code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        types.setdefault(name, helper.make_tensor_type_proto(code, shape))
    for name in filter(None, node.output):
        model.graph.output.append(helper.make_value_info(name, types.get(name, TypeProto())))
    return model


is_compatible = OpcelBackend.is_compatible
prepare = OpcelBackend.prepare
run_model = OpcelBackend.run_model
run_node = OpcelBackend.run_node
supports_device = OpcelBackend.supports_device
