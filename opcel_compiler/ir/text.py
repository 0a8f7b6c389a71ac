"""The text form of a graph.

    symbol n in 1..64
    graph main(%x: f32[n, 3, 8, 8], %m: bool[n]) {
      %w = f32[2] [1.0, -0.5]                       ; a constant; one element alone fills the shape
      %k = f32[4, 3, 3, 3] #5b1f0c9a7d3e2468        ; a large constant, by its digest
      %y = conv(%x, %k){strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]} : f32[n, 4, 6, 6] from "Conv_0"
      %z = fused(%y) : f32[n, 4, 6, 6]
        region body(%a: f32[n, 4, 6, 6]) {
          %b = relu(%a) : f32[n, 4, 6, 6]
          return %b
        }
      return %z as "scores:0"
    }

`_` stands for an absent operand. Attributes at their defaults are left out, so may be the types of results that can
be inferred, and symbols of the full range need no header line. A `;` opens a comment.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import MutableMapping
from typing import Any

import numpy as np

from opcel_compiler.ir.analysis import graph_symbols
from opcel_compiler.ir.encodings import DENSE, Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.opdef import InferenceError
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.scan import ParseError
from opcel_compiler.ir.types import F32, F64, DType

MAX_ELEMENTS = 16
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)


def print_graph(
    graph: Graph,
    *,
    constants: MutableMapping[str, Constant] | None = None,
    max_elements: int = MAX_ELEMENTS,
    origins: bool = False,
) -> str:
    """The text of `graph`, ending in a newline.

    Constants of more than `max_elements` elements print as their digest and are put into `constants`, which
    `parse_graph` then takes. With `origins` each node names the ONNX nodes that it came from.
    """
    printer = _Printer(constants, max_elements, origins)
    lines = []
    for s in graph_symbols(graph).values():
        if s.lo != 0 or s.hi is not None:
            lines.append(f"symbol {s.name} in {s.lo}..{'' if s.hi is None else s.hi}")
    lines += printer.graph("graph", graph)
    return "\n".join(lines) + "\n"


def print_node(node: Node) -> str:
    """One line: the node without its regions."""
    return _Printer(None, MAX_ELEMENTS, True).node(node)


def context(node: Node, around: int = 3) -> str:
    """The lines of the nodes around `node`, which is marked; for messages, so also for a graph that is not valid."""
    before: list[Node] = []
    after: list[Node] = []
    at = node._prev
    while at is not None and len(before) < around:
        before.append(at)
        at = at._prev
    at = node._next
    while at is not None and len(after) < around:
        after.append(at)
        at = at._next
    marked = [("  ", n) for n in reversed(before)] + [("> ", node)] + [("  ", n) for n in after]
    return "\n".join(mark + print_node(n) for mark, n in marked)


def own_attrs(node: Node) -> dict[str, Any]:
    """The node's attributes that are not at their defaults."""
    try:
        definitions = node.definition.attrs
    except (KeyError, InferenceError):
        definitions = {}

    def is_default(name: str, value: Any) -> bool:
        d = definitions.get(name)
        return d is not None and d.default is not ... and type(d.default) is type(value) and d.default == value

    return {name: value for name, value in node.attrs.items() if not is_default(name, value)}


