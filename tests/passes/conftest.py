"""Running passes on graphs written in the text form, checked before and after by the verifier and the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from opcel_compiler.ir.analysis import graph_symbols
from opcel_compiler.ir.clone import clone
from opcel_compiler.ir.compare import equal
from opcel_compiler.ir.dims import evaluate
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.text import print_graph
from opcel_compiler.ir.verify import verify
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.instruments import Verify
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline


@dataclass
class Outcome:
    """A graph after passes: `ops` in order without constants, and the context with its report."""

    before: Graph
    graph: Graph
    ctx: PassContext

    @property
    def ops(self) -> list[str]:
        return [n.op for n in self.graph.nodes if n.op != "constant"]

    @property
    def changes(self) -> dict[str, int]:
        return {rule: n for (_, rule), n in self.ctx.report.changes.items()}

    @property
    def reasons(self) -> str:
        return "\n".join(map(str, self.ctx.report.refusals(near_misses=True)))

    def only(self, op: str) -> Mapping[str, object]:
        """The attributes of the one node of operator `op`."""
        (node,) = [n for n in self.graph.nodes if n.op == op]
        return node.attrs

    def is_(self, expected: str, constants: Mapping[str, Constant] | None = None) -> None:
        difference = equal(self.graph, parse_graph(expected, constants))
        assert difference is None, f"{difference}\n{print_graph(self.graph)}"


SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40]


def random_feeds(graph: Graph, seed: int = 0, special: bool = False) -> dict[str, np.ndarray]:
    """Inputs for `graph`; with `special`, one of the special values at every third place of the floats."""
    rng = np.random.default_rng(seed)
    sizes = {s.name: max(s.lo, 3) for s in graph_symbols(graph).values()}
    feeds = {}
    for v in graph.inputs:
        shape = [evaluate(d, sizes) for d in v.tensor.dims]
        dtype = v.tensor.dtype
        if dtype.kind == "b":
            feeds[v.name] = rng.random(shape) < 0.5
        elif dtype.is_float:
            numbers = rng.standard_normal(shape)
            if special:
                numbers = np.where(rng.random(shape) < 1 / 3, rng.choice(SPECIAL, shape), numbers)
            feeds[v.name] = numbers.astype(dtype.numpy)
        else:
            feeds[v.name] = rng.integers(0, 3, shape).astype(dtype.numpy)
    return feeds


def same_results(before: Graph, after: Graph, tolerance: float, special: bool = False) -> None:
    feeds = random_feeds(before, special=special)
    wanted, found = run(before, feeds), run(after, feeds)
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        if array.dtype.kind == "f":
            np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(found[name], array)


@pytest.fixture
def apply() -> Callable[..., Outcome]:
    """apply(text, pipeline, tolerance=..., ctx=...): both graphs verified, and run on the same random inputs, once more
    with NaN, infinities, -0 and denormals among them unless `special` is false."""

    def go(
        text: str | Graph,
        pipeline: str,
        *,
        tolerance: float = 0.0,
        ctx: PassContext | None = None,
        constants: Mapping[str, Constant] | None = None,
        special: bool = True,
    ) -> Outcome:
        graph = parse_graph(text, constants) if isinstance(text, str) else text
        before = clone(graph)
        done = PassManager.run(graph, Pipeline.parse(pipeline), ctx or PassContext(explain=True), [Verify(verify)])
        same_results(before, graph, tolerance)
        if special:
            same_results(before, graph, tolerance, special=True)
        return Outcome(before, graph, done)

    return go
