"""Reading the text form of a Program; `program_text` describes the form."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from opcel_compiler.ir.dims import Dim, Expr, Symbol, as_symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.layout import PLAIN, Layout
from opcel_compiler.ir.parse import _Parser
from opcel_compiler.ir.parse_dims import parse_dim
from opcel_compiler.ir.program import (
    BUFFER_KINDS,
    AccessMap,
    Axis,
    Buffer,
    Control,
    Index,
    Kernel,
    Program,
    Read,
    Region,
    Requirement,
    View,
    whole,
)
from opcel_compiler.ir.types import DTYPES


def parse_program(
    text: str,
    constants: Mapping[str, Constant] | None = None,
    region_nodes: Mapping[int, tuple[Node, ...]] | None = None,
) -> Program:
    """The Program that `text` writes; `constants` gives what is written as a digest, `region_nodes` the nodes of the
    regions by index (none where absent). Raises ParseError."""
    parser = _ProgramParser(text, constants or {}, region_nodes or {})
    return parser.whole(parser.program)


class _ProgramParser(_Parser):
    def __init__(self, text: str, constants: Mapping[str, Constant], nodes: Mapping[int, tuple[Node, ...]]) -> None:
        super().__init__(text, constants)
        self.buffers: dict[str, Buffer] = {}
        self.nodes = nodes

    def name(self) -> str:
        self.expect("@")
        if self.peek(re.compile('"')):
            return self.string()
        found = self.take(re.compile(r"[A-Za-z0-9_.]+"))
        return found.group() if found else self.fail("expected a buffer's name")

    def program(self) -> Program:
        if not self.word("program"):
            self.fail("expected 'program'")
        program = Program(self.string() if self.peek(re.compile('"')) else self.identifier("the program's name"))
        inputs = self.items("(", ")", self.name)
        self.expect("->")
        outputs = self.items("(", ")", self.name)
        self.expect("{")
        marks: list[Control] = []
        while True:
            if self.sign("}"):
                if not marks:
                    break
                marks.pop()
                mark = Control("else" if self.word("else") else "end")
                program.steps.append(mark)
                if mark.kind == "else":
                    self.expect("{")
                    marks.append(mark)
                continue
            self.skip()
            start = self.at
            word = self.identifier("a buffer or a step")
            if word in BUFFER_KINDS:
                self.buffer(word)
            elif word == "kernel":
                program.steps.append(self.kernel())
            elif word == "region":
                program.steps.append(self.region())
            elif word == "require":
                (marks[-1] if marks else program).requirements.append(self.requirement())
            elif word == "read":
                program.steps.append(self.read())
            elif word in ("if", "loop"):
                marks.append(self.control(word))
                program.steps.append(marks[-1])
            else:
                self.fail(
                    f"{word!r} is none of kernel, region, read, require, if, loop, {', '.join(BUFFER_KINDS)}", start
                )
        for names, buffers in ((inputs, program.inputs), (outputs, program.outputs)):
            for name in names:
                if name not in self.buffers:
                    self.fail(f"buffer @{name} is not declared")
                buffers.append(self.buffers[name])
        return program

    def buffer(self, kind: str) -> None:
        self.skip()
        start = self.at
        name = self.name()
        if name in self.buffers:
            self.fail(f"@{name} is declared twice", start)
        self.expect(":")
        buffer = Buffer(name, self.tensor_type(), kind, self.layout())
        if self.word("in"):
            buffer.memory = self.identifier("a memory")
        if self.word("packing"):
            buffer.packing = self.string()
        if self.sign("="):
            buffer.data = self.constant()
        self.buffers[name] = buffer

    def layout(self) -> Layout:
        if not self.word("layout"):
            return PLAIN
        self.skip()
        start = self.at
        found = self.take(
            re.compile(
                r"<(?:order=(?P<order>[\d.]+))?(?:, )?(?:block=(?P<block>\d+)@(?P<axis>\d+))?(?:, )?"
                r"(?:halo=(?P<halo>[\d.-]+))?(?:, )?(?:pad=(?P<pad>[^,>]+))?(?:, )?(?:storage=(?P<storage>\w+))?(?:, )?"
                r"(?:room=(?P<room>\d+)@(?P<grown>\d+))?>"
            )
        )
        if not found:
            self.fail(
                "expected <order=0.1, block=8@1, halo=0-0.1-1, pad=0.0, storage=bf16, room=64@2>, each part optional"
            )
        try:
            return Layout(
                tuple(map(int, found["order"].split("."))) if found["order"] else (),
                int(found["axis"] or 1),
                int(found["block"] or 1),
                tuple(self.pair(h) for h in found["halo"].split(".")) if found["halo"] else (),
                float(found["pad"] or 0.0),
                found["storage"] or "",
                (int(found["grown"]), int(found["room"])) if found["room"] else (),
            )
        except ValueError as e:
            self.fail(str(e), start)

    @staticmethod
    def pair(text: str) -> tuple[int, int]:
        before, after = map(int, text.split("-"))
        return before, after

    def list_of(self, item: Callable[[], Any]) -> list[Any]:
        out = [item()]
        while self.sign(","):
            out.append(item())
        return out

    def view(self) -> View:
        self.skip()
        start = self.at
        name = self.name()
        buffer = self.buffers.get(name)
        if buffer is None:
            self.fail(f"buffer @{name} is not declared", start)
        if not self.sign("["):
            return whole(buffer)
        self.at -= 1
        shape = tuple(self.items("[", "]", self.dim))
        self.expect(":")
        strides = tuple(self.items("[", "]", self.dim))
        self.expect(":")
        offset = self.single("[", "]", self.dim)
        return View(buffer, shape, strides, offset)

    def views(self, word: str) -> list[View]:
        return self.list_of(self.view) if self.word(word) else []

    def origins(self) -> tuple[str, ...]:
        return tuple(self.list_of(self.string)) if self.word("from") else ()

    def kernel(self) -> Kernel:
        found = self.take(re.compile(r"[\w.-]+"))
        if not found:
            self.fail("expected a kernel family")
        params: dict[str, Any] = {}
        if self.peek(re.compile(r"\{\s*\w+\s*=")):
            params.update(self.items("{", "}", self.named_param))
        origin = self.origins()
        self.expect("{")
        inputs, outputs = self.views("reads"), self.views("writes")
        axes = tuple(self.items("(", ")", self.axis)) if self.word("axes") else ()
        maps: tuple[AccessMap, ...] = ()
        if self.word("maps"):
            places = {a.name: i for i, a in enumerate(axes)}
            maps = tuple(self.list_of(lambda: tuple(self.items("(", ")", lambda: self.index(places)))))
        tiles = dict(self.list_of(self.tile)) if self.word("tiles") else {}
        anchor = self.integer("the place of a node") if self.word("anchor") else None
        self.skip()
        start = self.at
        if not self.word("body"):
            self.fail("expected 'body'")
        self.names = set()
        body = self.graph(Graph("body"), {})
        nodes = list(body.nodes)
        if anchor is not None and not 0 <= anchor < len(nodes):
            self.fail(f"the body has no node {anchor}", start)
        self.expect("}")
        node = None if anchor is None else nodes[anchor]
        return Kernel(found.group(), body, inputs, outputs, node, params, axes, maps, tiles, origin)

    def region(self) -> Region:
        index = self.integer("a region's number")
        reason, origin = self.string(), self.origins()
        self.expect("{")
        inputs, outputs = self.views("reads"), self.views("writes")
        self.expect("}")
        return Region(index, self.nodes.get(index, ()), inputs, outputs, reason, origin)

    def control(self, kind: str) -> Control:
        out = Control(kind)
        if kind == "loop":
            name = self.identifier("the symbol of the iterations")
            out.iteration = self.symbols.get(name) or Symbol(name)
            if self.word("below"):
                out.trip = self.limit()
        if kind == "if" or self.word("while"):
            out.inputs.append(self.view())
        out.origin = self.origins()
        self.expect("{")
        return out

    def limit(self) -> Dim:
        """A dim that ends before a word of a loop's head or its brace."""
        self.skip()
        found = re.compile(r"(.*?)(?=\s(?:while|from)\s|\s?\{)").match(self.text, self.at)
        if found is None:
            self.fail("expected a trip count")
        start, self.at = self.at, found.end()
        try:
            return parse_dim(found[1], self.symbols)
        except ValueError as e:
            self.fail(str(e), start)

    def read(self) -> Read:
        self.skip()
        start = self.at
        symbols = [as_symbol(d) for d in self.items("[", "]", self.dim)]
        origin = self.origins()
        self.expect("{")
        inputs = self.views("reads")
        self.expect("}")
        if None in symbols or len(inputs) != 1:
            self.fail("a read gives symbols the values of one view", start)
        return Read(inputs, tuple(s for s in symbols if s is not None), origin)

    def requirement(self) -> Requirement:
        self.skip()
        start = self.at
        exact = self.word("equal")
        if not exact and not self.word("least"):
            self.fail("expected 'equal' or 'least'")
        dims = self.items("[", "]", self.dim)
        if len(dims) != 2:
            self.fail("two dims are compared", start)
        reason = self.string() if self.peek(re.compile('"')) else ""
        return Requirement(dims[0], dims[1], exact, self.origins(), reason)

    def axis(self) -> Axis:
        kind = "reduce" if self.word("reduce") else "parallel"
        name = self.identifier("an axis")
        self.expect("=")
        return Axis(name, self.dim(), kind)

    def index(self, axes: Mapping[str, int]) -> Index:
        if self.sign("*"):
            return Index(whole=True)
        self.skip()
        start = self.at
        known, self.symbols = self.symbols, {}
        dim = self.dim()
        self.symbols = known
        terms, base = [], 0
        for mono, factor in dim.terms if isinstance(dim, Expr) else (((), dim),):
            if not mono:
                base = factor
                continue
            symbol = mono[0]
            if len(mono) > 1 or not isinstance(symbol, Symbol) or symbol.name not in axes:
                self.fail(f"{dim} is not affine in the axes {', '.join(axes)}", start)
            terms.append((axes[symbol.name], factor))
        return Index(tuple(sorted(terms)), base)

    def tile(self) -> tuple[str, tuple[Any, ...]]:
        return self.identifier("a memory"), tuple(self.items("(", ")", self.dim))

    def named_param(self) -> tuple[str, Any]:
        name = self.identifier("a parameter")
        self.expect("=")
        return name, self.param()

    def param(self) -> Any:
        if self.peek(re.compile(r"\[")):
            return tuple(self.items("[", "]", self.param))
        if self.peek(re.compile(r"\{")):
            return dict(self.items("{", "}", self.entry))
        if self.peek(re.compile(r"dim\(")):
            return self.within("dim", self.dim)
        if self.peek(re.compile(r"dtype\(")):
            return DTYPES[self.within("dtype", lambda: self.dtype().name)]
        return self.attr(None)

    def entry(self) -> tuple[str, Any]:
        key = self.string()
        self.expect(":")
        return key, self.param()

    def within(self, word: str, item: Callable[[], Any]) -> Any:
        self.word(word)
        return self.single("(", ")", item)
