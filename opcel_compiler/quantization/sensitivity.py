"""What one quantized layer alone does to a network's outputs, measured once and kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.dims import as_symbol
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.interpret import evaluate_node, run
from opcel_compiler.ir.quantization import Plan
from opcel_compiler.ir.statistics import replace_text
from opcel_compiler.quantization.metrics import kl, relative_l2
from opcel_compiler.quantization.probe import Feeds, Operands, QuantizedLayer, read_codes

SAMPLES = 2
"""A layer is measured on so many samples: one pass over this subset for each."""
FORMAT = 1


class Sensitivity:
    """The file: by layer `found`, how far the outputs are with it in 8 bits, and `seconds`, what it takes in f32 and in
    8 bits; `runs`, what a run of the whole network takes, by a digest of the choice; for one model, data and scheme,
    named by `key`. Without a path it is in memory alone."""

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key = path, key
        self.found: dict[str, float] = {}
        self.seconds: dict[str, tuple[float, float]] = {}
        self.runs: dict[str, float] = {}
        if path is not None and path.exists():
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                if data["format"] == FORMAT and data["key"] == key:
                    self.found = {str(n): float(v) for n, v in data["layers"].items()}
                    self.seconds = {str(n): (float(a), float(b)) for n, (a, b) in data["seconds"].items()}
                    self.runs = {str(n): float(v) for n, v in data.get("runs", {}).items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise OpcelError(f"{path} is no sensitivity file of ours ({error}); remove it") from error

    def add(self, name: str, loss: float) -> None:
        """Written at once, so that a search that is ended goes on where it was."""
        self.found[name] = float(f"{loss:.9g}")
        self._write()

    def add_seconds(self, seconds: Mapping[str, tuple[float, float]]) -> None:
        self.seconds = {n: (float(f"{a:.4g}"), float(f"{b:.4g}")) for n, (a, b) in seconds.items()}
        self._write()

    def add_run(self, choice: str, seconds: float) -> float:
        """The seconds as they are kept."""
        self.runs[choice] = float(f"{seconds:.4g}")
        self._write()
        return self.runs[choice]

    def _write(self) -> None:
        if self.path is not None:
            runs = {"runs": self.runs} if self.runs else {}
            data = {"format": FORMAT, "key": self.key, "layers": self.found, "seconds": self.seconds, **runs}
            replace_text(self.path, json.dumps(data, indent=0, sort_keys=True) + "\n")


def key_of(*parts: Any) -> str:
    """A digest of what sensitivities depend on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def sensitivities(
    graph: Graph, plan: Plan, samples: Sequence[Feeds], known: Sensitivity, tick: Callable[[int, int], None]
) -> Iterator[tuple[str, float]]:
    """For every quantized layer by name the KL of the outputs with it alone in 8 bits, or their relative L2 error where
    no output is a distribution; `tick` is told how many are done, of how many. Known ones are not measured again."""
    nodes = [n for n in graph.nodes if n.results and plan.quantized(n.results[0].name)]
    replays: list[Replay] = []
    for i, node in enumerate(nodes):
        name = node.results[0].name
        if name not in known.found:
            replays = replays or [Replay(graph, feeds) for feeds in samples[:SAMPLES]]
            known.add(name, _loss(node, plan, replays))
        tick(i + 1, len(nodes))
        yield name, known.found[name]


def _loss(node: Node, plan: Plan, replays: Sequence[Replay]) -> float:
    layer = QuantizedLayer(node)
    gots = []
    for replay in replays:
        given = [None if v is None else replay.values[v] for v in node.operands]
        gots.append(replay.again(node, layer(read_codes(node, given, plan))))
    wants = [r.outputs for r in replays]
    return kl(wants, gots) or relative_l2(wants, gots)


class Replay:
    """All values of one sample, so that a change is followed only through what depends on it."""

    def __init__(self, graph: Graph, feeds: Feeds) -> None:
        self.graph, self.feeds = graph, feeds
        self.values: dict[Value, np.ndarray] = {v: np.asarray(feeds[v.name]) for v in graph.inputs}
        self.symbols: dict[str, int] = {}
        for v in graph.inputs:
            for dim, size in zip(v.tensor.dims, feeds[v.name].shape, strict=True):
                if (symbol := as_symbol(dim)) is not None:
                    self.symbols[symbol.name] = size

        def observe(node: Node, results: Sequence[np.ndarray]) -> None:
            self.values.update(zip(node.results, map(np.asarray, results), strict=True))

        self.outputs: Mapping[str, np.ndarray] = run(graph, feeds, observe=observe)

    def again(self, changed: Node, results: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs when `changed` has other results."""
        return self.through(lambda node, _: results if node is changed else None)

    def through(self, compute: Callable[[Node, Operands], Sequence[np.ndarray] | None]) -> dict[str, np.ndarray]:
        """The outputs when the nodes for which `compute`, given the operands, gives something have those results."""
        new: dict[Value, np.ndarray] = {}
        for node in self.graph.nodes:
            given = [None if v is None else new.get(v, self.values[v]) for v in node.operands]
            results = compute(node, given)
            if results is None and any(v in new for v in node.operands):
                results = evaluate_node(node, given, self.symbols)
            if results is not None:
                new.update(zip(node.results, results, strict=True))
        names = zip(self.graph.output_names, self.graph.outputs, strict=True)
        return {name: new.get(v, self.values[v]) for name, v in names}
