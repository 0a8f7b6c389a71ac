"""Many random graphs compiled as one model: a compiler starts once for each kernel that they do not share."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx

from benchmarks.random_graphs.check import compare_outputs
from benchmarks.random_graphs.values import Sample
from opcel_compiler import compile as compile_model
from opcel_compiler.compilation import prepare
from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.ir.clone import clone
from opcel_compiler.ir.interpret import run

_SYMBOL = re.compile(r"\bn\d+\b")


def exported(s: Sample, target: str) -> onnx.ModelProto | None:
    """The sample as ONNX; None for what ONNX cannot express or `target` not run."""
    try:
        model = export_model(clone(s.graph))
        return None if prepare(model, target).fallbacks else model
    except OpcelError:
        return None


def _add_prefix(model: onnx.ModelProto, prefix: str) -> None:
    """Put `prefix` before every name of the model."""
    graph = model.graph
    for values in (graph.input, graph.output):
        for v in values:
            v.name = prefix + v.name
            for d in v.type.tensor_type.shape.dim:
                if d.dim_param:
                    d.dim_param = _SYMBOL.sub(prefix + r"\g<0>", d.dim_param)
    del graph.value_info[:]
    for t in graph.initializer:
        t.name = prefix + t.name
    for node in graph.node:
        node.name = node.name and prefix + node.name
        node.input[:] = [name and prefix + name for name in node.input]
        node.output[:] = [name and prefix + name for name in node.output]


def joined(samples: Iterable[Sample], target: str) -> tuple[onnx.ModelProto, list[tuple[str, Sample]]]:
    """One model of all samples that `target` runs, and those with the prefix of their names."""
    whole, kept = onnx.ModelProto(), []
    for i, s in enumerate(samples):
        prefix = f"s{i}_"
        model = exported(s, target)
        if model is None:
            continue
        _add_prefix(model, prefix)
        if not kept:
            whole.CopyFrom(model)
        else:
            for field in ("input", "output", "initializer", "node"):
                getattr(whole.graph, field).extend(getattr(model.graph, field))
        kept.append((prefix, s))
    return whole, kept


def failures(samples: Iterable[Sample], target: str) -> tuple[int, list[tuple[Sample, Exception]]]:
    """Compile the samples as one model and run it: how many there were, and those that went wrong, and how."""
    model, kept = joined(samples, target)
    if not kept:
        return 0, []
    with tempfile.TemporaryDirectory(prefix="opcel-random-") as folder:
        try:
            compiled = compile_model(model, target, Path(folder) / "m.opcel", fallback="error", proof=False)
            with compiled:
                feeds = {p + n: np.asarray(a) for p, s in kept for n, a in s.feeds.items()}
                got = compiled.run(feeds)
        except Exception as error:
            if len(kept) == 1:
                return 1, [(kept[0][1], error)]
            half = len(kept) // 2
            parts = [failures([s for _, s in part], target) for part in (kept[:half], kept[half:])]
            return sum(n for n, _ in parts), [f for _, found in parts for f in found]
    wrong = []
    for prefix, s in kept:
        want = run(s.graph, s.feeds)
        try:
            compare_outputs("code", want, {n: got[prefix + n] for n in want})
        except AssertionError as error:
            wrong.append((s, error))
    return len(kept), wrong
