"""How far quantized outputs are from float ones, over samples."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opcel_compiler.quantization.probe import decibels
from opcel_compiler.quantization.recipe import QuantizationError

Outputs = Sequence[Mapping[str, np.ndarray]]
"""Outputs by name, sample by sample."""
Metric = Callable[[Outputs, Outputs], float]
"""Of float outputs and quantized ones; the more the worse, and 0 where they are the same."""


def _rows(outputs: Outputs) -> dict[str, np.ndarray]:
    """The float outputs of at least two columns, all samples' rows together, in float64."""
    out: dict[str, list[np.ndarray]] = {}
    for sample in outputs:
        for name, array in sample.items():
            a = np.asarray(array)
            if a.dtype.kind == "f" and a.ndim and a.shape[-1] > 1:
                out.setdefault(name, []).append(a.reshape(-1, a.shape[-1]).astype(np.float64))
    return {name: np.concatenate(rows) for name, rows in out.items() if len({r.shape[-1] for r in rows}) == 1}


def _log_shares(rows: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities: of the rows as they are where they are shares already, else of their softmax."""
    if rows.size and rows.min() >= 0 and np.allclose(rows.sum(axis=-1), 1, atol=1e-3):
        return np.asarray(np.log(np.maximum(rows, 1e-30)))
    below = rows - rows.max(axis=-1, keepdims=True)
    return np.asarray(below - np.log(np.exp(below).sum(axis=-1, keepdims=True)))


def kl(wants: Outputs, gots: Outputs) -> float:
    """The mean relative entropy of a row, in nats, of the output where it is largest."""
    want, got = _rows(wants), _rows(gots)
    each = [0.0]
    for name, rows in want.items():
        p, q = _log_shares(rows), _log_shares(got[name])
        each.append(float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1))))
    return max(each)


def top1(wants: Outputs, gots: Outputs) -> float:
    """The share of rows whose largest element is elsewhere, of the output where it is largest."""
    want, got = _rows(wants), _rows(gots)
    return max((float(np.mean(rows.argmax(-1) != got[name].argmax(-1))) for name, rows in want.items()), default=0.0)


def relative_l2(wants: Outputs, gots: Outputs) -> float:
    """The root of the squares of the differences by those of the float outputs, all outputs together."""
    signal, noise = _powers(wants, gots)
    return float(np.sqrt(noise / signal)) if signal else float(noise > 0)


def sqnr(wants: Outputs, gots: Outputs) -> float:
    """The same in decibels of signal to noise."""
    return decibels(*_powers(wants, gots))


def _powers(wants: Outputs, gots: Outputs) -> tuple[float, float]:
    signal = noise = 0.0
    for want, got in zip(wants, gots, strict=True):
        for name, array in want.items():
            if np.asarray(array).dtype.kind == "f":
                w = np.asarray(array, np.float64)
                signal += float(np.vdot(w, w))
                error = np.asarray(got[name], np.float64) - w
                noise += float(np.vdot(error, error))
    return signal, noise


METRICS: dict[str, Metric] = {"kl": kl, "top1": top1, "sqnr": relative_l2}
"""By name. `sqnr` is counted as the relative L2 error: 1 % is 40 dB."""


def metric_of(name: str) -> Metric:
    """A metric by its name, or "module.py:function" of the user's, called with the float and the quantized outputs,
    each a list with a mapping of arrays by name for every sample. Raises QuantizationError."""
    if name in METRICS:
        return METRICS[name]
    where, colon, function = name.rpartition(":")
    if not colon:
        raise QuantizationError(f"the metric is {', '.join(METRICS)} or module.py:function, not {name!r}")
    try:
        spec = importlib.util.spec_from_file_location(f"opcel_metric_{Path(where).stem}", where)
        assert spec is not None and spec.loader is not None, "it is no Python file"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found: Any = getattr(module, function)
    except Exception as error:
        raise QuantizationError(f"cannot load the metric {name}: {type(error).__name__}: {error}") from error

    def call(wants: Outputs, gots: Outputs) -> float:
        try:
            return float(found([dict(w) for w in wants], [dict(g) for g in gots]))
        except Exception as error:
            raise QuantizationError(f"the metric {name} failed: {type(error).__name__}: {error}") from error

    return call


def accuracy(wants: Outputs, gots: Outputs) -> dict[str, Any]:
    """All of them, for the report."""
    found = sqnr(wants, gots)
    return {
        "samples": len(wants), "relative_l2": relative_l2(wants, gots), "sqnr_db": min(round(found, 2), 999.0),
        "kl": kl(wants, gots), "top1_agreement": 1 - top1(wants, gots),
    }  # fmt: skip
