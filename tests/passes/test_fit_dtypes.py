"""fit-dtypes: what is widened, what is written with simpler operators, what stays; and what fuse makes of it."""

from __future__ import annotations

import pytest


def ops(outcome) -> list[str]:
    return [n.op for n in outcome.graph.nodes if n.op != "constant"]


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_a_product_in_a_narrow_type_is_one_in_f32(apply, dtype: str) -> None:
    text = f"graph main(%x: {dtype}[3, 4], %w: {dtype}[4, 5]) {{\n%y = matmul(%x, %w)\nreturn %y\n}}"
    out = apply(text, "fit-dtypes", tolerance=1e-2, special=dtype == "f16")
    assert ops(out) == ["cast", "cast", "matmul", "cast"]
    assert str(out.graph.outputs[0].type) == f"{dtype}[3, 5]"


def test_what_has_a_kernel_stays(apply) -> None:
    text = "graph main(%x: f16[3, 4], %i: i64[3, 4]) {\n%a = add(%x, %x)\n%m = matmul(%i, %j)\nreturn %a, %m\n}"
    text = text.replace("%j", "%t").replace("%m =", "%t = transpose(%i){perm=[1, 0]}\n%m =")
    assert ops(apply(text, "fit-dtypes", special=False)) == ["add", "transpose", "matmul"]


def test_small_integers_are_pooled_in_f32(apply) -> None:
    text = (
        "graph main(%x: i16[1, 2, 6, 6]) {\n"
        "%y = max_pool(%x){kernel=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0], dilations=[1, 1]}\nreturn %y\n}"
    )
    assert ops(apply(text, "fit-dtypes", special=False)) == ["cast", "max_pool", "cast"]


@pytest.mark.parametrize(
    "line",
    ["softmax(%x){axis=1}", "log_softmax(%x){axis=2}", "rms_norm(%x){axis=2, epsilon=1e-5}",
     "layer_norm(%x, %s, %s){axis=2, epsilon=1e-5}"],
)  # fmt: skip
def test_rows_in_f64_are_written_out(apply, line: str) -> None:
    out = apply(f"graph main(%x: f64[2, 3, 4], %s: f64[4]) {{\n%y = {line}\nreturn %y\n}}", "fit-dtypes",
                tolerance=1e-12, special=False)  # fmt: skip
    assert line.split("(")[0] not in ops(out) and "cast" not in ops(out)


@pytest.mark.parametrize("causal", ["true", "false"])
def test_attention_in_f64_is_written_out(apply, causal: str) -> None:
    text = (
        "graph main(%q: f64[2, 4, 3, 8], %k: f64[2, 2, 5, 8], %v: f64[2, 2, 5, 6], %m: f64[3, 5]) {\n"
        f"%y = attention(%q, %k, %v, %m){{scale=0.3, causal={causal}}}\nreturn %y\n}}"
    )
    out = apply(text, "fit-dtypes", tolerance=1e-6, special=False)
    assert "attention" not in ops(out) and ops(out).count("matmul") == 2


def test_rounding_joins_the_kernel_before_it_when_it_ends_in_f32(apply) -> None:
    text = (
        "graph main(%x: f32[3, 4], %w: f32[4, 5]) {\n%a = matmul(%x, %w)\n%b = cast(%a){dtype=f16}\n%c = relu(%b)\n"
        "%y = cast(%c){dtype=f32}\nreturn %y%more\n}"
    )
    out = apply(text.replace("%more", ""), "fuse", tolerance=1e-3)
    assert [n.op for n in out.graph.nodes] == ["fused"]
    out = apply(text.replace("%more", ", %b"), "fuse", tolerance=1e-3)
    assert ops(out) == ["matmul", "cast", "fused"]


def test_steps_of_a_grid_join_a_row(apply) -> None:
    text = (
        "graph main(%x: u8[3, 40]) {\n%s = f32[] 0.5\n%z = u8[] 7\n%a = dequantize(%x, %s, %z){dtype=f32}\n"
        "%y = softmax(%a){axis=1}\nreturn %y\n}"
    )
    assert ops(apply(text, "fuse", tolerance=1e-6, special=False)) == ["fused"]


def test_updates_that_are_added_in_a_narrow_type(apply) -> None:
    text = (
        "graph main(%x: f16[6], %i: i64[3], %u: f16[3]) {\n"
        '%y = scatter_elements(%x, %i, %u){axis=0, reduction="%how"}\nreturn %y\n}'
    )
    given = {"special": False, "tolerance": 1e-2}
    assert ops(apply(text.replace("%how", "none"), "fit-dtypes", **given)) == ["scatter_elements"]
    assert ops(apply(text.replace("%how", "add"), "fit-dtypes", **given))[2] == "scatter_elements"
