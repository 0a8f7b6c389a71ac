"""integer-sums: products of 8-bit integers summed in i32, as products of floats."""

from __future__ import annotations

import numpy as np
import pytest

from opcel_compiler.ir.interpret import run

DYNAMIC = """graph main(%x: u8[2, 3, 8], %z: u8[], %s: f32[]) {
  %xi = cast(%x){dtype=i32}
  %zi = cast(%z){dtype=i32}
  %a = sub(%xi, %zi)
  %w = i8[8, 5] 3
  %b = cast(%w){dtype=i32}
  %y = matmul(%a, %b)
  %f = cast(%y){dtype=f32}
  BODY
  return %r
}"""


@pytest.mark.parametrize(
    "body, ops",
    [
        ("%c = f32[5] [0.5, 1.0, 2.0, 4.0, 0.25]\n%k = mul(%s, %c)\n%r = mul(%f, %k)", []),
        ("%c = f32[] 0.5\n%k = mul(%c, %s)\n%r = mul(%k, %f)", []),
        ("%r = mul(%f, %s)", []),
        ("%c = f32[1, 5] [[0.5, 1.0, 2.0, 4.0, 0.25]]\n%r = mul(%f, %c)", []),
        ("%c = f32[3, 1] [[0.5], [1.0], [2.0]]\n%r = mul(%f, %c)", ["mul"]),
        ("%k = mul(%s, %s)\n%r = mul(%f, %k)", ["mul", "mul"]),
        ("%c = f32[2, 1, 1, 1] 0.5\n%r = mul(%f, %c)", ["mul"]),
    ],
)
def test_sums_read_as_floats_are_products_of_dequantized_numbers(apply, body: str, ops: list[str]) -> None:
    out = apply(DYNAMIC.replace("BODY", body), "integer-sums,dead-code", tolerance=1e-6, special=False)
    rest = list(out.ops)
    for op in ("dequantize", "dequantize", "matmul"):
        rest.remove(op)
    assert [op for op in rest if op != "reshape"] == ops
    scales = [n.operand(1).constant for n in out.graph.nodes if n.op == "dequantize"]
    assert ops or any(c is None or c.array.reshape(-1)[0] != 1 for c in scales)


def test_convolutions_have_scales_along_their_channels(apply) -> None:
    text = """graph main(%x: u8[1, 4, 6, 6]) {
      %xi = cast(%x){dtype=i32}
      %zi = i32[] 128
      %a = sub(%xi, %zi)
      %b = i32[3, 4, 3, 3] -128
      %y = conv(%a, %b){strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1]}
      %f = cast(%y){dtype=f32}
      %c = f32[1, 3, 1, 1] [[[[0.5]], [[1.0]], [[2.0]]]]
      %r = mul(%f, %c)
      return %r
    }"""
    out = apply(text, "integer-sums,dead-code", tolerance=1e-6, special=False)
    assert out.ops == ["dequantize", "dequantize", "conv"]
    (conv,) = [n for n in out.graph.nodes if n.op == "conv"]
    weights = conv.operand(1).producer
    assert weights is not None and weights.operand(0).tensor.dtype.name == "i8"
    assert weights.operand(1).tensor.dims == (3, 1, 1, 1)


def test_convolutions_with_computed_zero_points_are_of_the_integers_as_they_are(apply) -> None:
    text = """graph main(%x: u8[1, 4, 6, 6], %z: u8[], %s: f32[]) {
      %xi = cast(%x){dtype=i32}
      %zi = cast(%z){dtype=i32}
      %a = sub(%xi, %zi)
      %b = i32[3, 4, 3, 3] -128
      %y = conv(%a, %b){strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1]}
      %f = cast(%y){dtype=f32}
      %r = mul(%f, %s)
      return %r
    }"""
    out = apply(text, "integer-sums,dead-code", tolerance=1e-6, special=False)
    assert [op for op in out.ops if op != "reshape"] == [
        "pad",
        "dequantize",
        "dequantize",
        "conv",
        "cast",
        "mul",
        "sub",
        "mul",
    ]
    (conv,) = [n for n in out.graph.nodes if n.op == "conv"]
    assert conv.attrs["exact"] and not any(conv.attrs["pads"])


