"""Lowerings of operators on images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_harness import check, floats, interpret, model_of, one_node, reference

from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ModelError

IMAGE = floats(2, 3, 7, 5)
HOW = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]


def resized(x: np.ndarray, opset: int = 13, *, symbolic: Any = None, sizes: Any = None, scales: Any = None,
            roi: Any = None, **attrs: Any) -> Any:  # fmt: skip
    """The model of a Resize of `x` by constant sizes or scales."""
    constants = {"r": np.asarray(roi, np.float32)} if roi is not None else {}
    names = ["x", "r" if roi is not None else ""]
    if scales is not None:
        constants["s"] = np.array(scales, np.float32)
        names += ["s"]
    else:
        constants["s"] = np.array(sizes)
        names += ["", "s"]
    return one_node("Resize", {"x": x}, opset, constants=constants, inputs=names, symbolic=symbolic, **attrs)


@pytest.mark.parametrize("how", [*HOW, "half_pixel_symmetric"])
@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize("sizes", [[2, 3, 14, 9], [2, 3, 3, 5], [2, 3, 1, 1]])
def test_resize_by_sizes(how: str, mode: str, sizes: list[int]) -> None:
    opset = 19 if how == "half_pixel_symmetric" else 13
    model = resized(IMAGE, opset, sizes=sizes, coordinate_transformation_mode=how, mode=mode)
    check(model, {"x": IMAGE}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attrs", [{"exclude_outside": 1}, {"cubic_coeff_a": -0.5}])
def test_cubic_resize(attrs: dict[str, Any]) -> None:
    check(resized(IMAGE, scales=[1, 1, 1.7, 0.6], mode="cubic", **attrs), {"x": IMAGE}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scales", [[1, 1, 0.6, 0.3], [1, 1, 2.0, 0.5]])
def test_antialiased_resize(mode: str, scales: list[float]) -> None:
    """Against ONNX Runtime where both leave out what lies outside."""
    model = resized(IMAGE, 18, scales=scales, mode=mode, antialias=1, exclude_outside=1)
    check(model, {"x": IMAGE}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("axes", [[2, 3], [3, 2]])
def test_resize_that_keeps_the_aspect_ratio(policy: str, axes: list[int]) -> None:
    model = resized(IMAGE, 18, sizes=[12, 8], axes=axes, keep_aspect_ratio_policy=policy, mode="linear")
    check(model, {"x": IMAGE}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_crop_and_resize(mode: str) -> None:
    roi = [0, 0, 0.2, -0.3, 1, 1, 0.7, 1.2]
    attrs = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.5, "mode": mode}
    check(resized(IMAGE, roi=roi, sizes=[2, 3, 4, 6], **attrs), {"x": IMAGE}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize("to", [{"sizes": [2, 3, 10, 4]}, {"scales": [1, 1, 2, 3]}])
def test_resize_of_symbolic_sizes(how: str, mode: str, to: dict[str, Any]) -> None:
    model = resized(IMAGE, symbolic={"x": ["n", 3, "h", "w"]}, **to, coordinate_transformation_mode=how, mode=mode)
    check(model, {"x": IMAGE}, rtol=1e-4, atol=1e-5)


def test_antialiased_resize_of_symbolic_sizes() -> None:
    model = resized(IMAGE, 18, symbolic={"x": [2, 3, "h", "w"]}, sizes=[2, 3, 3, 4], mode="linear", antialias=1,
                    exclude_outside=1)  # fmt: skip
    check(model, {"x": IMAGE}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape, sizes", [((6, 5), [9, 2]), ((2, 6, 5), [2, 9, 2]), ((1, 2, 3, 4, 5), [1, 2, 5, 2, 7])])
def test_linear_resize_of_other_ranks(shape: tuple[int, ...], sizes: list[int]) -> None:
    x = floats(*shape)
    check(resized(x, sizes=sizes, mode="linear"), {"x": x}, rtol=1e-4, atol=1e-5)


def test_resize_of_axes_before_the_last() -> None:
    x = floats(1, 4, 6, 3)
    model = resized(x, sizes=[1, 7, 9, 3], mode="linear", coordinate_transformation_mode="asymmetric")
    check(model, {"x": x}, rtol=1e-4, atol=1e-5)


def test_resize_of_integers() -> None:
    x = np.arange(210, dtype=np.int32).reshape(2, 3, 7, 5)
    check(resized(x, sizes=[2, 3, 9, 4], mode="nearest"), {"x": x})


@pytest.mark.parametrize(
    "attrs, message",
    [({"mode": "sharp"}, "mode 'sharp' is unknown"), ({"nearest_mode": "up"}, "nearest_mode 'up' is unknown")],
)
def test_unknown_ways_to_resize(attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        import_model(resized(IMAGE, sizes=[2, 3, 9, 4], **attrs))


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [[0, 0, 2, 1, 0, 0, 3, 4], [1, 2, 0, 0, 0, 1, 0, 2]])
@pytest.mark.parametrize("shape", [(2, 3, 7, 5), ("n", 3, "h", "w")])
def test_pad_by_the_content(mode: str, pads: list[int], shape: tuple[Any, ...]) -> None:
    constants = {"p": np.array(pads)}
    model = one_node("Pad", {"x": IMAGE}, 19, constants=constants, symbolic={"x": shape}, mode=mode)
    check(model, {"x": IMAGE})


def test_pad_of_integers_and_of_chosen_axes() -> None:
    x = np.arange(12).reshape(3, 4)
    constants = {"p": np.array([2, 1]), "a": np.array([-1])}
    inputs = ["x", "p", "", "a"]
    check(one_node("Pad", {"x": x}, 19, constants=constants, inputs=inputs, mode="reflect"), {"x": x})


@pytest.mark.parametrize("mode", ["constant", "edge"])
def test_negative_pads_cut(mode: str) -> None:
    constants = {"p": np.array([0, 0, -1, 2, 0, 0, 1, -2])}
    check(one_node("Pad", {"x": IMAGE}, 18, constants=constants, mode=mode), {"x": IMAGE})


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(
    "attrs",
    [
        {"kernel_shape": [3, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 2]},
        {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"kernel_shape": [3, 3], "dilations": [2, 1], "pads": [1, 1, 1, 1]},
    ],
)
def test_lp_pool(p: int, attrs: dict[str, Any]) -> None:
    check(one_node("LpPool", {"x": IMAGE}, 18, p=p, **attrs), {"x": IMAGE}, rtol=1e-4, atol=1e-5)


def test_lp_pool_with_windows_over_the_end() -> None:
    model = one_node("LpPool", {"x": IMAGE}, 18, p=2, kernel_shape=[3, 3], strides=[2, 3], ceil_mode=1)
    (got,) = interpret(import_model(model), {"x": IMAGE})
    rows, columns = (slice(0, 3), slice(2, 5), slice(4, 7)), (slice(0, 3), slice(3, 6))
    want = [[np.sqrt((IMAGE[:, :, r, c] ** 2).sum((2, 3))) for c in columns] for r in rows]
    np.testing.assert_allclose(got, np.transpose(want, (2, 3, 0, 1)), rtol=1e-5)


def test_global_lp_pool() -> None:
    check(one_node("GlobalLpPool", {"x": IMAGE}, 13, p=3), {"x": IMAGE}, rtol=1e-4)


@pytest.mark.parametrize("order", [0, 1])
def test_max_pool_with_indices(order: int) -> None:
    attrs = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "storage_order": order}
    check(one_node("MaxPool", {"x": IMAGE}, 12, outputs=2, **attrs), {"x": IMAGE})


@pytest.mark.parametrize("opset, axis", [(11, 1), (11, 2), (13, -1), (13, 0)])
def test_hardmax(opset: int, axis: int) -> None:
    x = np.round(floats(3, 4, 5))
    check(one_node("Hardmax", {"x": x}, opset, axis=axis), {"x": x})


def test_batch_normalization_in_training_mode() -> None:
    feeds = {"x": IMAGE}
    constants = {n: floats(3, seed=i, low=0.5) for i, n in enumerate(["scale", "bias", "mean", "variance"])}
    model = one_node("BatchNormalization", feeds, 15, constants=constants, outputs=3, training_mode=1, momentum=0.7)
    check(model, feeds, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op_type", ["Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Tan"])
def test_trigonometry(op_type: str) -> None:
    x = floats(40, low=1.0) if op_type == "Acosh" else floats(40, low=-0.99, high=0.99)
    check(one_node(op_type, {"x": x}, 13), {"x": x})


def test_convolution_over_four_axes() -> None:
    feeds = {"x": floats(2, 4, 5, 4, 6, 5), "w": floats(6, 2, 3, 2, 3, 1, seed=1), "b": floats(6, seed=2)}
    pads, strides, dilations = [1, 0, 1, 0, 1, 1, 0, 0], [2, 1, 2, 1], [1, 2, 1, 1]
    model = one_node("Conv", feeds, 11, group=2, pads=pads, strides=strides, dilations=dilations)
    (got,) = interpret(import_model(model), feeds)
    (want,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_negative_pads_of_a_convolution() -> None:
    feeds = {"x": IMAGE, "w": floats(4, 3, 2, 2, seed=1)}
    nodes = one_node("Conv", feeds, 11, pads=[-1, 1, 2, -1]).graph.node
    (got,) = interpret(import_model(model_of(list(nodes), feeds, 11, outputs=["y0"])), feeds)
    cut = {**feeds, "x": IMAGE[:, :, 1:, :-1].copy()}
    (want,) = reference(one_node("Conv", cut, 11, pads=[0, 1, 2, 0]), cut)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


KERNEL = {"w": floats(3, 2, 3, 3, seed=1), "b": floats(2, seed=2)}


@pytest.mark.parametrize("attrs", [{"output_shape": [22, 12]}, {"auto_pad": "SAME_UPPER"}])
def test_transposed_convolution_of_other_sizes(attrs: dict[str, Any]) -> None:
    model = one_node("ConvTranspose", {"x": IMAGE}, 11, constants=KERNEL, strides=[3, 2], **attrs)
    check(model, {"x": IMAGE}, rtol=1e-4, atol=1e-5)


def test_negative_pads_of_a_transposed_convolution() -> None:
    feeds = {"x": IMAGE}
    nodes = one_node("ConvTranspose", feeds, 11, constants=KERNEL, pads=[-1, 1, 1, -2]).graph.node
    (got,) = interpret(import_model(model_of(list(nodes), feeds, 11, KERNEL, ["y0"])), feeds)
    (whole,) = reference(one_node("ConvTranspose", feeds, 11, constants={"w": KERNEL["w"]}), feeds)
    want = np.pad(whole[:, :, :-1, 1:], ((0, 0), (0, 0), (1, 0), (0, 2))) + KERNEL["b"].reshape(2, 1, 1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("align_corners", [0, 1])
@pytest.mark.parametrize("size", [[2, 3, 4, 5], [2, 3, 3, 1, 5]])
def test_affine_grid(align_corners: int, size: list[int]) -> None:
    axes = len(size) - 2
    feeds = {"theta": floats(2, axes, axes + 1)}
    model = one_node("AffineGrid", feeds, 20, constants={"size": np.array(size)}, align_corners=align_corners)
    (want,) = ReferenceEvaluator(model).run(None, feeds)
    (got,) = interpret(import_model(model), feeds)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_grid_sample_and_region_align() -> None:
    feeds = {"x": IMAGE, "grid": floats(2, 4, 3, 2)}
    check(one_node("GridSample", feeds, 16, mode="bilinear", padding_mode="border"), feeds, atol=1e-5)
    check(one_node("GridSample", feeds, 20, mode="cubic", padding_mode="reflection"), feeds, atol=1e-5)
    rois = np.array([[0, 0, 4, 3], [1.3, 2.1, 5.5, 4.9]], np.float32)
    feeds = {"x": IMAGE, "rois": rois, "images": np.array([1, 0])}
    attrs = {"output_height": 2, "output_width": 3, "spatial_scale": 0.7}
    check(one_node("RoiAlign", feeds, 10, **attrs), feeds, atol=1e-5)
    check(one_node("RoiAlign", feeds, 16, sampling_ratio=2, **attrs), feeds, atol=1e-5)


@pytest.mark.parametrize("group, offset_group", [(1, 1), (2, 1), (1, 2)])
def test_deformable_convolution(group: int, offset_group: int) -> None:
    feeds = {"x": floats(2, 4, 5, 6), "w": floats(6, 4 // group, 2, 3, seed=1),
             "offset": floats(2, 12 * offset_group, 4, 6, seed=2), "b": floats(6, seed=3),
             "mask": floats(2, 6 * offset_group, 4, 6, seed=4)}  # fmt: skip
    attrs = {"group": group, "offset_group": offset_group, "pads": [0, 1, 0, 1]}
    model = one_node("DeformConv", feeds, 19, **attrs)
    (want,) = ReferenceEvaluator(model).run(None, feeds)
    (got,) = interpret(import_model(model), feeds)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_columns_to_images() -> None:
    feeds = {"x": floats(2, 12, 16)}
    constants = {"size": np.array([5, 6]), "block": np.array([2, 3])}
    check(one_node("Col2Im", feeds, 18, constants=constants), feeds, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 5, 5), (3, 1, 1)])
def test_determinant(shape: tuple[int, ...]) -> None:
    x = floats(*shape)
    (got,) = interpret(import_model(one_node("Det", {"x": x}, 11)), {"x": x})
    np.testing.assert_allclose(got, np.linalg.det(x), rtol=1e-4, atol=1e-4)


def test_max_unpool() -> None:
    feeds = {"x": floats(1, 1, 2, 2), "i": np.array([[[[1, 3], [4, 15]]]])}
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2]}
    check(one_node("MaxUnpool", feeds, 11, **attrs), feeds)
    model = one_node("MaxUnpool", feeds, 11, constants={"s": np.array([1, 1, 5, 6])}, **attrs)
    (want,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_array_equal(interpret(import_model(model), feeds)[0], want)


def test_max_pool_of_bytes() -> None:
    x = np.random.default_rng(0).integers(0, 255, (1, 3, 7, 5)).astype(np.uint8)
    attrs = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
    check(one_node("MaxPool", {"x": x}, 12, **attrs), {"x": x})
    feeds = {"x": np.ascontiguousarray(x.transpose(0, 2, 3, 1))}
    model = one_node("MaxPool", feeds, 12, **attrs)
    model.graph.node[0].op_type, model.graph.node[0].domain = "NhwcMaxPool", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.output[0].CopyFrom(helper.make_empty_tensor_value_info("y0"))
    check(model, feeds)
