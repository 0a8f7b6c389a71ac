"""fuse: what joins an anchor, what does not."""

from __future__ import annotations

import pytest


def fused(apply, body: str, inputs: str = "%x: f32[4, 8], %r: f32[4, 8]", outputs: str = "%y") -> list[list[str]]:
    """The operators of each node after the pass: those of a fused node's body, else its own."""
    lines = "\n".join(body.split("|"))
    out = apply(f"graph main({inputs}) {{\n{lines}\nreturn {outputs}\n}}", "fuse", tolerance=1e-6)
    return [
        [n.op for n in node.regions[0].nodes if n.op != "constant"] if node.op == "fused" else [node.op]
        for node in out.graph.nodes
        if node.op != "constant"
    ]


W = "%w = f32[8, 8] 0.25|%b = f32[8] 0.5"


def test_epilogue(apply) -> None:
    body = f"{W}|%m = matmul(%x, %w)|%a = add(%m, %b)|%c = relu(%a)|%y = add(%c, %r)|return"
    assert fused(apply, body.removesuffix("|return")) == [["matmul", "add", "relu", "add"]]


def test_a_second_reader_ends_the_epilogue(apply) -> None:
    body = f"{W}|%m = matmul(%x, %w)|%a = add(%m, %b)|%c = relu(%a)|%y = softmax(%a){{axis=1}}"
    assert fused(apply, body, outputs="%y, %c") == [["matmul", "add"], ["relu"], ["softmax"]]


def test_readers_that_meet_again_stay_inside(apply) -> None:
    body = f"{W}|%m = matmul(%x, %w)|%s = hard_sigmoid(%m){{alpha=0.2, beta=0.5}}|%y = mul(%m, %s)"
    assert fused(apply, body) == [["matmul", "hard_sigmoid", "mul"]]


def test_an_output_is_kept(apply) -> None:
    body = f"{W}|%m = matmul(%x, %w)|%y = relu(%m)"
    assert fused(apply, body, outputs="%m, %y") == [["matmul"], ["relu"]]


def test_a_broadcast_that_widens_is_left_out(apply) -> None:
    body = "%w = f32[8, 1] 0.25|%m = matmul(%x, %w)|%y = add(%m, %r)"
    assert fused(apply, body) == [["matmul"], ["add"]]


def test_one_anchor_a_group(apply) -> None:
    body = f"{W}|%m = matmul(%x, %w)|%n = matmul(%r, %w)|%y = add(%m, %n)"
    assert fused(apply, body) == [["matmul"], ["matmul", "add"]] or fused(apply, body) == [
        ["matmul", "add"],
        ["matmul"],
    ]


@pytest.mark.parametrize("row", ["softmax", "log_softmax"])
def test_prologue_and_epilogue_of_rows(apply, row: str) -> None:
    body = f"%a = add(%x, %r)|%b = neg(%a)|%s = {row}(%b){{axis=1}}|%y = mul(%s, %r)"
    assert fused(apply, body) == [["add", "neg", row, "mul"]]


def test_rows_of_another_axis_stay_alone(apply) -> None:
    assert fused(apply, "%a = add(%x, %r)|%y = softmax(%a){axis=0}") == [["add"], ["softmax"]]


def test_elementwise_nodes_join(apply) -> None:
    body = "%a = add(%x, %r)|%b = exp(%a)|%c = sub(%b, %x)|%y = sqrt(%c)"
    assert fused(apply, body.replace("|%y = sqrt(%c)", "|%d = abs(%c)|%y = sqrt(%d)")) == [
        ["add", "exp", "sub", "abs", "sqrt"]
    ]


def test_a_value_that_goes_round_outside_does_not_join(apply) -> None:
    # The transpose lies between the two adds: one kernel would read its own result.
    body = "%a = add(%x, %x)|%t = transpose(%a){perm=[1, 0]}|%y = add(%a, %t)"
    assert fused(apply, body, "%x: f32[8, 8]") == [["add"], ["transpose"], ["add"]]


def test_a_residual_computed_later_moves_the_group(apply) -> None:
    body = f"{W}|%m = matmul(%x, %w)|%a = relu(%m)|%q = softmax(%r){{axis=1}}|%y = add(%a, %q)"
    assert sorted(fused(apply, body)) == sorted([["softmax"], ["matmul", "relu", "add"]])


def test_only_f32_joins_an_anchor(apply) -> None:
    body = f"{W}|%m = matmul(%x, %w)|%y = cast(%m){{dtype=i64}}"
    assert fused(apply, body) == [["matmul"], ["cast"]]


def test_a_graph_without_work_is_left_alone(apply) -> None:
    assert fused(apply, "", outputs="%x") == []


