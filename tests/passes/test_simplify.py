"""simplify, simplify-shapes, move-transposes."""

from __future__ import annotations

import pytest

from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.rewrite.rule import Numerics

# -- simplify: each line is an expression over x: f32[2, 3], and what stays of it ------------------------------------

UNARY = [
    ("%c = f32[] 0.0|%y = add(%x, %c)", []),
    ("%c = f32[] 0.0|%y = add(%c, %x)", []),
    ("%c = f32[3] 0.0|%y = sub(%x, %c)", []),
    ("%c = f32[] 1.0|%y = mul(%c, %x)", []),
    ("%c = f32[] 1.0|%y = div(%x, %c)", []),
    ("%c = f32[] 1.0|%y = pow(%x, %c)", []),
    ("%c = f32[2, 2, 3] 1.0|%y = mul(%x, %c)", ["expand"]),
    ("%c = f32[] -1.0|%y = mul(%x, %c)", ["neg"]),
    ("%c = f32[] 0.0|%y = sub(%c, %x)", ["neg"]),
    ("%c = f32[] 1.0|%y = div(%c, %x)", ["reciprocal"]),
    ("%a = neg(%x)|%y = neg(%a)", []),
    ("%a = neg(%x)|%y = reciprocal(%a)", ["neg", "reciprocal"]),
    ("%a = neg(%x)|%y = add(%x, %a)", ["sub"]),
    ("%a = neg(%x)|%b = exp(%x)|%y = sub(%b, %a)", ["exp", "add"]),
    ("%c = f32[] 2.0|%y = sub(%x, %c)", ["add"]),
    ("%y = cast(%x){dtype=f32}", []),
    ("%a = cast(%x){dtype=f64}|%y = cast(%a){dtype=f16}", ["cast"]),
    ("%a = cast(%x){dtype=f16}|%y = cast(%a){dtype=f32}", ["cast", "cast"]),
    ("%c = bool[] true|%a = exp(%x)|%y = where(%c, %x, %a)", []),
    ("%c = bool[2, 3] false|%a = exp(%x)|%y = where(%c, %x, %a)", ["exp"]),
    ("%c = bool[3] [true, false, true]|%a = exp(%x)|%y = where(%c, %x, %a)", ["exp", "where"]),
    ("%c = f32[] 0.0|%b = less(%x, %c)|%y = where(%b, %x, %x)", []),
    ("%c = f32[] 0.0|%y = max(%x, %c)", ["relu"]),
    ("%c = f32[1, 1, 1] 0.0|%y = max(%x, %c)", ["max"]),
    ("%a = relu(%x)|%y = relu(%a)", ["relu"]),
    ("%a = abs(%x)|%y = relu(%a)", ["abs"]),
    ("%c = f32[] -1.0|%d = f32[3] [-2.0, 0.5, 1.0]|%a = max(%x, %c)|%y = max(%a, %d)", ["max"]),
    ("%c = f32[] -1.0|%d = f32[] 1.0|%a = max(%x, %c)|%y = min(%a, %d)", ["max", "min"]),
    ("%c = f32[] 2.0|%d = f32[3] [-2.0, 0.5, 1.0]|%a = mul(%x, %c)|%y = mul(%a, %d)", ["mul"]),
    ("%c = f32[] 2.0|%d = f32[3] [-2.0, 0.5, 1.0]|%a = add(%x, %c)|%y = add(%d, %a)", ["add"]),
    ("%c = f32[2, 1] [[2.0], [1.5]]|%d = f32[3] [-2.0, 0.5, 1.5]|%a = add(%x, %c)|%y = add(%a, %d)", ["add", "add"]),
    ("%c = f32[] 2.0|%d = f32[] 3.0|%a = add(%x, %c)|%y = mul(%a, %d)", ["add", "mul"]),
    ("%c = f32[] 3.0|%y = div(%x, %c)", ["mul"]),
    ("%c = f32[] 0.0|%y = div(%x, %c)", ["div"]),
    ("%c = f32[] 1e-39|%y = div(%x, %c)", ["div"]),
    ("%a = exp(%x)|%b = reciprocal(%a)|%y = mul(%b, %x)", ["exp", "div"]),
    ("%c = f32[] 2.0|%y = pow(%x, %c)", ["mul"]),
    ("%c = f32[] 3.0|%y = pow(%x, %c)", ["mul", "mul"]),
    ("%c = f32[] -1.0|%y = pow(%x, %c)", ["reciprocal"]),
    ("%c = f32[] 0.5|%y = pow(%x, %c)", ["pow"]),
    ("%y = max(%x, %x)", []),
    ("%z = f32[] 0.0|%c = less(%x, %z)|%n = not(%c)|%a = exp(%x)|%y = where(%n, %x, %a)", ["less", "exp", "where"]),
]


