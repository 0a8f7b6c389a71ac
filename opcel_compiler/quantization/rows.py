"""Which matrix products get a scale for each row of what they read, where one grid for all rows is measured to be poor.

Rows differ where few of them, such as those of a text's first or last token, reach many times as far as the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.quantization.layers import root
from opcel_compiler.quantization.probe import Measured

ENOUGH = 40.0
"""Decibels of signal to noise from which one grid is good enough."""
GAIN = 0.5
"""With scales for rows the noise must fall below this share: they have no zero point, and are computed at each run."""


def by_rows(nodes: Iterable[Node], grids: Mapping[str, Measured], rows: Mapping[str, Measured]) -> frozenset[str]:
    """Those of the layers `nodes`, by the names of their results, that are better with `rows` than with `grids`, as
    measured; all readers of a value or none, as it is rounded once for all of them."""
    readers: dict[Value, list[str]] = {}
    for node in nodes:
        if (name := node.results[0].name) in rows:
            readers.setdefault(root(node.operand(0)), []).append(name)
    out: set[str] = set()
    for names in readers.values():
        poor = min(grids[n].sqnr for n in names) < ENOUGH
        before, after = (sum(m[n].noise / max(m[n].signal, 1e-300) for n in names) for m in (grids, rows))
        if poor and after < GAIN * before:
            out.update(names)
    return frozenset(out)