class _Printer:
    def __init__(self, store: MutableMapping[str, Constant] | None, max_elements: int, origins: bool) -> None:
        self.store = store
        self.max_elements = max_elements
        self.origins = origins

    def graph(self, keyword: str, graph: Graph) -> list[str]:
        inputs = ", ".join(f"%{v.name}: {v.type}" for v in graph.inputs)
        name = graph.name if _IDENTIFIER.match(graph.name) else json.dumps(graph.name)
        lines = [f"{keyword} {name}({inputs}) {{"]
        for node in graph.nodes:
            lines.append("  " + self.node(node))
            for region in node.regions:
                lines += ["    " + line for line in self.graph("region", region)]
        outputs = []
        for value, name in zip(graph.outputs, graph.output_names, strict=False):
            outputs.append(f"%{value.name}" + ("" if name == value.name else f" as {json.dumps(name)}"))
        return [*lines, ("  return " + ", ".join(outputs)).rstrip(), "}"]

    def node(self, node: Node) -> str:
        out = ", ".join(f"%{v.name}" for v in node.results)
        if node.results:
            out += " = "
        types = ", ".join(str(v.type) for v in node.results)
        value = node.attrs.get("value")
        if node.op == "constant" and isinstance(value, Constant):
            out += self.constant(value)
            if [v.type for v in node.results] != [value.type]:
                out += f" : {types}"
        else:
            out += node.op + self.operands(node) + self.attrs(node)
            if node.results:
                out += f" : {types}"
        if self.origins and node.origin:
            out += " from " + ", ".join(map(json.dumps, node.origin))
        return out

    @staticmethod
    def operands(node: Node) -> str:
        def name(v: Value | None) -> str:
            return "_" if v is None else f"%{v.name}"

        return f"({', '.join(map(name, node.operands))})" if node.operands else ""

    def attrs(self, node: Node) -> str:
        shown = [f"{name}={self.value(value)}" for name, value in own_attrs(node).items()]
        return f"{{{', '.join(shown)}}}" if shown else ""

    def value(self, v: Any) -> str:
        """One attribute's value."""
        if v is None or isinstance(v, bool):
            return {None: "none", True: "true", False: "false"}[v]
        if isinstance(v, str):
            return json.dumps(v)
        if isinstance(v, bytes):
            return f'bytes"{base64.b64encode(v).decode()}"'
        if isinstance(v, tuple):
            inner = ", ".join(map(self.value, v))
            is_types = bool(v) and not isinstance(v[0], (int, float, str, DType)) and not hasattr(v[0], "terms")
            return f"({inner})" if is_types else f"[{inner}]"
        if isinstance(v, Constant):
            return self.constant(v)
        return repr(v) if isinstance(v, float) else str(v)

    def constant(self, c: Constant) -> str:
        head = str(c.type) if c.encoding == DENSE else f"{c.type} {c.encoding}"
        flat = c.array.reshape(-1)
        if flat.size > 1 and c.dtype.kind != "s" and _is_splat(flat):
            return f"{head} {print_elements(c.dtype, flat[:1])[0]}"
        if flat.size > self.max_elements:
            if self.store is not None:
                self.store[c.digest] = c
            return f"{head} #{c.digest}"
        texts = print_elements(c.dtype, flat)
        return f"{head} {_nested(texts, c.array.shape)}"


def _is_splat(flat: np.ndarray) -> bool:
    """Whether all elements have the same bits."""
    raw = np.ascontiguousarray(flat).view(np.uint8).reshape(flat.size, -1)
    return bool((raw[0] == raw[-1]).all() and (raw == raw[0]).all())


def print_elements(dtype: DType, flat: np.ndarray) -> list[str]:
    """One text an element, that reads back to the same bits: a NaN other than NumPy's own prints its bits in hex."""
    if dtype.kind == "c":
        part = F32 if dtype.bits == 64 else F64
        parts = print_elements(part, flat.view(part.numpy))
        return [f"[{re}, {im}]" for re, im in zip(parts[::2], parts[1::2], strict=True)]
    if dtype.kind == "s":
        return [f'bytes"{base64.b64encode(s).decode()}"' if isinstance(s, bytes) else json.dumps(str(s)) for s in flat]
    if dtype.kind == "b":
        return ["true" if v else "false" for v in flat]
    if dtype.kind in "iu":
        return [str(int(v)) if v == v else "nan" for v in flat]
    usual = np.array(np.nan).astype(flat.dtype).tobytes() if flat.size else b""
    out = []
    for v in flat:
        if v != v:
            raw = v.tobytes()
            out.append("nan" if raw == usual else "0x" + raw[::-1].hex())
        else:
            out.append(str(v) if flat.dtype == np.float32 else repr(float(v)))
    return out


def _nested(texts: list[str], shape: tuple[int, ...]) -> str:
    if not shape:
        return texts[0]
    if not texts:
        return "[]"
    step = len(texts) // shape[0]
    return "[" + ", ".join(_nested(texts[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])) + "]"


__all__ = ["ParseError", "context", "parse_graph", "print_graph", "print_node"]