@pytest.mark.parametrize(("body", "ops"), UNARY, ids=[b for b, _ in UNARY])
def test_algebra(apply, body: str, ops: list[str]) -> None:
    lines = "\n  ".join(body.split("|"))
    assert apply(f"graph main(%x: f32[2, 3]) {{\n  {lines}\n  return %y\n}}", "simplify", tolerance=2e-6).ops == ops


def test_a_division_of_unknown_rank() -> None:
    graph = parse_graph("graph main(%x: f32[*]) {\n%c = f32[] 3.0\n%y = div(%x, %c)\nreturn %y\n}")
    PassManager.run(graph, Pipeline.parse("simplify"), PassContext())
    assert [n.op for n in graph.nodes if n.op != "constant"] == ["mul"]


def test_booleans_and_integers(apply) -> None:
    out = apply(
        """graph main(%p: bool[n, 1], %i: i64[n]) {
          %t = bool[3] true
          %a = and(%p, %t)
          %b = not(%a)
          %c = not(%b)
          %k = i64[] 3
          %d = sub(%i, %k)
          %e = div(%d, %k)
          %f = mul(%e, %k)
          %g = mul(%f, %k)
          return %c, %g
        }""",
        "simplify",
    )
    assert out.ops == ["expand", "sub", "div", "mul", "mul"]


@pytest.mark.parametrize(("k", "ops"), [("1.0", []), ("0.0", ["not"]), ("2.0", ["where", "equal"])])
def test_comparison_of_a_choice(apply, k: str, ops: list[str]) -> None:
    out = apply(
        f"""graph main(%c: bool[n]) {{
          %a = f32[] 1.0
          %b = f32[] 0.0
          %k = f32[1] {k}
          %w = where(%c, %a, %b)
          %y = equal(%k, %w)
          return %y
        }}""",
        "simplify",
    )
    assert out.ops == ops


def test_only_exact_rules_when_reassociation_is_forbidden(apply) -> None:
    ctx = PassContext(forbidden=frozenset({Numerics.REASSOCIATES, Numerics.APPROXIMATE}))
    out = apply(
        """graph main(%x: f32[3]) {
          %c = f32[] 3.0
          %d = f32[] 4.0
          %a = div(%x, %c)
          %y = div(%a, %d)
          return %y
        }""",
        "simplify",
        ctx=ctx,
    )
    assert out.ops == ["div", "mul"]


# -- simplify-shapes -----------------------------------------------------------------------------------------------

SHAPES = [
    ("%y = reshape(%x){shape=[n, 4, 6]}", []),
    ("%y = reshape(%x){shape=[n*2, 12]}", ["reshape"]),
    ("%a = reshape(%x){shape=[24*n]}|%y = reshape(%a){shape=[n, 4, 6]}", []),
    ("%a = reshape(%x){shape=[24*n]}|%y = reshape(%a){shape=[n, 24]}", ["reshape"]),
    ("%y = expand(%x){shape=[n, 4, 6]}", []),
    ("%a = expand(%x){shape=[2, n, 4, 6]}|%y = expand(%a){shape=[3, 2, n, 4, 6]}", ["expand"]),
    ("%c = f32[6] [1., 2., 3., 4., 5., 6.]|%a = expand(%c){shape=[n, 4, 6]}|%y = add(%a, %x)", ["add"]),
    ("%c = f32[6] [1., 2., 3., 4., 5., 6.]|%a = expand(%c){shape=[n, 4, 6]}|%y = sub(%x, %a)", ["sub"]),
    ("%z = f32[] 0.0|%c = less(%x, %z)|%a = expand(%z){shape=[n, 4, 6]}|%y = where(%c, %a, %x)", ["less", "where"]),
    ("%c = f32[6] 1.0|%a = expand(%x){shape=[2, n, 4, 6]}|%y = add(%a, %c)", ["expand", "add"]),
    ("%c = f32[] 2.0|%a = expand(%x){shape=[2, n, 4, 6]}|%b = mul(%a, %c)|%y = exp(%b)", ["mul", "exp", "expand"]),
    ("%y = slice(%x){starts=[0, 0, 0], sizes=[n, 4, 6], steps=[1, 1, 1]}", []),
    ("%y = slice(%x){starts=[0, 3, 0], sizes=[n, 4, 6], steps=[1, -1, 1]}", ["slice"]),
    ("%i = i64[] -1|%y = gather(%x, %i){axis=1}", ["slice", "reshape"]),
    ("%i = i64[1, 2] [[2, 3]]|%y = gather(%x, %i){axis=1}", ["slice", "reshape"]),
    ("%i = i64[2] [-1, 0]|%y = gather(%x, %i){axis=1}", ["gather"]),
    ("%y = concat(%x){axis=1}", []),
    ("%a = concat(%x, %x){axis=1}|%y = concat(%x, %a){axis=1}", ["concat"]),
    ("%a = concat(%x, %x){axis=1}|%y = concat(%a, %a){axis=2}", ["concat", "concat"]),
    ("%a = slice(%x){starts=[0, 0, 0], sizes=[n, 0, 6], steps=[1, 1, 1]}|%y = concat(%x, %a){axis=1}", []),
    ("%y = pad(%x){pads=[0, 0, 0, 0, 0, 0]}", []),
    ("%y = pad(%x){pads=[0, 0, 0, 0, 1, 0]}", ["pad"]),
    ("%y = transpose(%x){perm=[0, 2, 1]}", ["transpose"]),
    ("%a = reshape(%x){shape=[n, 1, 24]}|%y = transpose(%a){perm=[1, 0, 2]}", ["reshape"]),
    ("%a = reshape(%x){shape=[n, 1, 24]}|%y = reduce_max(%a){axes=[1], keepdims=false}", ["reshape"]),
]


