"""move-quantization, integer-operands, separate-dequantize, and what fold-constants leaves to them."""

from __future__ import annotations

import numpy as np
import pytest

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.rewrite import quantized

GRID = "%s = f32[] 0.5\n%z = u8[] 7\n%s2 = f32[] 0.25\n%low = u8[] 0\n"
DEQ = "%f = dequantize(%x, %s, %z){dtype=f32}\n"
DEQ0 = "%f = dequantize(%x, %s, %low){dtype=f32}\n"

# -- move-quantization over x: u8[1, 4, 6, 6]: what the graph does, and what is left of it ---------------------------

SUNK = [
    (DEQ + "%y = reshape(%f){shape=[4, 36]}", ["reshape", "dequantize"]),
    (DEQ + "%y = transpose(%f){perm=[0, 2, 3, 1]}", ["transpose", "dequantize"]),
    (DEQ + "%y = expand(%f){shape=[2, 4, 6, 6]}", ["expand", "dequantize"]),
    (
        DEQ + "%y = slice(%f){starts=[0, 1, 0, 0], sizes=[1, 2, 6, 3], steps=[1, 1, 1, 2]}",
        ["slice", "dequantize"],
    ),
    (DEQ + "%i = i64[2] [3, 1]\n%y = gather(%f, %i){axis=1}", ["gather", "dequantize"]),
    (DEQ + "%y = concat(%f, %f){axis=1}", ["concat", "dequantize"]),
    (
        DEQ + "%g = dequantize(%x, %s2, %z){dtype=f32}\n%y = concat(%f, %g){axis=1}",
        ["dequantize", "dequantize", "concat"],
    ),
    (DEQ + "%g = relu(%f)\n%y = concat(%f, %g){axis=1}", ["dequantize", "relu", "concat"]),
    (DEQ + "%y = pad(%f){pads=[0, 0, 1, 1, 0, 0, 2, 0]}", ["pad", "dequantize"]),
    (DEQ + "%v = f32[] -2.5\n%y = pad(%f, %v){pads=[0, 0, 1, 1, 0, 0, 2, 0]}", ["pad", "dequantize"]),
    (DEQ + "%v = f32[] -2.4\n%y = pad(%f, %v){pads=[0, 0, 1, 1, 0, 0, 2, 0]}", ["dequantize", "pad"]),
    (DEQ + "%v = f32[] -4.0\n%y = pad(%f, %v){pads=[0, 0, 1, 1, 0, 0, 2, 0]}", ["dequantize", "pad"]),
    (DEQ + '%y = pad(%f){pads=[0, 0, 1, 1, 0, 0, 2, 0], mode="edge"}', ["pad", "dequantize"]),
    (
        DEQ + "%y = max_pool(%f){kernel=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], dilations=[1, 1]}",
        ["max_pool", "dequantize"],
    ),
    (
        DEQ + "%y = max_pool(%f){kernel=[1, 1], strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1]}",
        ["dequantize", "max_pool"],
    ),
    (
        "%n = f32[] -0.5\n%f = dequantize(%x, %n, %z){dtype=f32}\n"
        "%y = max_pool(%f){kernel=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], dilations=[1, 1]}",
        ["dequantize", "max_pool"],
    ),
    (DEQ0 + "%y = relu(%f)", ["dequantize"]),
    (DEQ + "%y = relu(%f)", ["dequantize", "relu"]),
    (DEQ + "%y = quantize(%f, %s, %z){dtype=u8}", []),
    (DEQ + "%y = quantize(%f, %s, %low){dtype=u8}", ["dequantize", "quantize"]),
    (DEQ + "%y = quantize(%f, %s2, %z){dtype=u8}", ["dequantize", "quantize"]),
    (DEQ + "%zi = i8[] 7\n%y = quantize(%f, %s, %zi){dtype=i8}", ["dequantize", "quantize"]),
    (
        "%t = f32[] 1e-40\n%f = dequantize(%x, %t){dtype=f32}\n%y = quantize(%f, %t){dtype=u8}",
        ["dequantize", "quantize"],
    ),
    (DEQ + "%g = reshape(%f){shape=[144]}\n%y = quantize(%g, %s, %z){dtype=u8}", ["reshape"]),
    # A scale for each channel goes along where its axis stays one.
    (
        "%p = f32[4, 1, 1] [[[0.5]], [[1.0]], [[2.0]], [[0.25]]]\n%f = dequantize(%x, %p){dtype=f32}\n"
        "%y = transpose(%f){perm=[2, 0, 1, 3]}",
        ["reshape", "transpose", "transpose", "dequantize"],
    ),
    (
        "%p = f32[4, 1, 1] [[[0.5]], [[1.0]], [[2.0]], [[0.25]]]\n%f = dequantize(%x, %p){dtype=f32}\n"
        "%y = reshape(%f){shape=[4, 36]}",
        ["reshape", "reshape", "dequantize"],
    ),
    (
        "%p = f32[4, 1, 1] [[[0.5]], [[1.0]], [[2.0]], [[0.25]]]\n%f = dequantize(%x, %p){dtype=f32}\n"
        "%y = reshape(%f){shape=[2, 72]}",
        ["dequantize", "reshape"],
    ),
    (
        "%p = f32[4, 1, 1] [[[0.5]], [[1.0]], [[2.0]], [[0.25]]]\n%f = dequantize(%x, %p){dtype=f32}\n"
        "%y = expand(%f){shape=[2, 4, 6, 6]}",
        ["dequantize", "expand"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "ops"), SUNK, ids=[b.splitlines()[-1] for b, _ in SUNK])
def test_dequantize_moves_down(apply, body: str, ops: list[str]) -> None:
    out = apply(f"graph main(%x: u8[1, 4, 6, 6]) {{\n{GRID}{body}\n return %y\n}}", "move-quantization,dead-code")
    assert out.ops == ops


# -- over x: f32[1, 4, 6, 6] -----------------------------------------------------------------------------------------

Q = "%y = quantize(%f, %s, %z){dtype=u8}"
Q0 = "%y = quantize(%f, %s, %low){dtype=u8}"
HOISTED = [
    ("%f = reshape(%x){shape=[4, 36]}\n" + Q, ["quantize", "reshape"]),
    ("%f = transpose(%x){perm=[0, 2, 3, 1]}\n" + Q, ["quantize", "transpose"]),
    ("%f = transpose(%x){perm=[0, 2, 3, 1]}\n%g = exp(%f)\n" + Q, ["transpose", "quantize"]),
    ("%g = exp(%x)\n%f = concat(%x, %g){axis=1}\n" + Q, ["exp", "quantize", "quantize", "concat"]),
    ("%f = pad(%x){pads=[0, 0, 1, 1, 0, 0, 2, 0]}\n" + Q, ["quantize", "quantize", "pad"]),
    ('%f = pad(%x){pads=[0, 0, 1, 1, 0, 0, 2, 0], mode="edge"}\n' + Q, ["quantize", "pad"]),
    ("%f = relu(%x)\n" + Q0, ["quantize"]),
    ("%f = relu(%x)\n" + Q, ["relu", "quantize"]),
    ("%c = f32[] 127.5\n%f = min(%x, %c)\n" + Q0, ["quantize"]),
    ("%c = f32[] 127.0\n%f = min(%x, %c)\n" + Q0, ["min", "quantize"]),
    ("%c = f32[] -3.5\n%f = max(%x, %c)\n" + Q, ["quantize"]),
    ("%c = f32[] -3.0\n%f = max(%x, %c)\n" + Q, ["max", "quantize"]),
    (
        "%i = i64[2] [3, 1]\n%f = gather(%x, %i){axis=1}\n" + Q,
        ["gather", "quantize"],
    ),
]


@pytest.mark.parametrize(("body", "ops"), HOISTED, ids=[b.splitlines()[-2] for b, _ in HOISTED])
def test_quantize_moves_up(apply, body: str, ops: list[str]) -> None:
    keep = "%g" in body and "concat" not in body
    out = apply(
        f"graph main(%x: f32[1, 4, 6, 6]) {{\n{GRID}{body}\n return %y{', %g' if keep else ''}\n}}",
        "move-quantization,dead-code",
    )
    assert [o for o in out.ops if not (keep and o == "exp")] == ops


def test_quantize_moves_up_across_a_pool(apply) -> None:
    pool = "%f = max_pool(%x){kernel=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], dilations=[1, 1]}\n"
    out = apply(
        f"graph main(%x: f32[1, 4, 6, 6]) {{\n{GRID}{pool}{Q}\n return %y\n}}", "move-quantization", special=False
    )
    assert out.ops == ["quantize", "max_pool"]


def test_a_shared_operand_is_not_quantized_early(apply) -> None:
    body = "%f = relu(%x)\n" + Q0
    out = apply(f"graph main(%x: f32[n]) {{\n{GRID}{body}\n return %y, %f\n}}", "move-quantization")
    assert out.ops == ["relu", "quantize"] and "other uses" in out.reasons


# -- integer-operands ------------------------------------------------------------------------------------------------


PIPELINE = "fold-constants,move-quantization,fold-constants,integer-operands,fold-constants,dead-code"
RNG = np.random.default_rng(0)


def canonical(graph) -> list[bool]:
    return [not isinstance(quantized.integer_operands(n), str) for n in graph.nodes if n.op in ("matmul", "conv")]


def product(x: str, w: str, scale: str, zero: str, *, turned: bool = False, xzero: str = "7") -> str:
    """x [3, 8] by weights [8, 5] (turned: [5, 8], then transposed), quantized from f32."""
    return (
        f"graph main(%x: f32[3, 8]) {{\n%xs = f32[] 0.0625\n%xz = {x}[] {xzero}\n"
        f"%xq = quantize(%x, %xs, %xz){{dtype={x}}}\n%xf = dequantize(%xq, %xs, %xz){{dtype=f32}}\n"
        f"%wq = {w}[{'5, 8' if turned else '8, 5'}] #WEIGHTS\n%ws = f32{scale}\n{zero}\n"
        f"%wf = dequantize(%wq, %ws{', %wz' if zero else ''}){{dtype=f32}}\n"
        + ("%wt = transpose(%wf){perm=[1, 0]}\n" if turned else "")
        + f"%y = matmul(%xf, {'%wt' if turned else '%wf'})\n return %y\n}}"
    )


SCALES = "[0.5, 1.0, 2.0, 0.25, 0.125]"
FORMS = [
    ("u8", "i8", "[] 0.5", "", False, True),
    ("u8", "i8", f"[5] {SCALES}", "", False, True),
    ("u8", "i8", f"[1, 5] {'[' + SCALES + ']'}", "%wz = i8[1, 5] 0", False, True),
    ("u8", "i8", f"[5, 1] {'[' + SCALES.replace(', ', '], [') + ']'}", "", True, True),
    ("u8", "u8", "[] 0.5", "%wz = u8[] 128", False, True),
    ("u8", "u8", f"[5] {SCALES}", "%wz = u8[5] 128", False, True),
    ("u8", "u8", "[] 0.5", "%wz = u8[] 127", False, True),
    ("u8", "u8", f"[5] {SCALES}", "%wz = u8[] 60", False, True),
    ("u8", "i8", "[] 0.5", "%wz = i8[] 1", False, True),
    ("u8", "i8", "[] 0.5", "%wz = i8[5] [1, 2, 3, 4, 5]", False, False),
    ("u8", "i8", f"[8, 1] [{', '.join(['[0.5]', '[1.0]'] * 4)}]", "", False, False),
    ("i8", "i8", "[] 0.5", "", False, True),
    ("i8", "i8", f"[5, 1] {'[' + SCALES.replace(', ', '], [') + ']'}", "", True, True),
    ("i8", "u8", "[] 0.5", "%wz = u8[] 128", False, True),
]


@pytest.mark.parametrize(("x", "w", "scale", "zero", "turned", "fits"), FORMS)
def test_products_become_canonical(apply, x: str, w: str, scale: str, zero: str, turned: bool, fits: bool) -> None:
    shape = (5, 8) if turned else (8, 5)
    data = RNG.integers(-128, 128, shape).astype(np.int8)
    weights = data if w == "i8" else data.view(np.uint8) ^ np.uint8(128)
    held = Constant(weights)
    text = product(x, w, scale, zero, turned=turned).replace("WEIGHTS", held.digest)
    out = apply(text, PIPELINE, constants={held.digest: held}, tolerance=1e-6, special=False)
    assert canonical(out.graph) == [fits], out.reasons
    kept = [n for n in out.graph.nodes if n.op == "dequantize" and n.operand(0).constant is not None]
    assert len(kept) == (1 if fits else 0)
    if not fits:
        assert "it is computed in floats" in out.reasons


def conv(x: str, groups: int = 1) -> str:
    """A chain as exporters write it: conv, relu, quantize, dequantize, max_pool, quantize, dequantize, conv."""
    z = "5" if x == "u8" else "-128"
    grid = f"%s1 = f32[] 0.125\n%z1 = {x}[] {z}\n%s2 = f32[] 0.5\n%z2 = {x}[] {'0' if x == 'u8' else '-128'}\n"
    return (
        "graph main(%x: f32[n, 4, 9, 9]) {\n" + grid + f"%xq = quantize(%x, %s1, %z1){{dtype={x}}}\n"
        "%xf = dequantize(%xq, %s1, %z1){dtype=f32}\n"
        f"%w = i8[8, {4 // groups}, 3, 3] 3\n%ws = f32[8, 1, 1, 1] 0.25\n%wf = dequantize(%w, %ws){{dtype=f32}}\n"
        "%b = i32[8] [1, 2, 3, 4, 5, 6, 7, -8]\n%bs = f32[] 0.03125\n%bf = dequantize(%b, %bs){dtype=f32}\n"
        f"%c = conv(%xf, %wf, %bf){{strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1], groups={groups}}}\n"
        f"%r = relu(%c)\n%rq = quantize(%r, %s2, %z2){{dtype={x}}}\n%rf = dequantize(%rq, %s2, %z2){{dtype=f32}}\n"
        "%m = max_pool(%rf){kernel=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0], dilations=[1, 1]}\n"
        f"%mq = quantize(%m, %s2, %z2){{dtype={x}}}\n%mf = dequantize(%mq, %s2, %z2){{dtype=f32}}\n"
        "%v = i8[6, 8, 1, 1] -2\n%vs = f32[] 0.5\n%vf = dequantize(%v, %vs){dtype=f32}\n"
        "%y = conv(%mf, %vf){strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}\n return %y\n}"
    )


@pytest.mark.parametrize("x", ["u8", "i8"])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_form_an_island(apply, x: str, groups: int) -> None:
    out = apply(conv(x, groups), PIPELINE + ",separate-dequantize", tolerance=1e-6, special=False)
    assert canonical(out.graph) == [True, True]
    middle = ["dequantize", "dequantize", "conv", "quantize", "max_pool", "dequantize", "dequantize", "conv"]
    assert out.ops == ["quantize", *middle]
    (pool,) = [n for n in out.graph.nodes if n.op == "max_pool"]
    assert pool.result.tensor.dtype.name == "u8"


def test_a_computed_scale_leaves_the_operands_of_a_convolution(apply) -> None:
    """Weights that would take two terms of s8 are not divided where no integer kernel takes the activations."""
    text = """graph main(%x: u8[1, 3, 5, 5], %s: f32[]) {
      %z = u8[] 0
      %xf = dequantize(%x, %s, %z){dtype=f32}
      %w = i8[4, 3, 1, 1] 100
      %ws = f32[] 0.5
      %wz = i8[] -54
      %wf = dequantize(%w, %ws, %wz){dtype=f32}
      %y = conv(%xf, %wf){strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}
      return %y
    }"""
    out = apply(text, PIPELINE, tolerance=1e-6, special=False)
    assert out.ops == ["dequantize", "conv"]
    assert "it is computed in floats" in out.reasons


def test_signed_values_become_unsigned_across_movement(apply) -> None:
    text = """graph main(%x: f32[2, 4], %k: i8[2, 4]) {
      %s = f32[] 0.125
      %z = i8[] -3
      %a = quantize(%x, %s, %z){dtype=i8}
      %c = concat(%a, %k){axis=0}
      %v = i8[] -3
      %p = pad(%c, %v){pads=[0, 2, 0, 2]}
      %q = pad(%p){pads=[1, 0, 0, 0]}
      %f = dequantize(%q, %s, %z){dtype=f32}
      %w = i8[8, 3] 5
      %ws = f32[] 0.5
      %wf = dequantize(%w, %ws){dtype=f32}
      %y = matmul(%f, %wf)
      %t = neg(%c)
      return %y, %t
    }"""
    out = apply(text, "integer-operands,dead-code", special=False)
    assert canonical(out.graph) == [True]
    dtypes = [n.result.tensor.dtype.name for n in out.graph.nodes if n.op in ("concat", "pad")]
    assert sorted(dtypes) == ["i8", "u8", "u8", "u8"]  # %t still reads what is joined as s8


def test_sums_that_may_leave_32_bits_stay_floats(apply) -> None:
    for depth, fits in ((quantized.LARGEST_DEPTH, True), (quantized.LARGEST_DEPTH + 1, False)):
        text = (
            f"graph main(%x: u8[1, {depth}]) {{\n%s = f32[] 0.5\n%f = dequantize(%x, %s){{dtype=f32}}\n"
            f"%w = i8[{depth}, 1] 5\n%ws = f32[] 0.5\n%wf = dequantize(%w, %ws){{dtype=f32}}\n"
            "%y = matmul(%f, %wf)\n return %y\n}"
        )
        out = apply(text, "integer-operands,dead-code", tolerance=1e-5, special=False)
        assert canonical(out.graph) == [fits]
        assert fits or "may leave 32 bits" in out.reasons


def test_weights_of_float_products_are_folded(apply) -> None:
    text = """graph main(%x: f32[2, 4]) {
      %w = i8[4, 3] 5
      %ws = f32[] 0.5
      %wf = dequantize(%w, %ws){dtype=f32}
      %y = matmul(%x, %wf)
      return %y
    }"""
    assert apply(text, "fold-constants,dead-code").ops == ["matmul"]


def test_tables_of_few_rows_stay_bytes(apply) -> None:
    text = """graph main(%i: i64[n]) {
      %w = u8[40, 8] 5
      %ws = f32[] 0.5
      %wf = dequantize(%w, %ws){dtype=f32}
      %y = gather(%wf, %i){axis=0}
      return %y
    }"""
    out = apply(text, "fold-constants,move-quantization,fold-constants,dead-code", special=False)
    assert out.ops == ["gather", "dequantize"]


def test_every_user_has_its_own_dequantize(apply) -> None:
    text = """graph main(%x: u8[n]) {
      %s = f32[] 0.5
      %f = dequantize(%x, %s){dtype=f32}
      %a = exp(%f)
      %b = mul(%f, %f)
      return %a, %b, %f
    }"""
    out = apply(text, "separate-dequantize")
    assert out.ops.count("dequantize") == 3
    assert all(len(n.result.users) <= 1 for n in out.graph.nodes if n.op == "dequantize")
