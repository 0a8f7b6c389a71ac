"""The engines that run a case. Each is `run(case) -> Verdict`; OPCEL's says also how the case ran."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.conformance.cases import Case
from benchmarks.conformance.judge import right_beside_exact, wrong

TYPE_ONLY = {"Constant", "EyeLike", "OptionalHasElement", "RandomNormalLike", "RandomUniformLike", "Shape", "Size"}
"""Operators that read no element of their inputs: known when the model is compiled, and native all the same."""
ENGINES = ("opcel", "ort", "openvino")


class Verdict(NamedTuple):
    """native, fallback, folded, refused or wrong for OPCEL; pass, wrong or refused for others. And why."""

    status: str
    why: str = ""


def run_opcel(case: Case) -> Verdict:
    """native: no region, and some element of an input is read, or the operator reads none by its definition."""
    import opcel_compiler
    from opcel_compiler.errors import OpcelError

    try:
        model = opcel_compiler.compile(case.model, proof=False, fallback="allow")
    except OpcelError as error:
        return Verdict("refused", _short(error))
    with model:
        outputs = [value.name for value in case.model.graph.output]

        def run(feeds: Mapping[str, Any]) -> Sequence[Any]:
            got = model.run(dict(feeds))
            return [got[name] for name in outputs]

        verdict = _judged(case, run, OpcelError)
        if verdict.status != "pass":
            return verdict
        if model.report["fallback"]:
            return Verdict("fallback", _reasons(model.report["fallback"]))
        unread = set(model.report["model"].get("unread_inputs", ()))
        if case.input_names and unread.issuperset(case.input_names) and not TYPE_ONLY.issuperset(case.ops):
            return Verdict("folded", "no element of an input is read")
        return Verdict("native", verdict.why)


def _reasons(fallback: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(dict.fromkeys(f"{f['op']}: {f['reason']}" for f in fallback))


def run_ort(case: Case) -> Verdict:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    plain = PlainTypes(case.model)
    where = os.fspath(case.folder) if case.folder else "."
    try:
        here = Path.cwd()
        os.chdir(where)  # external data lies beside the model
        try:
            session = ort.InferenceSession(plain.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        finally:
            os.chdir(here)
    except Exception as error:
        return Verdict("refused", _short(error))
    return _judged(case, lambda feeds: plain.restored(session.run(None, plain.fed(feeds))), Exception)


def run_openvino(case: Case) -> Verdict:
    import openvino as ov

    plain = PlainTypes(case.model)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    try:
        core = _openvino_core()
        compiled = core.compile_model(core.read_model(plain.model.SerializeToString()), "CPU", settings)
        ports = {name: port for port in compiled.inputs for name in port.get_names()}
    except Exception as error:
        return Verdict("refused", _short(error))

    def run(feeds: Mapping[str, Any]) -> Sequence[Any]:
        tensors = {ports[n]: ov.Tensor(np.ascontiguousarray(v)) for n, v in plain.fed(feeds).items() if n in ports}
        results = compiled(tensors)
        return plain.restored([results[i] for i in range(len(compiled.outputs))])

    return _judged(case, run, Exception)


@cache
def _openvino_core() -> Any:
    import openvino as ov

    return ov.Core()


RUNNERS: dict[str, Callable[[Case], Verdict]] = {"opcel": run_opcel, "ort": run_ort, "openvino": run_openvino}


def _judged(case: Case, run: Callable[[Mapping[str, Any]], Sequence[Any]], error: type[Exception]) -> Verdict:
    """pass, or the first data set that is wrong, or the `error` of a run."""
    note = ""
    for inputs, want in case.data_sets:
        try:
            got = run(case.feeds(inputs))
        except error as failed:
            return Verdict("refused", _short(failed))
        if why := wrong(case, inputs, want, got):
            if not right_beside_exact(case, inputs, want, got):
                return Verdict("wrong", why)
            note = "the suite's values are further from those in float64 than its tolerance"
    return Verdict("pass", note)


def _short(error: Exception) -> str:
    """The message in one line, without the places of temporary files."""
    return re.sub(r"/\S*/(?=\w+\.onnx)|/onnxruntime_src/\S+ ", "", " ".join(str(error).split()))[:400]


class PlainTypes:
    """A model whose inputs and outputs have types that NumPy itself knows, for engines that take no others.

    Casts, which are exact here, stand between those and the model's own types.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._wide: dict[str, Any] = {}
        self._out: list[Any] = []
        self._in: set[str] = set()
        odd = [[v for v in side if self._wider(v) is not None] for side in (model.graph.input, model.graph.output)]
        self._out = [self._own(v) if self._wider(v) is not None else None for v in model.graph.output]
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        if any(odd) and opset >= 13:
            self.model = onnx.ModelProto()
            self.model.CopyFrom(model)
            self._cast({v.name for v in odd[0]}, {v.name for v in odd[1]})

    def fed(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {n: v.astype(self._wide[n]) if n in self._wide else v for n, v in feeds.items()}

    def restored(self, outputs: Sequence[Any]) -> list[Any]:
        return [v if t is None else np.asarray(v).astype(t) for v, t in zip(outputs, self._out, strict=True)]

    def _cast(self, inputs: set[str], outputs: set[str]) -> None:
        graph = self.model.graph
        before, after = [], []
        for value in graph.input:
            if value.name in inputs:
                name, own = value.name, value.type.tensor_type.elem_type
                wide = self._wider(value) or 0
                self._wide[name] = helper.tensor_dtype_to_np_dtype(wide)
                for node in graph.node:
                    node.input[:] = [f"{name}/own" if i == name else i for i in node.input]
                before.append(helper.make_node("Cast", [name], [f"{name}/own"], to=own))
                value.type.tensor_type.elem_type = wide
        for value in graph.output:
            if value.name in outputs:
                name, wide = value.name, self._wider(value) or 0
                for node in graph.node:
                    node.input[:] = [f"{name}/own" if i == name else i for i in node.input]
                    node.output[:] = [f"{name}/own" if o == name else o for o in node.output]
                after.append(helper.make_node("Cast", [f"{name}/own"], [name], to=wide))
                value.type.tensor_type.elem_type = wide
        nodes = [*before, *graph.node, *after]
        del graph.node[:]
        graph.node.extend(nodes)

    @staticmethod
    def _own(value: onnx.ValueInfoProto) -> Any:
        return helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)

    @staticmethod
    def _wider(value: onnx.ValueInfoProto) -> int | None:
        kind = value.type.tensor_type.elem_type
        if not value.type.HasField("tensor_type") or kind in (0, TensorProto.STRING):
            return None
        if np.dtype(helper.tensor_dtype_to_np_dtype(kind)).kind in "biufc" and kind != TensorProto.BFLOAT16:
            found = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
            if found.isbuiltin == 1:
                return None
        name = TensorProto.DataType.Name(kind)
        return TensorProto.INT32 if "INT" in name else TensorProto.FLOAT