@pytest.mark.parametrize(("body", "ops"), SHAPES, ids=[b for b, _ in SHAPES])
def test_shapes(apply, body: str, ops: list[str]) -> None:
    lines = "\n  ".join(body.split("|"))
    out = apply(f"graph main(%x: f32[n, 4, 6]) {{\n  {lines}\n  return %y\n}}", "simplify-shapes,dead-code")
    assert out.ops == ops


def test_slices_compose(apply) -> None:
    out = apply(
        """graph main(%x: f32[20]) {
          %a = slice(%x){starts=[18], sizes=[8], steps=[-2]}
          %y = slice(%a){starts=[1], sizes=[3], steps=[2]}
          return %y
        }""",
        "simplify-shapes",
    )
    assert out.only("slice") == {"starts": (16,), "sizes": (3,), "steps": (-4,)}


def test_unequal_symbols_stay_apart(apply) -> None:
    text = """graph main(%x: f32[n], %z: f32[m]) {
      %y = reshape(%x){shape=[m]}
      return %y
    }"""
    assert apply(text, "simplify-shapes").ops == ["reshape"]


def test_expanded_condition_and_mask(apply) -> None:
    out = apply(
        """graph main(%q: f32[b, 2, s, 4], %m: bool[b, 1, 1, s]) {
          %e = expand(%m){shape=[b, 1, s, s]}
          %z = f32[] 0.0
          %h = f32[] -3e38
          %w = where(%e, %z, %h)
          %y = attention(%q, %q, %q, %w){scale=0.5, causal=false}
          return %y
        }""",
        "simplify-shapes",
    )
    assert out.ops == ["where", "attention"]


@pytest.mark.parametrize(("value", "ops"), [("0.0", ["conv"]), ("1.0", ["pad", "conv"])])
def test_padding_joins_convolution(apply, value: str, ops: list[str]) -> None:
    out = apply(
        f"""graph main(%x: f32[1, 1, 5, 5]) {{
          %w = f32[1, 1, 3, 3] 0.5
          %v = f32[] {value}
          %p = pad(%x, %v){{pads=[0, 0, 1, 0, 0, 0, 0, 2]}}
          %y = conv(%p, %w){{strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1]}}
          return %y
        }}""",
        "simplify-shapes",
    )
    assert out.ops == ops
    assert out.only("conv")["pads"] == ((2, 1, 1, 3) if value == "0.0" else (1, 1, 1, 1))


def test_padded_channels_do_not_join(apply) -> None:
    out = apply(
        """graph main(%x: f32[1, 1, 5, 5]) {
          %w = f32[1, 2, 3, 3] 0.5
          %p = pad(%x){pads=[0, 1, 0, 0, 0, 0, 0, 0]}
          %y = conv(%p, %w){strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}
          return %y
        }""",
        "simplify-shapes",
    )
    assert out.ops == ["pad", "conv"] and "batch or channels are padded" in out.reasons


# -- move-transposes -----------------------------------------------------------------------------------------------

