"""Type inference with symbolic dims, its refusals, and cost."""

from __future__ import annotations

import re
from typing import Any

import pytest

from opcel_compiler.ir.dims import symbol
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.opdef import TRAITS, AttrDef, InferenceError, all_ops, define, op_def
from opcel_compiler.ir.parse_dims import parse_dim
from opcel_compiler.ir.text import parse_graph
from opcel_compiler.ir.types import DTYPES, SequenceType, TensorType, UnknownType, tensor

HEADER = "symbol n in 1..64 symbol p in 2.. "


def result(inputs: str, statement: str) -> str:
    names = inputs.split("; ")
    parameters = ", ".join(f"%{chr(97 + i)}: {t}" for i, t in enumerate(names))
    graph = parse_graph(f"{HEADER}graph g({parameters}) {{ %y = {statement} return %y }}")
    return str(graph.outputs[0].type)


CONV = "strides=[2, 1], pads=[1, 0, 1, 2], dilations=[1, 2]"
POOL = "kernel=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1], dilations=[1, 1]"


@pytest.mark.parametrize(
    ("inputs", "statement", "expected"),
    [
        ("f32[n, 1, 4]; f32[s, 1]", "add(%a, %b)", "f32[n, s, 4]"),
        ("f32[n]; f32[n + 1]", "less(%a, %b)", "bool[n + 1]"),
        ("f32[n]; f32[m]", "add(%a, %b)", "f32[n]"),
        ("f32[m]; f32[7]", "add(%a, %b)", "f32[7]"),
        ("f32[n]; f32[p + 63]", "add(%a, %b)", "f32[p + 63]"),
        ("f32[*]; f32[2]", "add(%a, %b)", "f32[*]"),
        ("bool[3, 1]; i64[n]; i64[]", "where(%a, %b, %c)", "i64[3, n]"),
        ("f32[n]", "cast(%a){dtype=i4}", "i4[n]"),
        ("f32[n]", "is_nan(%a)", "bool[n]"),
        ("f32[n]", "dims{values=[n, 3*n]}", "i64[2]"),
        ("f32[n]", "dims{values=[n], scalar=true}", "i64[]"),
        ("f32[n]", "range_{start=[0], size=[2*n], step=3, dtype=i64}", "i64[2*n]"),
        ("f32[n, 1, s, 8]; f32[3, 8, 16]", "matmul(%a, %b)", "f32[n, 3, s, 16]"),
        ("f32[8]; f32[n, 8, 16]", "matmul(%a, %b)", "f32[n, 16]"),
        ("f32[n, 8]; f32[8]", "matmul(%a, %b)", "f32[n]"),
        ("f32[8]; f32[8]", "matmul(%a, %b)", "f32[]"),
        ("f32[n, 8, h, w]; f32[6, 4, 3, 3]; f32[6]", f"conv(%a, %b, %c){{{CONV}, groups=2}}",
         "f32[n, 6, ((h + -1) // (2)) + 1, w + -2]"),
        ("f32[n, 4, 8]; f32[4, 3, 2]",
         "conv_transpose(%a, %b){strides=[2], pads=[1, 0], dilations=[1], groups=2, output_padding=[1]}",
         "f32[n, 6, 16]"),
        ("f32[n, 4, s]; f32[4, 3, 2]",
         "conv_transpose(%a, %b){strides=[2], pads=[0, 0], dilations=[1], output_padding=[0]}", "f32[n, 3, 2*s]"),
        ("f32[n, 4, 8, 7]", f"max_pool(%a){{{POOL}}}", "f32[n, 4, 4, 3]"),
        ("f32[n, 4, 8, 7]", f"max_pool(%a){{{POOL}, ceil_mode=true}}", "f32[n, 4, 4, 4]"),
        ("f32[*]", f"avg_pool(%a){{{POOL}}}", "f32[*]"),
        ("f32[n, 4, 8]", "reduce_mean(%a){axes=[0, 2], keepdims=false}", "f32[4]"),
        ("f32[n, 4, 8]", "reduce_mean(%a){axes=[0, 2], keepdims=true}", "f32[1, 4, 1]"),
        ("f32[n, 4, 8]", "arg_max(%a){axis=1, keepdims=false}", "i64[n, 8]"),
        ("f32[n, s]; f32[s]; f32[s]", "layer_norm(%a, %b, %c){axis=1, epsilon=1e-5}", "f32[n, s]"),
        ("f32[n, 8, s, 64]; f32[n, 2, t, 64]; f32[n, 2, t, 32]; f32[s, t]", "attention(%a, %b, %c, %d){scale=0.125}",
         "f32[n, 8, s, 32]"),
        ("f32[n, 4]", "reshape(%a){shape=[2, 2*n]}", "f32[2, 2*n]"),
        ("f32[*]", "reshape(%a){shape=[n, 4]}", "f32[n, 4]"),
        ("f32[n, 4, s]", "transpose(%a){perm=[2, 0, 1]}", "f32[s, n, 4]"),
        ("f32[n, 1]", "expand(%a){shape=[3, n, s]}", "f32[3, n, s]"),
        ("f32[n, 9]", "slice(%a){starts=[0, 8], sizes=[n, 5], steps=[1, -2]}", "f32[n, 5]"),
        ("f16[n, s, 9]; u4[9, 3]; f32[3, 3]; u4[3, 3]", "matmul_nbits(%a, %b, %c, %d){group=4}", "f16[n, s, 3]"),
        ("f32[n, 9]; f32[n, s]", "concat(%a, %b){axis=1}", "f32[n, s + 9]"),
        ("f32[m, 9]; f32[4, s]", "concat(%a, %b){axis=1}", "f32[4, s + 9]"),
        ("f32[n, 9]", "pad(%a){pads=[0, 1, n, 2]}", "f32[2*n, 12]"),
        ("f32[n, 9, 4]; i64[s, 2]", "gather(%a, %b){axis=1}", "f32[n, s, 2, 4]"),
        ("f32[n, 9]; i32[s, 2]", "gather_elements(%a, %b){axis=1}", "f32[s, 2]"),
        ("f32[n, 9, 4]; i64[n, s, 1]", "gather_nd(%a, %b){batch_dims=1}", "f32[n, s, 4]"),
        ("f32[n, 9, 4]; i64[n, s, k]", "gather_nd(%a, %b){batch_dims=1}", "f32[*]"),
        ("f32[n, 9]; i64[n, s]; f32[n, s]", "scatter_elements(%a, %b, %c){axis=1}", "f32[n, 9]"),
        ("f32[n, 9, 4]; i64[s, k]; f32[*]", "scatter_nd(%a, %b, %c)", "f32[n, 9, 4]"),
    ],
)  # fmt: skip
def test_results(inputs: str, statement: str, expected: str) -> None:
    assert result(inputs, statement) == expected


