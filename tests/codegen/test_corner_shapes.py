"""Graphs whose kernels meet sizes of 0 and 1, and weights that more than one kernel reads, in one artifact."""

from __future__ import annotations

import numpy as np
import pytest

import opcel_compiler as oc
from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.parse import parse_graph

GRAPH = """
graph corners(%a: f32[4, 1], %s: f32[4, 1], %q: f32[2, 2, 3, 5], %r: f32[2, 2, 5], %x: f32[3, 2, 4],
              %im: f32[1, 2, 5, 1],
              %none: f32[0, 3, 4, 4], %rows: f32[0, 7], %h: bf16[3, 4], %at: i64[3, 2], %ch: f32[1, 2, 1, 6]) {
  %one = layer_norm(%a, %s, %s){axis=0, epsilon=0.001} : f32[4, 1]
  %turned = transpose(%q){perm=[0, 1, 3, 2]} : f32[2, 2, 5, 3]
  %back = transpose(%turned){perm=[0, 1, 3, 2]} : f32[2, 2, 3, 5]
  %cut = slice(%back){starts=[0, 0, 1, 0], sizes=[2, 2, 1, 5], steps=[1, 1, 1, 1]} : f32[2, 2, 1, 5]
  %small = reshape(%r){shape=[2, 1, 2, 5]} : f32[2, 1, 2, 5]
  %moved = transpose(%small){perm=[0, 2, 1, 3]} : f32[2, 2, 1, 5]
  %wide = add(%cut, %moved) : f32[2, 2, 1, 5]
  %scale = f32[2, 1, 5] [[[1.0, 2.0, 3.0, 4.0, 5.0]], [[5.0, 4.0, 3.0, 2.0, 1.0]]]
  %rms = rms_norm(%cut, %scale){axis=1, epsilon=0.001} : f32[2, 2, 1, 5]
  %w = f32[1, 4, 1] [[[0.5], [-0.8], [-1.1], [0.7]]]
  %i = f32[1, 4, 4] 0.25
  %y, %c = lstm(%x, %w, %i) : f32[3, 1, 2, 1], f32[1, 2, 1]
  %both = mul(%w, %s) : f32[1, 4, 1]
  %taps = f32[2, 3, 3, 3] 0.5
  %up = conv_transpose(%im, %taps){strides=[1, 2], pads=[1, 1, 1, 1], dilations=[1, 1],
                              output_padding=[0, 0]} : f32[1, 3, 5, 1]
  %k = f32[4, 3, 3, 3] 0.5
  %empty = conv(%none, %k){strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1]} : f32[0, 4, 4, 4]
  %m = f32[7, 5] 0.5
  %nothing = matmul(%rows, %m) : f32[0, 5]
  %picked = gather_elements(%h, %at){axis=1} : bf16[3, 2]
  %deep = expand(%ch){shape=[1, 2, 1, 6]} : f32[1, 2, 1, 6]
  %less = less(%at, %at) : bool[3, 2]
  %lifted = expand(%less){shape=[1, 3, 2]} : bool[1, 3, 2]
  %never = xor(%lifted, %less) : bool[1, 3, 2]
  return %one as "one", %wide as "wide", %rms as "rms", %y as "y", %c as "c", %both as "both", %w as "w", %up as "up",
    %empty as "empty", %nothing as "nothing", %picked as "picked", %deep as "deep", %never as "never"
}
"""


@pytest.mark.filterwarnings("ignore::opcel_compiler.driver.FallbackWarning")
def test_corners() -> None:
    graph = parse_graph(GRAPH)
    rng = np.random.default_rng(0)
    feeds = {}
    for v in graph.inputs:
        shape, dtype = v.tensor.static_shape, v.tensor.dtype
        data = rng.integers(-2, 2, shape) if dtype.is_integer else rng.standard_normal(shape)
        feeds[v.name] = data.astype(dtype.numpy)
    want = run(graph, feeds)
    with oc.compile(export_model(graph), proof=False) as compiled:
        got = compiled.run(feeds)
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype
        if array.dtype.kind == "b":
            np.testing.assert_array_equal(got[name], array)
        else:
            np.testing.assert_allclose(got[name].astype(float), array.astype(float), rtol=1e-4, atol=1e-5, err_msg=name)
