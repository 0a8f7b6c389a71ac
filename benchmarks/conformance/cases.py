"""The cases of ONNX's backend test suite, in one form."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
DataSet = tuple[list[Any], list[Any]]
"""Inputs, in the order of the graph's inputs that no initializer gives, and what is to come out."""


@dataclass
class Case:
    """One case: a model and data sets, read from a folder or made by the suite."""

    name: str
    kind: str
    rtol: float
    atol: float
    folder: Path | None
    given: tuple[onnx.ModelProto, Any] | None

    @cached_property
    def model(self) -> onnx.ModelProto:
        if self.given is not None:
            return self.given[0]
        assert self.folder is not None
        return onnx.load(self.folder / "model.onnx")

    @cached_property
    def data_sets(self) -> list[DataSet]:
        if self.given is not None:
            return [([_array(v) for v in ins], [_array(v) for v in outs]) for ins, outs in self.given[1]]
        assert self.folder is not None
        graph = self.model.graph
        sides = (("input", graph.input), ("output", graph.output))
        return [
            (_files(folder, *sides[0]), _files(folder, *sides[1]))
            for folder in sorted(self.folder.glob("test_data_set*"))
        ]

    @cached_property
    def input_names(self) -> list[str]:
        given = {t.name for t in self.model.graph.initializer}
        return [v.name for v in self.model.graph.input if v.name not in given]

    def feeds(self, inputs: list[Any]) -> dict[str, Any]:
        """The inputs of a data set by name."""
        return dict(zip(self.input_names, inputs, strict=False))

    @property
    def ops(self) -> list[str]:
        """The operators of the model's nodes, with their domain where it is not ONNX's own."""
        names = ((n.domain, n.op_type) for n in self.model.graph.node)
        return sorted({op if domain in ("", "ai.onnx") else f"{domain}.{op}" for domain, op in names})


def load_cases(select: Callable[[str], bool] = lambda name: True) -> list[Case]:
    """The cases whose name `select` takes, in the suite's order."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [(kind, case) for kind in KINDS for case in load_model_tests(kind=kind) if select(case.name)]
    return [
        Case(
            case.name, kind, case.rtol, case.atol, Path(case.model_dir) if case.model_dir else None,
            (case.model, case.data_sets) if case.model is not None else None,
        )
        for kind, case in found
    ]  # fmt: skip


def operator_of(cases: list[Case]) -> dict[str, str]:
    """The operator that each case tests, by the case's name.

    A case whose node was replaced by its function's body tests the operator of the case that it was made from; the
    operator of a network is the one that most of its nodes are, Constant aside.
    """
    by_name = {case.name: case for case in cases}
    out = {}
    for case in cases:
        base = by_name.get(re.sub(r"_expanded.*$", "", case.name), case)
        nodes = [op for op in base.ops if op != "Constant"] or base.ops
        named = [op for op in nodes if op.rpartition(".")[2].lower() in case.name.replace("_", "").lower()]
        out[case.name] = max(named, key=len) if named else (nodes[0] if len(nodes) == 1 else "several")
    return out


def group_of(operator: str) -> str:
    """ONNX's own group of an operator: math, nn, tensor, ..."""
    domain, _, name = operator.rpartition(".")
    try:
        file = str(onnx.defs.get_schema(name, domain).file)
    except onnx.defs.SchemaError:
        return "several"
    return Path(file).parent.name


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _files(folder: Path, side: str, values: Any) -> list[Any]:
    files = sorted(folder.glob(f"{side}_*.pb"), key=lambda p: int(p.stem.partition("_")[2]))
    return [_read(path, value.type) for path, value in zip(files, values, strict=False)]


def _read(path: Path, kind: onnx.TypeProto) -> Any:
    data = path.read_bytes()
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    array = numpy_helper.to_array(onnx.TensorProto.FromString(data))
    assert isinstance(array, np.ndarray)
    return array