@pytest.mark.parametrize(
    ("inputs", "statement", "message"),
    [
        ("f32[2]; f32[3]", "add(%a, %b)", "sizes 2 and 3 do not broadcast"),
        ("f32[p]; f32[2*p]", "add(%a, %b)", "sizes p and 2*p do not broadcast"),
        ("f32[2]; f64[2]", "add(%a, %b)", "the operands' dtypes differ: f32, f64"),
        ("bool[2]; bool[2]", "add(%a, %b)", "operand 0 has dtype bool"),
        ("seq<f32[2]>", "relu(%a)", "operand 0 must be a tensor, not seq<f32[2]>"),
        ("?", "relu(%a)", "operand 0 must be a tensor, not ?"),
        ("f32[2]", "dims{values=[1, 2], scalar=true}", "a scalar has one value, not 2"),
        ("f32[2]", "range_{start=[0, 1], size=[2], step=1, dtype=i64}", "start and size hold one dim each"),
        ("f32[2]", "range_{start=[0], size=[-2], step=1, dtype=i64}", "size is -2, below 0"),
        ("f32[2]", "range_{start=[0], size=[2], step=1, dtype=bool}", "a range of bool is not defined"),
        ("f32[2, 3]; f32[4, 5]", "matmul(%a, %b)", "the contracted sizes differ: 3 is not 4"),
        ("f32[]; f32[4, 5]", "matmul(%a, %b)", "matmul does not take scalars"),
        ("f32[n, 8, 9, 9]; f32[6, 3, 3, 3]", f"conv(%a, %b){{{CONV}, groups=2}}", "8 is not 6"),
        ("f32[n, 8, 9, 9]; f32[5, 4, 3, 3]", f"conv(%a, %b){{{CONV}, groups=2}}", "channels are not divisible"),
        ("f32[n, 8, 9, 9]; f32[6, 4, k, 3]", f"conv(%a, %b){{{CONV}, groups=2}}", "must have constant spatial sizes"),
        ("f32[n, 8, 9, 9]; f32[6, 4, 3, 3]; f32[5]", f"conv(%a, %b, %c){{{CONV}, groups=2}}", "bias and output"),
        ("f32[n, 4, 9]; f32[6, 4, 3]", f"conv(%a, %b){{{CONV}}}", "one entry for each of 1 spatial axes"),
        ("f32[n, 4]; f32[6, 4]", f"conv(%a, %b){{{CONV}}}", "x has rank 2; 1 to 3 spatial axes"),
        ("f32[n, 4, 9, 1]; f32[6, 4, 3, 9]", f"conv(%a, %b){{{CONV}}}", "the padded size less the window"),
        ("f32[n, 4, 9]", "max_pool(%a){kernel=[2], strides=[0], pads=[0, 0], dilations=[1]}", "must be positive"),
        ("f32[n, 4, 9]", "max_pool(%a){kernel=[2], strides=[1], pads=[0, -1], dilations=[1]}", "non-negative"),
        ("f32[n, 4]", "reduce_sum(%a){axes=[1, 0], keepdims=true}", "must be sorted and distinct"),
        ("f32[n, 4]", "reduce_sum(%a){axes=[2], keepdims=true}", "axis 2 is not in 0..1"),
        ("f32[n, 4]", "softmax(%a){axis=-1}", "axis -1 is not in 0..1"),
        ("f32[n, 4]; f32[5]", "layer_norm(%a, %b){axis=1, epsilon=0.1}", "scale: 5 is not 4"),
        ("f32[1, 5, 2, 4]; f32[1, 2, 3, 4]; f32[1, 2, 3, 4]", "attention(%a, %b, %c){scale=1}",
         "5 query heads are no multiple of 2"),
        ("f32[n, 4]", "reshape(%a){shape=[n, 5]}", "f32[n, 4] has 4*n elements, shape=(n, 5) has 5*n"),
        ("f32[n, 4]", "transpose(%a){perm=[0, 0]}", "is no permutation"),
        ("f32[n, 4]", "transpose(%a){perm=[0]}", "does not fit"),
        ("f32[p, 4]", "expand(%a){shape=[4]}", "rank 2 does not broadcast to rank 1"),
        ("f32[p, 4]", "expand(%a){shape=[1, 4]}", "expand: p is not 1"),
        ("f32[9]", "slice(%a){starts=[2], sizes=[8], steps=[1]}", "the last index of x less an index is -1, below 0"),
        ("f32[9]", "slice(%a){starts=[2], sizes=[4], steps=[-1]}", "an index along axis 0 is -1, below 0"),
        ("f32[9]", "slice(%a){starts=[2], sizes=[4], steps=[0]}", "a step is 0"),
        ("f32[9]; f32[9, 1]", "concat(%a, %b){axis=0}", "the operands' ranks differ"),
        ("f32[2, 9]; f32[3, 9]", "concat(%a, %b){axis=1}", "the sizes of axis 0 differ: 2 is not 3"),
        ("f32[9]", "pad(%a){pads=[-1, 0]}", "an entry of pads=(-1, 0) is -1, below 0"),
        ("f32[9]", 'pad(%a){pads=[1, 0], mode="mirror"}', "mode='mirror' is none of constant, reflect"),
        ("f32[9]; f32[2]", "gather(%a, %b){axis=0}", "operand 1 has dtype f32"),
        ("f32[9]; i64[2]; f32[3]", "scatter_elements(%a, %b, %c){axis=0}", "indices and updates differ along axis 0"),
        ("f32[9, 2]; i64[3, 3]; f32[3, 3]", "scatter_elements(%a, %b, %c){axis=0}", "less that of indices is -1"),
        ("f32[9]; i64[2]; f64[2]", "scatter_elements(%a, %b, %c){axis=0}", "the operands' dtypes differ"),
        ("f32[9]; i64[2]; f32[2]", 'scatter_elements(%a, %b, %c){axis=0, reduction="mean"}', "is none of none, add"),
        ("f32[9, 2]; i64[3, 1]; f32[3, 3]", "scatter_nd(%a, %b, %c)", "axis 1 of updates does not fit"),
        ("f32[9]; i64[3, 2]; f32[3]", "scatter_nd(%a, %b, %c)", "indices of 2 entries do not fit"),
        ("f32[2, 9]; u16[9, 3]; f32[3, 3]", "matmul_nbits(%a, %b, %c){group=4}", "integers of 4 or 8 bits, not u16"),
        ("f32[2, 9]; u8[9, 3]; f32[2, 3]", "matmul_nbits(%a, %b, %c){group=4}", "the scales are not one a group"),
        ("f32[2, 9]; u8[9, 3]; f32[3, 1]", "matmul_nbits(%a, %b, %c){group=4}", "the scales are not one a column"),
        ("f32[2, 9]; i8[9, 3]; f32[3, 3]; i8[3, 3]", "matmul_nbits(%a, %b, %c, %d){group=4}", "unsigned, not i8"),
        ("f32[9]; i64[2, 2]", "gather_nd(%a, %b)", "indices of 2 entries after 0 batch axes do not fit f32[9]"),
    ],
)  # fmt: skip
def test_refusals(inputs: str, statement: str, message: str) -> None:
    with pytest.raises(Exception, match=re.escape(message)):
        result(inputs, statement)