RANGE = """graph main(%x: f32[1, 2, 4, 3]) {
  %p = HEAD(%x)
  %n = f32[] 0.0
  %least = reduce_min(%p){axes=[0, 1, 2, 3], keepdims=false}
  %low = min(%least, %n)
  %minus = neg(%low)
  %most = reduce_max(%p){axes=[0, 1, 2, 3], keepdims=false}
  %width = sub(%most, %low)
  %z = quantize(%minus, %width){dtype=u8}
  return %z, %width
}"""


def test_numbers_that_are_never_negative_have_the_zero_point_0(apply) -> None:
    out = apply(RANGE.replace("HEAD", "relu"), "integer-sums,dead-code", special=False)
    assert [n.op for n in out.graph.nodes].count("reduce_max") == 2, "planes side by side, then what is left"
    assert "quantize" not in out.ops and "reduce_min" not in out.ops
    out = apply(RANGE.replace("HEAD", "tanh"), "integer-sums,dead-code", special=False)
    assert "quantize" in out.ops and out.ops.count("reduce_min") == 2


@pytest.mark.parametrize(
    "a, b, depth, products",
    [
        ("u8", "i8", 514, 1),
        ("u8", "i8", 515, 2),
        ("u8", "u8", 3000, 2),
        ("u8", "u8", 8000, 4),
        ("i16", "i8", 4, 1),
        ("i16", "i8", 5, 2),
        ("i16", "i8", 600, None),
    ],
)
def test_sums_that_are_read_as_integers_are_exact(apply, a: str, b: str, depth: int, products: int | None) -> None:
    text = f"""graph main(%x: {a}[2, {depth}], %w: {b}[{depth}, 3]) {{
      %xi = cast(%x){{dtype=i32}}
      %wi = cast(%w){{dtype=i32}}
      %y = matmul(%xi, %wi)
      return %y
    }}"""
    out = apply(text, "integer-sums,dead-code", special=False)
    if products is None:
        assert out.ops.count("matmul") == 1 and "not exact in f32" in out.reasons
        return
    made = [n for n in out.graph.nodes if n.op == "matmul"]
    assert len(made) == products and all(n.attrs["exact"] for n in made)
    rng = np.random.default_rng(0)
    ends = {"u8": (0, 255), "i8": (-128, 127), "i16": (-32768, 32767)}
    x, w = (
        rng.choice(np.array(ends[t]), shape).astype(np.dtype(t.replace("u8", "uint8").replace("i8", "int8")))
        if t in ("u8", "i8")
        else rng.choice(np.array(ends[t]), shape).astype(np.int16)
        for t, shape in ((a, (2, depth)), (b, (depth, 3)))
    )
    (got,) = run(out.graph, {"x": x, "w": w}).values()
    np.testing.assert_array_equal(got, x.astype(np.int64) @ w.astype(np.int64))


def test_sums_read_as_both_are_exact_for_both(apply) -> None:
    text = """graph main(%x: u8[2, 600], %w: u8[600, 3]) {
      %xi = cast(%x){dtype=i32}
      %wi = cast(%w){dtype=i32}
      %y = matmul(%xi, %wi)
      %f = cast(%y){dtype=f32}
      return %y, %f
    }"""
    out = apply(text, "integer-sums,dead-code", special=False)
    assert out.ops.count("matmul") == 2


def test_sums_of_unknown_depth_stay(apply) -> None:
    text = """graph main(%x: u8[2, n], %w: u8[n, 3]) {
      %xi = cast(%x){dtype=i32}
      %wi = cast(%w){dtype=i32}
      %y = matmul(%xi, %wi)
      return %y
    }"""
    assert apply(text, "integer-sums,dead-code", special=False).ops == ["cast", "cast", "matmul"]
