"""What `opcel opt` and `opcel info` read: ONNX models, and graphs and Programs as text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

from opcel_compiler.cli.console import CommandError
from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.program import Program

if TYPE_CHECKING:
    from opcel_compiler.frontend.importer import Imported
    from opcel_compiler.rewrite.pipeline import Pipeline

Subject = Union[Graph, Program]
TEXT_SUFFIXES = (".txt", ".opcel-ir")
_PROGRAM = re.compile(r"^program\b", re.MULTILINE)
_REPRODUCER = re.compile(r"\A(;[^\n]*\n)*;\s*pipeline:")


@dataclass(frozen=True)
class Source:
    """A graph or Program; `imported` tells what else the ONNX file says, `pipeline` the passes that the text names."""

    subject: Subject
    imported: Imported | None = None
    pipeline: Pipeline | None = None

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs' names in the file, in the order of the subject's inputs."""
        if self.imported is not None:
            return self.imported.input_names
        return tuple(value.name for value in self.subject.inputs)


def check(subject: Subject) -> None:
    """Verify a graph or a Program. Raises what its verifier raises."""
    from opcel_compiler.ir.program_verify import verify_program
    from opcel_compiler.ir.verify import verify

    if isinstance(subject, Graph):
        verify(subject)
    else:
        verify_program(subject)


def lowered(graph: Graph) -> Program:
    """The Program of a graph that is done with its passes, with foreign nodes in regions; uses the graph up."""
    from opcel_compiler.schedule.lower import lower
    from opcel_compiler.schedule.placement import place

    place(graph, lambda node: str(node.attrs["reason"]) if node.op == "foreign" else None)
    return lower(graph)


def is_text(path: Path) -> bool:
    return path.suffix in TEXT_SUFFIXES


def read_source(path: Path) -> Source:
    """Read a model, or text when the suffix is one of TEXT_SUFFIXES. A text that opens with `; pipeline:` is what a
    failing pass left. Raises CommandError or ModelError, with the line where there is one."""
    if not is_text(path):
        from opcel_compiler.frontend.importer import import_model

        imported = import_model(path)
        return Source(imported.graph, imported)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    try:
        if _REPRODUCER.match(text):
            from opcel_compiler.rewrite.pipeline import read_reproducer

            subject, pipeline = read_reproducer(text, _parse)
            return Source(subject, pipeline=pipeline)
        return Source(_parse(text))
    except OpcelError as error:
        hint = "; write the text with --full" if "of constant #" in str(error) else ""
        raise CommandError(f"{path}: {error}{hint}") from error


def _parse(text: str) -> Subject:
    if _PROGRAM.search(text):
        from opcel_compiler.ir.program_text import parse_program

        return parse_program(text)
    from opcel_compiler.ir.parse import parse_graph

    return parse_graph(text)