def some_attrs(name: str) -> dict[str, Any]:
    values = {"int": 0, "float": 0.5, "bool": True, "ints": (0,), "dims": (1,), "str": "",
              "dtype": tensor("f32").dtype}  # fmt: skip
    return {a.name: values[a.kind] for a in op_def(name).attrs.values() if a.default is ...}


def test_unknown_rank_in_gives_known_dtype_out() -> None:
    """Every operator of float tensors takes operands of unknown rank."""
    seen = []
    for name, d in all_ops().items():
        if not d.operands or d.results <= 0:
            continue
        operands = [TensorType(tensor("f32").dtype, None)] * len([o for o in d.operands if not o.endswith("?")])
        if (
            name in ("not", "and", "or", "xor", "where", "gather", "gather_elements", "gather_nd")
            or "scatter" in name
            or name
            in (
                "linear_attention",
                "matmul_nbits",
                "roi_align",
                "sequence",
                "tree_ensemble",
                "order_key",
                "suppress",
                "unique",
            )
        ):
            continue
        if name.startswith(("bit_", "shift_")):
            continue
        changed = {"slice": {"steps": (1,)}, "pad": {"pads": (1, 1)}, "quantize": {"dtype": DTYPES["u8"]}}
        changed |= {
            "grid_sample": {"mode": "linear", "padding": "zeros"},
            "roi_align": {"mode": "avg", "size": (1, 1)},
            "col2im": {"strides": (1,), "dilations": (1,), "pads": (0, 0)},
            "deform_columns": dict.fromkeys(("kernel", "strides", "dilations"), (1, 1)) | {"pads": (0,) * 4},
        }
        attrs = {**some_attrs(name), **changed.get(name, {})}
        for t in d.infer(operands, d.complete(attrs)):
            assert isinstance(t, TensorType)
            assert t.shape is None or name in ("reshape", "expand", "slice", "observe")
        seen.append(name)
    assert len(seen) > 50


