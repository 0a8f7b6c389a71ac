"""A valid random graph from a seed."""

from __future__ import annotations

from functools import cache

import numpy as np

from benchmarks.random_graphs import contractions, quantized  # noqa: F401 (they register samplers)
from benchmarks.random_graphs.samplers import SAMPLERS, elementwise, generic
from benchmarks.random_graphs.values import Sample
from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.opdef import all_ops

_OTHER = {"constant", "matmul_nbits"}
_HEAVY = {"quantize": 8, "matmul": 6, "conv": 4, "reshape": 4, "transpose": 4, "slice": 4, "concat": 3, "expand": 2}


@cache
def _operators() -> tuple[tuple[str, ...], np.ndarray]:
    """The operators that can be applied at random, and how often each is."""
    names = [
        name
        for name, d in all_ops().items()
        if d.evaluate is not None and not d.traits & {"control", "opaque"} and name not in _OTHER
    ]
    weights = np.array([_HEAVY.get(n, 1 if n in SAMPLERS else 1.5) for n in names], float)
    return tuple(names), weights / weights.sum()


def sample(seed: int, most: int = 12) -> Sample:
    """The graph of a seed, of 1 to `most` nodes, with feeds and what each value is for those."""
    rng = np.random.default_rng(seed)
    s = Sample(Graph(f"g{seed}"), rng)
    names, weights = _operators()
    for _ in range(int(rng.integers(1, 4))):
        dims: list[Dim] = list(s.shape())
        if dims and s.chance(0.2):
            dims[int(rng.integers(len(dims)))] = s.symbol() if s.chance(0.5) or not s.sizes else dims[0]
        s.input(dims, s.dtype())
    made, wanted = 0, int(rng.integers(1, most + 1))
    for _ in range(6 * wanted):
        if made >= wanted:
            break
        name = names[int(rng.choice(len(names), p=weights))]
        before = list(s.graph.nodes)
        try:
            d = all_ops()[name]
            if name in SAMPLERS:
                kept = SAMPLERS[name](s)
            elif "elementwise" in d.traits:
                kept = elementwise(s, d)
            else:
                kept = generic(s, d)
        except (OpcelError, ValueError, TypeError, IndexError, ArithmeticError, KeyError):
            kept = False
        if kept:
            made += 1
        del before
    _finish(s)
    return s


def _finish(s: Sample) -> None:
    """Make outputs of what nothing uses and of some of the rest; drop inputs and constants that stayed unused."""
    graph = s.graph
    results = [v for n in graph.nodes if n.op != "constant" for v in n.results]
    for v in results:
        if not v.uses or s.chance(0.1):
            graph.add_output(v, f"y{len(graph.outputs)}")
    if not graph.outputs:
        v = graph.inputs[0]
        graph.add_output(graph.add("transpose", [v], {"perm": tuple(range(len(v.tensor.dims)))}).result, "y0")
    for node in list(graph.nodes):
        if node.op == "constant" and not node.result.uses:
            s.arrays.pop(node.result)
            graph.erase(node)
