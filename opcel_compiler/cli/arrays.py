"""Arrays described in one line, or as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

VALUES = 6


def describe(name: str, value: Any) -> dict[str, Any]:
    """Facts of one array: dtype, shape, the first values, and min, max and mean where it holds finite numbers.

    JSON has no NaN and no infinity: they are written as text.
    """
    listed = [str(v) for v in value] if isinstance(value, list) else [str(value)]
    array = value if isinstance(value, np.ndarray) else np.array(listed, object)
    flat = array.reshape(-1)
    out: dict[str, Any] = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    if _is_number(array.dtype):
        wide = flat.astype(np.float64)
        finite = wide[np.isfinite(wide)]
        out["non_finite"] = int(wide.size - finite.size)
        if finite.size:
            out |= {"min": float(finite.min()), "max": float(finite.max()), "mean": float(finite.mean())}
    out["values"] = [_plain(v) for v in flat[:VALUES]]
    return out


def array_rows(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """Two rows an array: its name, dtype, shape and statistics, then its first values."""
    for name, array in arrays.items():
        facts = describe(name, array)
        statistics = [f"{key} {facts[key]:.6g}" for key in ("min", "max", "mean") if key in facts]
        if facts.get("non_finite"):
            statistics.append(f"{facts['non_finite']} not finite")
        yield "output", f"{name} {facts['dtype']}{facts['shape']}  {', '.join(statistics)}"
        more = ", ..." if np.size(array) > VALUES else ""
        yield "", f"[{', '.join(f'{v:.6g}' if isinstance(v, float) else str(v) for v in facts['values'])}{more}]"


def _is_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iuf" or (dtype.kind == "V" and np.can_cast(dtype, np.float32))


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if _is_number(np.asarray(value).dtype):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    return str(value)