@pytest.mark.parametrize(
    ("inputs", "statement", "flops"),
    [
        ("f32[n, 4]; f32[4]", "add(%a, %b)", "4*n"),
        ("f32[n, 4]; f32[4, 5]", "matmul(%a, %b)", "40*n"),
        ("f32[n, 8, 9, 9]; f32[6, 4, 3, 3]",
         "conv(%a, %b){strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], groups=2}", "21168*n"),
        ("f32[n, 4]", "reduce_sum(%a){axes=[1], keepdims=true}", "4*n"),
        ("f32[n, 4]", "transpose(%a){perm=[1, 0]}", "0"),
        ("f32[*]; f32[4]", "add(%a, %b)", "0"),
    ],
)  # fmt: skip
def test_flops(inputs: str, statement: str, flops: str) -> None:
    parameters = ", ".join(f"%{chr(97 + i)}: {t}" for i, t in enumerate(inputs.split("; ")))
    node = next(parse_graph(f"graph g({parameters}) {{ %y = {statement} return %y }}").nodes)
    types = [None if v is None else v.type for v in node.operands]
    assert node.definition.flops(types, [v.type for v in node.results], node.attrs) == parse_dim(flops)


def test_definitions_are_complete() -> None:
    for name, d in all_ops().items():
        assert d.traits <= TRAITS and d.summary and d.name == name
        assert d.evaluate is not None or d.results == 0 or d.traits & {"control", "opaque"}


def test_mistakes_of_a_definition() -> None:
    with pytest.raises(ValueError, match="'relu' is defined twice"):
        define("relu", "", "x", lambda types, attrs: ())
    with pytest.raises(ValueError, match=r"unknown traits \['fast'\]"):
        define("new", "", "x", lambda types, attrs: (), traits="fast")
    assert "new" not in all_ops()


def test_attributes_and_operands_are_checked() -> None:
    assert AttrDef("a", "ints").check((1, True)) == "attribute a=(1, True) is not of kind ints"
    assert AttrDef("a", "dims").check((1, symbol("n"))) is None
    assert AttrDef("a", "int", None).check(None) is None
    assert AttrDef("a", "types").check((UnknownType(), SequenceType(tensor("f32", 2)))) is None
    graph = Graph()
    x = graph.add_input("x", tensor("f32", 2))
    with pytest.raises(InferenceError, match="relu takes at most 1 operands, not 2"):
        graph.add("relu", [x, x])
    with pytest.raises(InferenceError, match="relu needs its operand 'x'"):
        graph.add("relu", [None])
    with pytest.raises(InferenceError, match="concat needs an operand"):
        graph.add("concat", [], {"axis": 0})
    with pytest.raises(InferenceError, match="given when it is made"):
        graph.add("fused", [x])
    assert len(graph) == 0 and x.uses == ()
