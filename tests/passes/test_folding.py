"""fold-constants, dead-code, common-subexpressions, fold-affine."""

from __future__ import annotations

import numpy as np
import pytest

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.types import F32, tensor
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline


def weights(*shape: int, seed: int = 1) -> Constant:
    return Constant(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


# -- fold-constants ------------------------------------------------------------------------------------------------


def test_folds_chains_and_keeps_names(apply) -> None:
    out = apply(
        """graph main(%x: f32[2]) {
          %a = f32[2] [1.0, 2.0]
          %b = f32[2] [3.0, 4.0]
          %c = add(%a, %b)
          %d = neg(%c) from "Neg_1"
          %y = mul(%x, %d)
          return %y
        }""",
        "fold-constants",
    )
    out.is_("graph main(%x: f32[2]) {\n %d = f32[2] [-4.0, -6.0]\n %y = mul(%x, %d)\n return %y\n}")
    (folded,) = [n for n in out.graph.nodes if n.op == "constant"]
    assert folded.result.name == "d" and folded.origin == ("Neg_1",)


def test_size_cap(apply) -> None:
    text = """graph main(%x: f32[64]) {
      %a = f32[1] 2.0
      %b = expand(%a){shape=[64]}
      %y = mul(%x, %b)
      return %y
    }"""
    assert apply(text, "fold-constants{max-bytes=64}").ops == ["expand", "mul"]
    assert "256 bytes, more than 64" in apply(text, "fold-constants{max-bytes=64}").reasons
    assert apply(text, "fold-constants{max-bytes=256}").ops == ["mul"]
    assert apply(text, "fold-constants{max-bytes=0,max-growth=64}").ops == ["mul"]


def test_transposed_weights_stay_a_view(tmp_path) -> None:
    np.save(tmp_path / "w.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    mapped = np.load(tmp_path / "w.npy", mmap_mode="r")
    graph = Graph()
    x = graph.add_input("x", tensor(F32, 2, 4))
    w = graph.add("transpose", [graph.constant(Constant(mapped))], {"perm": (1, 0)}).result
    graph.add_output(graph.add("matmul", [x, w]).result)
    PassManager.run(graph, Pipeline.parse("fold-constants"))
    (data,) = [n.attrs["value"].array for n in graph.nodes if n.op == "constant"]
    assert data.shape == (4, 3) and np.shares_memory(data, mapped)


def test_symbolic_sizes_are_not_folded_constant_ones_are(apply) -> None:
    text = """graph main(%x: f32[n, 2]) {
      %a = dims{values=[%s, 2]} : i64[2]
      return %a
    }"""
    assert apply(text.replace("%s", "n"), "fold-constants").ops == ["dims"]
    assert apply(text.replace("%s", "5"), "fold-constants").ops == []


def test_evaluation_that_fails_is_left_alone() -> None:
    graph = Graph()
    data = graph.constant(Constant(np.zeros((2, 3), np.float32)))
    index = graph.constant(Constant(np.array([7])))
    graph.add_output(graph.add("gather", [data, index], {"axis": 0}).result)
    ctx = PassManager.run(graph, Pipeline.parse("fold-constants"))
    assert [n.op for n in graph.nodes] == ["constant", "constant", "gather"]
    assert "its evaluation fails: index 7 is out of bounds" in str(next(ctx.report.refusals()))


# -- dead-code, common-subexpressions ------------------------------------------------------------------------------


def test_dead_chains_go(apply) -> None:
    out = apply(
        """graph main(%x: f32[2]) {
          %a = exp(%x)
          %b = neg(%a)
          %y = abs(%x)
          return %y
        }""",
        "dead-code",
    )
    assert out.ops == ["abs"] and out.changes == {"remove": 2}


def test_equal_nodes_merge(apply) -> None:
    out = apply(
        """graph main(%x: f32[2], %y: f32[2]) {
          %c = f32[2] [1.0, 2.0]
          %d = f32[2] [1.0, 2.0]
          %a = add(%x, %y) from "A"
          %b = add(%y, %x) from "B"
          %e = mul(%a, %c)
          %f = mul(%b, %d)
          %s = sub(%x, %y)
          %t = sub(%y, %x)
          return %e, %f, %s, %t
        }""",
        "common-subexpressions",
    )
    assert out.ops == ["add", "mul", "sub", "sub"]
    assert next(n.origin for n in out.graph.nodes if n.op == "add") == ("A", "B")
    assert out.graph.output_names == ["e", "f", "s", "t"]


def test_attributes_and_types_tell_nodes_apart(apply) -> None:
    out = apply(
        """graph main(%x: f32[2, 2]) {
          %a = reduce_sum(%x){axes=[0], keepdims=false}
          %b = reduce_sum(%x){axes=[1], keepdims=false}
          %c = i32[1] 0
          %d = f32[1] 0.0
          return %a, %b, %c, %d
        }""",
        "common-subexpressions",
    )
    assert out.ops == ["reduce_sum", "reduce_sum"] and out.changes == {}


# -- fold-affine ---------------------------------------------------------------------------------------------------

CONV = """graph main(%x: f32[1, 4, 5, 5]) {
  %w = f32[6, {IN}, 3, 3] #{W}
  %b = f32[6] #{B}
  %scale = f32[6, 1, 1] #{S}
  %shift = f32[6, 1, 1] #{T}
  %y = conv(%x, %w{BIAS}){strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1], groups={G}}
  %m = mul(%y, %scale)
  %z = add(%shift, %m)
  return %z
}"""


@pytest.mark.parametrize("bias", [", %b", ""])
@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_folds_into_convolution(apply, bias: str, groups: int) -> None:
    data = [weights(6, 4 // groups, 3, 3), weights(6), weights(6, 1, 1), weights(6, 1, 1, seed=3)]
    text = CONV.replace("{BIAS}", bias).replace("{G}", str(groups)).replace("{IN}", str(4 // groups))
    for key, c in zip("WBST", data, strict=True):
        text = text.replace("{" + key + "}", c.digest)
    out = apply(text, "fold-affine", tolerance=1e-5, constants={c.digest: c for c in data})
    assert out.ops == ["conv"]
    assert len(next(n for n in out.graph.nodes if n.op == "conv").operands) == 3


@pytest.mark.parametrize("groups", [1, 2])
def test_scale_folds_into_transposed_convolution(apply, groups: int) -> None:
    w, s = weights(4, 3, 2, 2), weights(3 * groups, 1, 1)
    out = apply(
        f"""graph main(%x: f32[1, 4, 5, 5]) {{
          %w = f32[4, 3, 2, 2] #{w.digest}
          %s = f32[{3 * groups}, 1, 1] #{s.digest}
          %y = conv_transpose(%x, %w){{
            strides=[2, 2], pads=[0, 0, 0, 0], dilations=[1, 1], groups={groups}, output_padding=[0, 0]}}
          %z = mul(%y, %s)
          return %z
        }}""",
        "fold-affine",
        tolerance=1e-5,
        constants={w.digest: w, s.digest: s},
    )
    assert out.ops == ["conv_transpose"]


def test_scale_before_grouped_convolution(apply) -> None:
    w, s = weights(6, 2, 3, 3), weights(1, 4, 1, 1)
    text = f"""graph main(%x: f32[1, 4, 5, 5]) {{
      %w = f32[6, 2, 3, 3] #{w.digest}
      %s = f32[1, 4, 1, 1] #{s.digest}
      %m = mul(%x, %s)
      %y = conv(%m, %w){{strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1], groups=2}}
      return %y
    }}"""
    assert apply(text, "fold-affine", tolerance=1e-5, constants={w.digest: w, s.digest: s}).ops == ["conv"]


def test_matmul_scale_bias_scale(apply) -> None:
    out = apply(
        """graph main(%x: f32[n, 2]) {
          %r = f32[2] [2.0, 4.0]
          %w = f32[2, 3] [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
          %b = f32[3] [1.0, 1.0, 2.0]
          %c = f32[3] [2.0, 3.0, 4.0]
          %d = f32[3] [1.0, 0.0, 0.0]
          %m = mul(%x, %r)
          %y = matmul(%m, %w)
          %z = add(%y, %b)
          %u = mul(%z, %c)
          %v = add(%u, %d)
          return %v
        }""",
        "fold-affine,simplify,dead-code",
        tolerance=1e-6,
    )
    out.is_(
        """graph main(%x: f32[n, 2]) {
          %w = f32[2, 3] [[4.0, 12.0, 24.0], [32.0, 60.0, 96.0]]
          %y = matmul(%x, %w)
          %b = f32[3] [3.0, 3.0, 8.0]
          %z = add(%y, %b)
          return %z
        }"""
    )


@pytest.mark.parametrize(
    ("shape", "values", "reason"),
    [
        ("1, 1, 1, 5", "[[[[1.0, 2.0, 3.0, 4.0, 5.0]]]]", "varies along other axes than 1"),
        ("2, 1, 1, 1", "[[[[1.0]]], [[[2.0]]]]", "the result is f32[2"),
        ("1", "3e38", "leaves the range of f32"),
    ],
)
def test_scale_that_does_not_fold(apply, shape: str, values: str, reason: str) -> None:
    out = apply(
        f"""graph main(%x: f32[1, 1, 5, 5]) {{
          %w = f32[1, 1, 1, 1] 4.0
          %s = f32[{shape}] {values}
          %y = conv(%x, %w){{strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}}
          %z = mul(%y, %s)
          return %z
        }}""",
        "fold-affine",
    )
    assert out.ops == ["conv", "mul"] and reason in out.reasons


def test_convolution_used_elsewhere_stays(apply) -> None:
    out = apply(
        """graph main(%x: f32[1, 1, 2, 2]) {
          %w = f32[1, 1, 1, 1] 4.0
          %s = f32[1] 2.0
          %y = conv(%x, %w){strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}
          %z = mul(%y, %s)
          return %z, %y
        }""",
        "fold-affine",
    )
    assert out.ops == ["conv", "mul"] and "has 2 uses, not one" in out.reasons
