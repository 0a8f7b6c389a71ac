"""Pipelines as text, the discovery of passes, and the manager that runs them.

Text: `fold-constants{max-bytes=4096},fuse`. Printing a pipeline writes every option, so that the text keeps its
meaning when a default changes; parsing what was printed gives an equal pipeline.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.graph import Graph
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.errors import PassError, PipelineError, suggest
from opcel_compiler.rewrite.instruments import Instrument, Step
from opcel_compiler.rewrite.pass_ import Pass, make_pass, registered

PACKAGE = GROUP = "opcel_compiler.passes"
_discovered: list[bool] = []


def discover() -> dict[str, type[Pass]]:
    """Every pass by name: those in the package `opcel_compiler.passes` and those that installed distributions announce
    under the entry point group of the same name. Raises PassError for one that cannot be imported."""
    if not _discovered:
        package = importlib.import_module(PACKAGE)
        for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
            importlib.import_module(f"{PACKAGE}.{module}")
        for point in entry_points(group=GROUP):
            try:
                point.load()
            except Exception as error:
                where = point.dist.name if point.dist is not None else point.value
                raise PassError(
                    f"cannot load pass {point.name!r} of {where}: {error}; repair or uninstall that package"
                ) from error
        _discovered.append(True)
    return registered()


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order they run."""

    passes: tuple[Pass, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """The pipeline that `text` writes. Raises PipelineError that names the pass or option at fault."""
        known = discover()
        out = []
        for name, given in _split(text):
            if name not in known:
                raise PipelineError(f"no pass is called {name!r}{suggest(name, known)}")
            out.append(make_pass(known[name], given))
        return cls(tuple(out))

    def at(self, level: str) -> Pipeline:
        """The passes of one level, "graph" or "program"."""
        return Pipeline(tuple(p for p in self.passes if p.level == level))

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def __len__(self) -> int:
        return len(self.passes)


def _split(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    for item in _cut(text, text):
        name, brace, rest = item.partition("{")
        name = name.strip()
        if not name:
            raise PipelineError(f"pipeline {text!r}: a pass name is missing; passes are separated by one comma")
        given: dict[str, str] = {}
        if brace:
            if not rest.rstrip().endswith("}"):
                raise PipelineError(f"pipeline {text!r}: the options of {name} do not end with '}}'")
            for option in _cut(rest.rstrip()[:-1], text):
                key, equals, value = option.partition("=")
                key = key.strip()
                if not equals or not key:
                    raise PipelineError(f"pass {name}: option {option.strip()!r} is not of the form key=value")
                if key in given:
                    raise PipelineError(f"pass {name}: option {key} is given twice")
                given[key] = value.strip()
        yield name, given


def _cut(text: str, whole: str) -> Iterator[str]:
    """The parts of `text` between commas outside of braces, brackets and quotes."""
    if not text.strip():
        return
    depth, start, quoted = 0, 0, False
    for i, c in enumerate(text):
        if c == '"':
            quoted = not quoted
        elif not quoted:
            depth += (c in "{[") - (c in "}]")
            if depth < 0:
                raise PipelineError(f"pipeline {whole!r}: {c!r} closes nothing")
            if c == "," and depth == 0:
                yield text[start:i]
                start = i + 1
    if depth or quoted:
        raise PipelineError(f"pipeline {whole!r}: a brace, bracket or quote is not closed")
    yield text[start:]


def read_reproducer(text: str, parse: Callable[[str], Any]) -> tuple[Any, Pipeline]:
    """The subject and the pipeline that failed on it, from what the instrument `Reproducer` wrote; `parse` reads the
    subject's text. Raises PipelineError when there is no pipeline in it."""
    head: list[str] = []
    body: list[str] = []
    for line in text.splitlines(keepends=True):
        (body if body or not line.startswith(";") else head).append(line)
    for line in head:
        key, _, value = line[1:].partition(":")
        if key.strip() == "pipeline":
            return parse("".join(body)), Pipeline.parse(value.strip())
    raise PipelineError("not a reproducer: it has no line '; pipeline: ...' at its head")


class PassManager:
    """Runs pipelines under instruments."""

    @staticmethod
    def run(
        subject: Any, pipeline: Pipeline, ctx: PassContext | None = None, instruments: Sequence[Instrument] = ()
    ) -> PassContext:
        """Run `pipeline` on `subject`, a Graph or a Program, in place; gives the context with its report.

        Instruments see each pass in their order; a pass runs when all of them want it to. Raises PassError for a pass
        of the other level and for a pass that fails with an unexpected error; errors for the user pass through.
        """
        ctx = PassContext() if ctx is None else ctx
        level = "graph" if isinstance(subject, Graph) else "program"
        for p in pipeline.passes:
            if p.level != level:
                raise PassError(f"pass {p.name} works on a {p.level}, and was given a {level}")
        for i, p in enumerate(pipeline.passes):
            step = Step(i, p, subject, Pipeline(pipeline.passes[i:]), ctx)
            if not all(m.should_run(step) for m in instruments):
                continue
            ctx.current = p.name
            for m in instruments:
                m.before(step)
            try:
                p.run(subject, ctx)
                for m in instruments:
                    m.after(step)
            except Exception as error:
                for m in instruments:
                    m.failed(step, error)
                if isinstance(error, OpcelError):
                    raise
                notes = [n for m in instruments for n in m.notes()]
                raise PassError(
                    ". ".join([f"pass {p.name} failed: {type(error).__name__}: {error}", *notes])
                ) from error
            finally:
                ctx.current = ""
        return ctx
