"""How the work of an image kernel is cut into tasks that come out even on few threads."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from opcel_compiler.ir.dims import Dim
from opcel_compiler.schedule.choice.context import TASKS

THREADS = {2: 4.0, 4: 2.0, 8: 1.0}
"""Numbers of threads that a cut is judged for, with their weights: an artifact runs on any number."""
FEW_PIXELS = 12


class Cut(NamedTuple):
    """Rows (or pixels) and panels of a task."""

    rows: int
    panels: int


def share_out(
    rows: int, multiple: int, images: int, panels: int, width: Dim, by_rows: bool, least: int
) -> tuple[float, Cut]:
    """The best cut, with its score: `images` of `rows` rows, `width` pixels each, by `panels` panels of channels.

    Rows vary fastest in the order of tasks. A task has a multiple of `multiple` rows; 0: all tasks have the same
    number. `by_rows`: better all panels of a few rows, which the thread finds in its cache from the kernel before. An
    image is cut into `least` slices or more, if it has as many rows.
    """
    cuts: list[int] = []
    width = width if isinstance(width, int) else FEW_PIXELS
    for parts in range(1, rows + 1):
        size = -(-rows // parts)
        if multiple == 0 and rows % parts:
            continue
        size = -(-size // max(1, multiple)) * max(1, multiple)
        if parts > 4 * TASKS or (cuts and cuts[-1] == size):
            continue
        cuts.append(size)
    best: tuple[float, Cut] = (-1e9, Cut(rows, 1))
    for size in cuts:
        for per_task in dict.fromkeys((panels, 1) if by_rows else (1,)):
            slices = [size] * (rows // size) + ([rows % size] if rows % size else [])
            groups = -(-panels // per_task)
            score = _evenness(slices, images * groups)
            score -= 0.03 * FEW_PIXELS / max(1, size * width)
            score -= 0.1 * (by_rows and groups > 1)
            score -= 0.1 * max(0.0, 1 - 2 * len(slices) * images * groups / TASKS)
            score -= 1.0 * (len(slices) < min(least, len(cuts)))
            best = max(best, (score, Cut(size, per_task)))
    return best


def _evenness(slices: list[int], times: int) -> float:
    """The threads' mean load over the largest, when each has the same part of the tasks: `slices` repeated."""
    if not 0 < len(slices) * times <= 32 * TASKS:
        return 1.0
    loads = slices * times
    total = 0.0
    for threads, weight in THREADS.items():
        bounds = [len(loads) * t // threads for t in range(threads + 1)]
        most = max(sum(loads[a:b]) for a, b in itertools.pairwise(bounds))
        total += weight * sum(loads) / (threads * most)
    return total / sum(THREADS.values())