JOINED = "%a = reshape(%x){shape=[2*n, 2, 6]}|%b = transpose(%a){perm=[0, 2, 1]}|"
TRANSPOSES = [
    ("%y = transpose(%x){perm=[0, 1, 2]}", []),
    ("%a = transpose(%x){perm=[1, 2, 0]}|%y = transpose(%a){perm=[2, 0, 1]}", []),
    ("%a = transpose(%x){perm=[1, 2, 0]}|%y = transpose(%a){perm=[1, 2, 0]}", ["transpose"]),
    ("%a = transpose(%x){perm=[1, 2, 0]}|%b = exp(%a)|%y = transpose(%b){perm=[2, 0, 1]}", ["exp"]),
    ("%a = transpose(%x){perm=[1, 2, 0]}|%y = exp(%a)", ["transpose", "exp"]),
    ("%a = transpose(%x){perm=[1, 2, 0]}|%b = transpose(%z){perm=[1, 2, 0]}|%y = add(%a, %b)", ["add", "transpose"]),
    (
        "%a = transpose(%x){perm=[1, 2, 0]}|%b = transpose(%z){perm=[1, 2, 0]}|%c = where(%k, %a, %b)|"
        "%y = transpose(%c){perm=[2, 0, 1]}",
        ["where"],
    ),
    ("%a = transpose(%x){perm=[1, 2, 0]}|%b = transpose(%z){perm=[2, 1, 0]}|%y = add(%a, %a)", ["transpose", "add"]),
    (
        "%s = f32[4, 1] [[1.], [2.], [3.], [4.]]|%a = transpose(%x){perm=[0, 2, 1]}|%b = mul(%a, %r)|%c = relu(%b)|"
        "%y = transpose(%c){perm=[0, 2, 1]}",
        ["mul", "relu"],
    ),
    ("%a = transpose(%x){perm=[0, 2, 1]}|%y = reduce_mean(%a){axes=[1, 2], keepdims=false}", ["reduce_mean"]),
    ("%a = transpose(%x){perm=[2, 1, 0]}|%y = reduce_mean(%a){axes=[1], keepdims=false}", ["transpose", "reduce_mean"]),
    (JOINED + "%y = reshape(%b){shape=[n, 2, 6, 2]}", ["reshape", "transpose"]),
    (JOINED + "%y = reshape(%b){shape=[2, n, 6, 2]}", ["reshape", "transpose"]),
    (JOINED + "%y = reshape(%b){shape=[n, 2, 3, 4]}", ["reshape", "transpose", "reshape"]),
    (JOINED + "%y = reshape(%b){shape=[2*n, 12]}", ["reshape", "transpose", "reshape"]),
]


@pytest.mark.parametrize(("body", "ops"), TRANSPOSES, ids=[b for b, _ in TRANSPOSES])
def test_transposes(apply, body: str, ops: list[str]) -> None:
    lines = "\n  ".join(body.split("|"))
    text = f"""graph main(%x: f32[n, 4, 6], %z: f32[n, 4, 6], %k: bool[1, 1, 1]) {{
      %r = f32[6, 1] [[1.], [2.], [3.], [4.], [5.], [6.]]
      {lines}
      return %y
    }}"""
    assert apply(text, "move-transposes,fold-constants,dead-code", tolerance=1e-6).ops == ops


def test_transpose_used_twice_stays(apply) -> None:
    out = apply(
        """graph main(%x: f32[2, 3]) {
          %a = transpose(%x){perm=[1, 0]}
          %b = exp(%a)
          %y = transpose(%b){perm=[1, 0]}
          return %y, %b
        }""",
        "move-transposes",
    )
    assert out.ops == ["transpose", "exp", "transpose"] and "no transpose would go" in out.reasons


def test_a_linear_layer_on_rows_is_one_on_their_groups(apply) -> None:
    """As exporters write Gemm between two reshapes: what follows meets the product itself."""
    out = apply(
        """graph main(%x: f32[n, 3, 2, 4], %w: f32[8, 5], %b: f32[1, 5], %r: f32[n, 3, 5]) {
          %f = reshape(%x){shape=[3*n, 8]}
          %p = matmul(%f, %w)
          %s = add(%b, %p)
          %u = reshape(%s){shape=[n, 3, 5]}
          %y = add(%u, %r)
          return %y
        }""",
        "simplify-shapes",
    )
    assert out.ops == ["reshape", "matmul", "reshape", "add", "add"]


@pytest.mark.parametrize(
    ("middle", "shape", "returned"),
    [("", "n, 3, 5", "%u, %p"), ("", "n, 5, 3", "%u"), ("%s = add(%p, %c)", "n, 3, 5", "%u")],
    ids=["used elsewhere", "columns regrouped", "rows that differ"],
)
def test_rows_that_stay_flat(apply, middle: str, shape: str, returned: str) -> None:
    out = apply(
        f"""graph main(%x: f32[n, 3, 8], %w: f32[8, 5], %c: f32[3*n, 5]) {{
          %f = reshape(%x){{shape=[3*n, 8]}}
          %p = matmul(%f, %w)
          {middle}
          %u = reshape(%{"s" if middle else "p"}){{shape=[{shape}]}}
          return {returned}
        }}""",
        "simplify-shapes",
    )
    assert out.ops == ["reshape", "matmul", *(["add"] if middle else []), "reshape"]
