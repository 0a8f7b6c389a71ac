"""Candidates of chosen kernels: what may be set, what may not, and the text that a kernel is known by."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from opcel_compiler.compilation import prepare
from opcel_compiler.ir.program import Kernel, Program
from opcel_compiler.schedule.choice.candidates import (
    CandidateError,
    apply,
    candidates,
    covers,
    kernel_text,
    settable,
)
from opcel_compiler.schedule.choice.context import Choosing
from opcel_compiler.schedule.choice.variants import Override, choices, override, variants
from opcel_compiler.targets import load_target

TARGET = "x86-64-avx512"


def model(
    op: str, weight: tuple[int, ...], x: tuple[int | str, ...], y: tuple[int | str, ...], **attributes: object
) -> bytes:
    w = numpy_helper.from_array(np.ones(weight, np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", x), ("y", y))]
    nodes = [helper.make_node(op, ["x", "w"], ["a"], **attributes), helper.make_node("Relu", ["a"], ["y"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [w])
    opsets = [helper.make_opsetid("", 17)]
    out: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return out


def kernel(model: bytes, family: str, target: str = TARGET) -> Kernel:
    program = prepare(model, target).program
    assert program is not None
    return next(k for k in program.kernels if k.family == family)


def product() -> Kernel:
    return kernel(model("MatMul", (64, 96), (50, 64), (50, 96)), "gemm")


def conv() -> Kernel:
    attributes = {"pads": [2, 2, 2, 2], "kernel_shape": [5, 5]}
    return kernel(model("Conv", (64, 32, 5, 5), (1, 32, 20, 20), (1, 64, 20, 20), **attributes), "conv.blocked")


@pytest.mark.parametrize(
    ("sizes", "count", "fit"),
    [
        ((4, 3), 7, True),  # 4 + 3
        ((4, 3), 5, False),  # an even cut takes 3 and leaves 2
        ((12, 8, 4, 2, 1), 29, True),
        ((12, 11), 11, True),
        ((5,), 4, False),
        ((6, 5), 128, True),  # 22 tiles: 18 of 6 and 4 of 5
    ],
)
def test_tiles_cover_an_axis_as_the_kernels_cut_it(sizes: tuple[int, ...], count: int, fit: bool) -> None:
    assert covers(sizes, count) is fit


@pytest.mark.parametrize("make", [product, conv])
def test_the_choice_is_the_first_candidate_and_all_are_valid(make: object) -> None:
    target = load_target(TARGET)
    found = candidates(make(), target)  # type: ignore[operator]
    chosen = make()  # type: ignore[operator]
    assert found[0] == {key: chosen.params[key] for key in settable(chosen)}
    assert len(found) > 3 and all(a != b for i, a in enumerate(found) for b in found[:i])
    for params in found:
        fresh = make()  # type: ignore[operator]
        apply(fresh, params, lambda base: base + "!")
        assert {key: fresh.params[key] for key in params} == params
        assert kernel_text(fresh) == kernel_text(chosen)


def test_a_panel_goes_with_the_weights_layout() -> None:
    gemm = product()
    packed = gemm.inputs[1].buffer
    assert (gemm.params["panel"], packed.layout.block) == (32, 32)
    apply(gemm, {"panel": 48, "rows": (10,), "rows_per_task": 50}, lambda base: base + "!")
    assert (gemm.params["panel"], gemm.inputs[1].buffer.layout.block) == (48, 48)
    assert gemm.inputs[1].buffer is not packed and packed.layout.block == 32
    assert gemm.inputs[1].strides == gemm.inputs[1].buffer.layout.strides((64, 96))


def test_output_blocks_go_with_the_weights_packing() -> None:
    found = conv()
    packed = found.inputs[1].buffer
    assert (found.params["out_blocks"], packed.packing) == (2, "conv:1:16:1:32")
    apply(found, {"out_blocks": 4, "tile_widths": (5,)}, lambda base: base + "!")
    assert found.inputs[1].buffer.packing == "conv:1:16:1:64" and packed.packing == "conv:1:16:1:32"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"rows": (7,)}, r"rows \(7,\) do not add up to"),
        ({"rows": (4, 7)}, "do not descend"),
        ({"rows": 4}, "rows of a kernel of family gemm cannot be 4"),
        ({"panels_per_task": 0}, "panels_per_task of a kernel of family gemm cannot be 0"),
        ({"panels_per_task": True}, "cannot be True"),
        ({"colour": 1}, "has no parameter 'colour' to set"),
    ],
)
def test_a_product_refuses(params: dict[str, object], message: str) -> None:
    gemm = product()
    before = dict(gemm.params)
    with pytest.raises(CandidateError, match=message):
        apply(gemm, params, lambda base: base)
    assert gemm.params == before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"out_blocks": 3}, "out_blocks 3 does not divide 4"),
        ({"tile_widths": (8,)}, "do not add up to 20"),
        ({"extent": (3, 3)}, "not that of the image"),
    ],
)
def test_a_convolution_refuses(params: dict[str, object], message: str) -> None:
    with pytest.raises(CandidateError, match=message):
        apply(conv(), params, lambda base: base)


def test_a_kernel_of_open_size_has_no_candidates() -> None:
    gemm = kernel(model("MatMul", (64, 96), ("n", 64), ("n", 96)), "gemm")
    assert candidates(gemm, load_target(TARGET)) == []
    with pytest.raises(CandidateError, match="known only when it runs"):
        apply(gemm, {"panels_per_task": 1}, lambda base: base)


def choosing(target: str = TARGET) -> Choosing:
    return Choosing(Program("p"), load_target(target))


def test_an_override_is_by_text_and_family() -> None:
    gemm = product()
    text = kernel_text(gemm)
    other = {"panels_per_task": gemm.params["panels_per_task"] + 1}
    assert override([gemm], {text: Override("conv.blocked", other)}, choosing()) == 0
    assert override([gemm], {text + "?": Override("gemm", other)}, choosing()) == 0
    assert override([gemm], {text: Override("gemm", other)}, choosing()) == 1
    assert gemm.params["panels_per_task"] == other["panels_per_task"]
    assert text == "f32: matmul, relu: f32[50,64], weight f32[64,96] -> f32[50,96]"


def square() -> Kernel:
    """A convolution of 3x3 filters, direct."""
    attributes = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    program = prepare(
        model("Conv", (64, 64, 3, 3), (1, 64, 24, 24), (1, 64, 24, 24), **attributes), TARGET, small=True
    ).program
    assert program is not None
    return next(k for k in program.kernels if k.family == "conv.blocked")


def test_a_convolution_has_variants_of_other_families() -> None:
    direct = square()
    packed = direct.inputs[1].buffer
    found = variants(direct, choosing())
    assert [(k.family, k.params["tile"]) for k in found] == [("conv.winograd", 2), ("conv.winograd", 4)]
    assert [k.inputs[1].buffer.packing.split(":")[:2] for k in found] == [["winograd", "2"], ["winograd", "4"]]
    assert direct.inputs[1].buffer is packed and packed.packing.startswith("conv:")
    assert [kernel_text(k) for k in found] == [kernel_text(direct)] * 2
    back = variants(found[0], choosing())
    assert [(k.family, k.params.get("tile")) for k in back] == [("conv.winograd", 4), ("conv.blocked", None)]
    assert back[1].params == direct.params and back[1].inputs[1].buffer.packing == packed.packing
    assert variants(direct, choosing(), winograd=False) == [] and variants(product(), choosing()) == []
    families = [k.family for k, _ in choices(direct, choosing())]
    assert families[0] == "conv.blocked" and families[-2:] == ["conv.winograd"] * 2


def test_an_override_may_name_another_family() -> None:
    direct = square()
    tuned = {kernel_text(direct): Override("conv.winograd", {"tile": 4})}
    assert override([direct], tuned, choosing(), winograd=False) == 0 and direct.family == "conv.blocked"
    assert override([direct], tuned, choosing()) == 1
    assert (direct.family, direct.params["tile"]) == ("conv.winograd", 4)
    assert direct.inputs[1].buffer.packing.startswith("winograd:4:")
    back = {"rows_per_task": 1}
    assert override([direct], {kernel_text(direct): Override("conv.blocked", back)}, choosing()) == 1
    assert (direct.family, direct.params["rows_per_task"]) == ("conv.blocked", 1)
    assert override([direct], {kernel_text(direct): Override("conv.winograd", {"tile": 3})}, choosing()) == 0