Q = "%x: u8[4, 8], %r: u8[4, 8], %f: f32[4, 8]"
QC = "%sw = f32[8] 0.25|%s = f32[] 0.5|%z = u8[] 128"
QW = QC + "|%w = i8[8, 8] 3|%dw = dequantize(%w, %sw){dtype=f32}"
DX = "%dx = dequantize(%x, %s, %z){dtype=f32}"


def test_quantized_operands_and_result_join_a_product(apply) -> None:
    body = f"{QW}|{DX}|%m = matmul(%dx, %dw)|%a = relu(%m)|%y = quantize(%a, %s, %z){{dtype=u8}}"
    assert fused(apply, body, Q) == [["dequantize", "dequantize", "matmul", "relu", "quantize"]]


def test_each_product_gets_a_dequantization_of_its_own(apply) -> None:
    body = f"{QW}|{DX}|%m = matmul(%dx, %dw)|%y = matmul(%dx, %dw)"
    assert fused(apply, body, Q, "%m, %y") == [["dequantize", "dequantize", "matmul"]] * 2


def test_a_quantized_residual_joins_with_its_dequantization(apply) -> None:
    body = f"{QW}|{DX}|%dr = dequantize(%r, %s, %z){{dtype=f32}}|%m = matmul(%dx, %dw)|%y = add(%m, %dr)"
    assert fused(apply, body, Q) == [["dequantize", "dequantize", "matmul", "dequantize", "add"]]


def test_quantized_activations_alone_stay_outside(apply) -> None:
    body = f"%w = f32[8, 8] 3.0|%s = f32[] 0.5|%z = u8[] 128|{DX}|%y = matmul(%dx, %w)"
    assert fused(apply, body, Q) == [["dequantize"], ["matmul"]]


def test_rows_begin_and_end_in_bytes(apply) -> None:
    body = (
        f"{QC}|{DX}|%dr = dequantize(%r, %s, %z){{dtype=f32}}|%a = add(%dx, %dr)|%n = softmax(%a){{axis=1}}|"
        "%y = quantize(%n, %s, %z){dtype=u8}"
    )
    assert fused(apply, body, Q) == [["dequantize", "dequantize", "add", "softmax", "quantize"]]


def test_a_norm_that_is_read_both_ways_writes_both(apply) -> None:
    body = f"{QC}|%n = rms_norm(%f, %sw){{axis=1, epsilon=0.001}}|%o = relu(%n)|%y = quantize(%n, %s, %z){{dtype=u8}}"
    assert fused(apply, body, Q, "%y, %o") == [["rms_norm", "quantize"], ["relu"]]
    body = body.replace("rms_norm(%f, %sw){axis=1, epsilon=0.001}", "softmax(%f){axis=1}")
    assert fused(apply, body, Q, "%y, %o") == [["softmax"], ["relu"], ["quantize"]]


def test_elementwise_work_takes_in_both_dequantizations(apply) -> None:
    body = (
        f"{QC}|{DX}|%dr = dequantize(%r, %s, %z){{dtype=f32}}|%a = add(%dx, %dr)|%y = quantize(%a, %s, %z){{dtype=u8}}"
    )
    assert fused(apply, body, Q) == [["dequantize", "dequantize", "add", "quantize"]]


def test_attention_ends_in_bytes(apply) -> None:
    body = f"{QC}|%a = attention(%h, %h, %h){{scale=0.5}}|%y = quantize(%a, %s, %z){{dtype=u8}}"
    assert fused(apply, body, "%h: f32[1, 2, 3, 8]") == [["attention", "quantize"]]
    assert fused(apply, body, "%h: f32[1, 2, 3, 8]", "%a, %y") == [["attention"], ["quantize"]]
    assert fused(apply, body, "%h: f32[1, 2, 3, 6]") == [["attention"], ["quantize"]]


def test_rows_on_grids_of_their_own(apply) -> None:
    """The scale and the codes are results of one kernel; not where the maximum is another's."""
    scale = "%m = reduce_max(%a){axes=[1], keepdims=true}|%o = f32[] 0.008|%k = mul(%m, %o)|%z = u8[] 128"
    body = f"%a = abs(%f)|{scale}|%y = quantize(%f, %k, %z){{dtype=u8}}|%d = dequantize(%y, %k, %z){{dtype=f32}}"
    assert fused(apply, body, "%f: f32[4, 8]", "%y, %d") == [["abs", "reduce_max", "mul", "quantize"], ["dequantize"]]
    other = body.replace("quantize(%f", "quantize(%g", 1)
    assert len(fused(apply, other, "%f: f32[4, 8], %g: f32[4, 8]", "%y, %d")) > 2
