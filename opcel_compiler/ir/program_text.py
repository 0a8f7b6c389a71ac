"""The text form of a Program.

    symbol n in 1..64
    program main(@x) -> (@y) {
      input @x: f32[n, 8]
      output @y: f32[n, 4]
      weight @w: f32[8, 4] packing "panels" = f32[8, 4] #5b1f0c9a7d3e2468
      require equal[n, 2*m] from "Add_1"
      require least[n - 3, 0] from "Slice_2"
      temp @t: f32[n, 10, 6, 6] layout<block=8@1, halo=0-0.0-0.1-1.1-1> in sram
      kernel matmul{rows=[8, 4, 1]} from "Gemm_0" {
        reads @x, @w[8, 4]:[4, 1]:[0]
        writes @y
        axes (d0=n, d1=4, reduce k=8)
        maps (d0, k), (k, d1), (d0, d1)
        tiles sram(4, 4, 8), local(1, 4, 2)
        anchor 0
        body(%a: f32[n, 8], %b: f32[8, 4]) {
          %c = matmul(%a, %b) : f32[n, 4]
          return %c
        }
      }
      region 0 "no kernel for Frob" from "Frob_3" {
        reads @y
        writes @t
      }
      loop i below n while @c {
        if @d {
        } else {
        }
      }
      read [rows, columns] from "Reshape_4" {
        reads @sizes
      }
    }

A view is its buffer's name alone when it is the whole buffer, else name[shape]:[strides]:[offset]. In a map `*` reads
an axis whole. `anchor` counts the nodes of the body. Bodies are written as `text` writes graphs. The nodes of a region
belong to the graph that it was cut from and are not written. A loop's limit and its condition are written where there
are any.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, MutableMapping, Sequence
from itertools import islice
from typing import Any

from opcel_compiler.ir import compare
from opcel_compiler.ir.analysis import graph_symbols, symbols_in
from opcel_compiler.ir.dims import Expr, Symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.parse import ParseError
from opcel_compiler.ir.program import (
    Axis,
    Buffer,
    Control,
    Index,
    Kernel,
    Program,
    Read,
    Region,
    Requirement,
    Step,
    View,
    whole,
)
from opcel_compiler.ir.program_parse import parse_program
from opcel_compiler.ir.text import MAX_ELEMENTS, _Printer
from opcel_compiler.ir.types import DType

__all__ = ["ParseError", "equal_programs", "parse_program", "print_program", "program_symbols", "step_text"]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]+\Z")


def print_program(
    program: Program, *, constants: MutableMapping[str, Constant] | None = None, max_elements: int = MAX_ELEMENTS
) -> str:
    """The text of `program`, ending in a newline. Constants of more than `max_elements` elements print as their digest
    and are put into `constants`, which `parse_program` then takes."""
    printer = _ProgramPrinter(constants, max_elements)
    lines = [
        f"symbol {s.name} in {s.lo}..{'' if s.hi is None else s.hi}"
        for s in program_symbols(program).values()
        if s.lo != 0 or s.hi is not None
    ]
    return "\n".join([*lines, *printer.program(program)]) + "\n"


def program_symbols(program: Program) -> dict[str, Symbol]:
    """Every symbol of the buffers, views, domains, tiles and bodies, by name, in order of first appearance."""
    out = dict(program.symbols)
    for s in symbols_in(tuple((r.left, r.right) for r in program.requirements)):
        out.setdefault(s.name, s)
    for step in program.steps:
        items: list[Any] = [(v.shape, v.strides, v.offset) for v in step.views]
        if isinstance(step, Control):
            items += [(r.left, r.right) for r in step.requirements]
            if step.iteration is not None:
                out.setdefault(step.iteration.name, step.iteration)
        if isinstance(step, Kernel):
            items += [tuple(a.extent for a in step.axes), *step.tiles.values(), *map(_as_tuple, step.params.values())]
        for s in symbols_in(tuple(items)):
            out.setdefault(s.name, s)
        if isinstance(step, Kernel):
            for s in graph_symbols(step.body).values():
                out.setdefault(s.name, s)
        if isinstance(step, Read):
            for s in step.symbols:
                out.setdefault(s.name, s)
    return out


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value


# -- printing --------------------------------------------------------------------------------------------------------


def _name(buffer: Buffer) -> str:
    return "@" + (buffer.name if _PLAIN_NAME.match(buffer.name) else json.dumps(buffer.name))


def view_text(view: View) -> str:
    try:
        covers = view == whole(view.buffer)
    except (IndexError, ValueError, ZeroDivisionError):
        covers = False
    if covers:
        return _name(view.buffer)
    shape, strides = (", ".join(map(str, dims)) for dims in (view.shape, view.strides))
    return f"{_name(view.buffer)}[{shape}]:[{strides}]:[{view.offset}]"


def index_text(index: Index, axes: Sequence[Axis]) -> str:
    if index.whole:
        return "*"
    terms = [axes[a].name if f == 1 else f"{f}*{axes[a].name}" for a, f in index.terms]
    return " + ".join([*terms, *([str(index.base)] if index.base or not terms else [])])


def step_text(step: Step) -> str:
    """The head of a step and the views that it reads and writes, for messages."""
    printer = _ProgramPrinter(None, MAX_ELEMENTS)
    return "\n".join(islice(printer.step(step), 3))


class _ProgramPrinter(_Printer):
    def __init__(self, store: MutableMapping[str, Constant] | None, max_elements: int) -> None:
        super().__init__(store, max_elements, True)

    def program(self, program: Program) -> Iterator[str]:
        name = program.name if program.name.isidentifier() else json.dumps(program.name)
        inputs, outputs = (", ".join(map(_name, buffers)) for buffers in (program.inputs, program.outputs))
        yield f"program {name}({inputs}) -> ({outputs}) {{"
        for buffer in program.buffers:
            yield "  " + self.buffer(buffer)
        yield from ("  " + self.requirement(r) for r in program.requirements)
        margin = "  "
        for step in program.steps:
            if isinstance(step, Control) and step.kind in ("else", "end"):
                margin = margin[:-2]
            yield from (margin + line for line in self.step(step))
            if isinstance(step, Control) and step.kind != "end":
                margin += "  "
                yield from (margin + self.requirement(r) for r in step.requirements)
        yield "}"

    def requirement(self, r: Requirement) -> str:
        head = f"require {'equal' if r.exact else 'least'}[{r.left}, {r.right}]"
        return head + (f" {json.dumps(r.reason)}" if r.reason else "") + self.origin(r.origin)

    def step(self, step: Step) -> Iterator[str]:
        if isinstance(step, Kernel):
            return self.kernel(step)
        if isinstance(step, Region):
            return self.region(step)
        return self.control(step) if isinstance(step, Control) else self.read(step)

    def control(self, c: Control) -> Iterator[str]:
        if c.kind == "end":
            yield "}"
        elif c.kind == "else":
            yield "} else {"
        else:
            head = f"loop {c.iteration}" if c.kind == "loop" else "if"
            if c.trip is not None:
                head += f" below {c.trip}"
            if c.inputs:
                head += (" while " if c.kind == "loop" else " ") + ", ".join(map(view_text, c.inputs))
            yield head + self.origin(c.origin) + " {"

    def buffer(self, b: Buffer) -> str:
        out = f"{b.kind} {_name(b)}: {b.type}"
        if str(b.layout) != "plain":
            out += f" {b.layout}"
        if b.memory != "dram":
            out += f" in {b.memory}"
        if b.packing:
            out += f" packing {json.dumps(b.packing)}"
        return out + (f" = {self.constant(b.data)}" if b.data is not None else "")

    @staticmethod
    def origin(origin: tuple[str, ...]) -> str:
        return f" from {', '.join(map(json.dumps, origin))}" if origin else ""

    @staticmethod
    def views(step: Step) -> Iterator[str]:
        for word, views in (("reads", step.inputs), ("writes", step.outputs)):
            if views:
                yield f"  {word} {', '.join(map(view_text, views))}"

    def kernel(self, k: Kernel) -> Iterator[str]:
        params = ", ".join(f"{n}={self.param(v)}" for n, v in k.params.items())
        yield f"kernel {k.family}" + (f"{{{params}}}" if params else "") + self.origin(k.origin) + " {"
        yield from self.views(k)
        if k.axes:
            words = ((("reduce " if a.kind == "reduce" else "") + f"{a.name}={a.extent}") for a in k.axes)
            yield f"  axes ({', '.join(words)})"
        if k.maps:
            maps = (", ".join(index_text(i, k.axes) for i in access) for access in k.maps)
            yield "  maps " + ", ".join(f"({m})" for m in maps)
        if k.tiles:
            yield "  tiles " + ", ".join(f"{level}({', '.join(map(str, t))})" for level, t in k.tiles.items())
        if k.anchor is not None:
            yield f"  anchor {list(k.body.nodes).index(k.anchor)}"
        first, *rest = self.graph("body", k.body)
        yield "  " + (first.replace("body body(", "body(", 1))
        yield from ("  " + line for line in rest)
        yield "}"

    def region(self, r: Region) -> Iterator[str]:
        yield f"region {r.index} {json.dumps(r.reason)}" + self.origin(r.origin) + " {"
        yield from self.views(r)
        yield "}"

    def read(self, r: Read) -> Iterator[str]:
        yield f"read [{', '.join(s.name for s in r.symbols)}]" + self.origin(r.origin) + " {"
        yield from self.views(r)
        yield "}"

    def param(self, v: Any) -> str:
        if isinstance(v, (list, tuple)):
            return f"[{', '.join(map(self.param, v))}]"
        if isinstance(v, dict):
            return "{" + ", ".join(f"{json.dumps(k)}: {self.param(x)}" for k, x in v.items()) + "}"
        if isinstance(v, (Expr, DType)):
            return f"{'dim' if isinstance(v, Expr) else 'dtype'}({v})"
        if v is None or isinstance(v, (bool, int, float, str)):
            return self.value(v)
        raise TypeError(f"a kernel's parameter cannot be a {type(v).__name__}: {v!r}")


# -- equality --------------------------------------------------------------------------------------------------------


def equal_programs(a: Program, b: Program) -> str | None:
    """None when the programs are the same in all that the text form writes, but for the names of buffers that are
    neither inputs nor outputs and the names inside bodies; else the first difference."""
    if a.name != b.name:
        return f"program {a.name}, not {b.name}"
    left, right = a.buffers, b.buffers
    if len(left) != len(right):
        return f"{len(left)} buffers, not {len(right)}"
    match = dict(zip(left, right, strict=True))
    for x, y in match.items():
        if reason := _buffer_difference(x, y):
            return f"buffer {x!r}: {reason}"
    for word, bs, others in (("inputs", a.inputs, b.inputs), ("outputs", a.outputs, b.outputs)):
        if [match[x] for x in bs] != others or [x.name for x in bs] != [y.name for y in others]:
            return f"the {word} are {', '.join(x.name for x in bs)}, not {', '.join(y.name for y in others)}"
    if a.requirements != b.requirements:
        return f"it requires {', '.join(map(str, a.requirements))}, not {', '.join(map(str, b.requirements))}"
    if len(a.steps) != len(b.steps):
        return f"{len(a.steps)} steps, not {len(b.steps)}"
    for i, (s, t) in enumerate(zip(a.steps, b.steps, strict=True)):
        if reason := _step_difference(s, t, match):
            return f"step {i}: {reason}"
    return None


def _buffer_difference(x: Buffer, y: Buffer) -> str | None:
    if str(x.layout) != str(y.layout):
        return f"layout {x.layout}, not {y.layout}"
    for what in ("kind", "type", "memory", "packing", "data"):
        if getattr(x, what) != getattr(y, what):
            return f"{what} {getattr(x, what)}, not {getattr(y, what)}"
    return None


def _step_difference(s: Step, t: Step, match: dict[Buffer, Buffer]) -> str | None:
    for what, views, others in (("read", s.inputs, t.inputs), ("written", s.outputs, t.outputs)):
        moved = [View(match[v.buffer], v.shape, v.strides, v.offset) for v in views]
        if moved != others:
            return f"the views {what} are {', '.join(map(view_text, views))}, not {', '.join(map(view_text, others))}"
    if s.origin != t.origin:
        return f"origin {s.origin}, not {t.origin}"
    if isinstance(s, Control) or isinstance(t, Control):
        marks = [isinstance(c, Control) and (c.kind, c.iteration, c.trip, c.requirements) for c in (s, t)]
        return None if marks[0] == marks[1] else "the marks of control flow differ"
    if isinstance(s, Read) or isinstance(t, Read):
        same = isinstance(s, Read) and isinstance(t, Read) and s.symbols == t.symbols
        return None if same else "the symbols read differ"
    if isinstance(s, Region) or isinstance(t, Region):
        same = isinstance(s, Region) and isinstance(t, Region) and (s.index, s.reason) == (t.index, t.reason)
        return None if same else "the regions differ"
    for what in ("family", "axes", "maps"):
        if getattr(s, what) != getattr(t, what):
            return f"{what} {getattr(s, what)}, not {getattr(t, what)}"
    if list(s.tiles.items()) != list(t.tiles.items()):
        return f"tiles {s.tiles}, not {t.tiles}"
    if not compare.same_attr(_as_tuple(list(s.params.items())), _as_tuple(list(t.params.items()))):
        return f"params {s.params}, not {t.params}"
    if reason := compare.equal(s.body, t.body, origins=True):
        return f"the bodies differ: {reason}"
    places = [None if k.anchor is None else list(k.body.nodes).index(k.anchor) for k in (s, t)]
    return None if places[0] == places[1] else f"the anchor is node {places[0]}, not {places[1]}"
