"""Operators on images, compiled and compared with the interpreter and ONNX Runtime: several outputs a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import opcel_compiler as oc

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(
    nodes: list[tuple[str, str, str, dict[str, Any]]],
    inputs: dict[str, list[int | str]],
    constants: dict[str, np.ndarray],
    opset: int = 18,
) -> onnx.ModelProto:
    """Nodes as (op, inputs, outputs, attributes); every value whose name begins with y is an output."""
    made = [helper.make_node(op, ["" if n == "_" else n for n in i.split()], o.split(), **a) for op, i, o, a in nodes]
    outputs = [helper.make_empty_tensor_value_info(n) for _, _, o, _ in nodes for n in o.split() if n[0] == "y"]
    graph = helper.make_graph(
        made, "several", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()], outputs,
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def families(model: onnx.ModelProto, **options: Any) -> set[str]:
    """The kernel families of the model, compiled without a fallback and proved."""
    with oc.compile(model, fallback="error", threads=2, **options) as compiled:
        assert compiled.report["proof"]["status"] == "proved"
        return {k["family"] for k in compiled.report["kernels"]}


def resizes(sizes: str, conv: str) -> list[tuple[str, str, str, dict[str, Any]]]:
    return [
        ("Resize", f"{conv} _ _ {sizes}", "y0", {"mode": "linear"}),
        ("Resize", f"{conv} _ _ {sizes}", "y1", {"mode": "cubic", "exclude_outside": 1}),
        ("Resize", f"{conv} _ _ {sizes}", "y2", {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}),
        ("Resize", f"{conv} _ two _", "y3", {"mode": "nearest"}),
        ("Resize", f"{conv} _ _ {sizes}", "y4", {"mode": "linear", "antialias": 1, "exclude_outside": 1}),
        ("Pad", f"{conv} p", "y5", {"mode": "reflect"}),
        ("Pad", f"{conv} q", "y6", {"mode": "edge"}),
    ]


CONSTANTS = {
    "s": np.array([2, 5, 19, 8]), "two": np.array([1, 1, 2, 3], np.float32),
    "p": np.array([0, 0, 2, 1, 0, 0, 3, 4]), "q": np.array([0, 1, 0, 2, 1, 0, 2, 0]),
    "w": floats(5, 5, 3, 3),
}  # fmt: skip


def resized(blocked: bool = False) -> onnx.ModelProto:
    nodes = [("Conv", "x w", "c", {"pads": [1, 1, 1, 1]}), *resizes("s", "c")] if blocked else resizes("s", "x")
    return model_of(nodes, {"x": [2, 5, 11, 21]}, CONSTANTS)


def test_resampled_planes() -> None:
    assert families(resized()) == {"resample", "gather"}


def test_resampled_planes_of_sizes_known_at_run_time() -> None:
    model = model_of(resizes("s", "x"), {"x": [2, 5, "h", "w"]}, CONSTANTS)
    assert {"resample", "gather", "elementwise"} <= families(model)


def test_resampled_blocks() -> None:
    assert {"resample.blocked", "conv.blocked"} <= families(resized(blocked=True))
    nodes = [("Conv", "x w", "c", {"pads": [1, 1, 1, 1]}), *resizes("s", "c")[:1]]
    assert "resample.blocked" in families(model_of(nodes, {"x": [2, 5, 11, 21]}, CONSTANTS), precision="bf16")


def test_rows_longer_than_the_stack_holds() -> None:
    nodes = [("Resize", "x _ _ s", "y", {"mode": "linear"})]
    constants = {"s": np.array([1, 1, 5, 300])}
    assert families(model_of(nodes, {"x": [1, 1, 3, 17000]}, constants)) == {"resample"}


def pools_and_trigonometry() -> onnx.ModelProto:
    window = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
    functions = ["Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Atanh"]
    nodes: list[tuple[str, str, str, dict[str, Any]]] = [
        ("MaxPool", "x", "m y0", {**window, "storage_order": 1}),
        ("LpPool", "x", "y1", {**window, "p": 3}),
        ("Hardmax", "x", "y2", {"axis": 1}),
        ("Sigmoid", "x", "z", {}),
        *((op, "z", f"y{op}", {}) for op in functions),
        ("Exp", "z", "e", {}),
        ("Acosh", "e", "yAcosh", {}),
    ]
    return model_of(nodes, {"x": [2, 3, 9, 8]}, {})


def test_pools_and_trigonometry() -> None:
    assert "arg_max_pool" in families(pools_and_trigonometry())


def sampled_positions() -> onnx.ModelProto:
    """Every kind of interpolation and border, in a volume too."""
    nodes: list[tuple[str, str, str, dict[str, Any]]] = []
    for mode in ("nearest", "linear", "cubic"):
        for i, padding in enumerate(("zeros", "border", "reflection")):
            attrs = {"mode": mode, "padding_mode": padding, "align_corners": i % 2}
            nodes.append(("GridSample", "x g", f"y{mode}{padding}", attrs))
    nodes.append(("GridSample", "v h", "yvolume", {"mode": "linear", "padding_mode": "reflection"}))
    inputs: dict[str, list[int | str]] = {
        "x": [2, 3, "a", 9], "g": [2, 5, "b", 2], "v": [1, 2, 3, 4, 5], "h": [1, 2, 3, 3, 3],
    }  # fmt: skip
    return model_of(nodes, inputs, {}, 20)


def test_sampled_positions() -> None:
    assert families(sampled_positions()) == {"grid_sample"}


def regions_windows_and_determinants() -> onnx.ModelProto:
    attrs = {"output_height": 3, "output_width": 2, "spatial_scale": 0.8}
    nodes = [
        ("RoiAlign", "x r i", "y0", attrs),
        ("RoiAlign", "x r i", "y1", {**attrs, "mode": "max", "sampling_ratio": 2}),
        ("DeformConv", "x w o b m", "y2", {"pads": [1, 1, 1, 1], "group": 2, "offset_group": 2}),
        ("DeformConv", "x w o", "y3", {"pads": [1, 1, 1, 1], "group": 2, "offset_group": 2}),
        ("Reshape", "x c", "z", {}),
        ("Col2Im", "z size block", "y4", {"pads": [1, 0, 1, 0], "strides": [2, 1]}),
        ("Det", "q", "y5", {}),
        ("MaxPool", "x", "p at", {"kernel_shape": [2, 3], "strides": [2, 3]}),
        ("MaxUnpool", "p at", "y6", {"kernel_shape": [2, 3], "strides": [2, 3]}),
    ]
    constants = {
        "r": np.array([[0, 0, 4, 3], [1.3, 2.1, 5.5, 4.9], [-3, -2, 9, 9]], np.float32), "i": np.array([0, 1, 1]),
        "w": floats(6, 2, 3, 3), "b": floats(6), "c": np.array([2, 8, 27]), "size": np.array([4, 10]),
        "block": np.array([2, 2]),
    }  # fmt: skip
    inputs: dict[str, list[int | str]] = {
        "x": [2, 4, 6, 9], "o": [2, 36, 6, 9], "m": [2, 18, 6, 9], "q": [2, "n", 5, 5],
    }  # fmt: skip
    return model_of(nodes, inputs, constants, 19)


def test_regions_windows_and_determinants() -> None:
    found = families(regions_windows_and_determinants())
    assert {"roi_align", "deform_columns", "col2im", "echelon", "arg_max_pool"} <= found


def models() -> list[onnx.ModelProto]:
    """What is compiled here, for those who want its kernels."""
    more = pools_and_trigonometry(), sampled_positions(), regions_windows_and_determinants()
    return [resized(), resized(blocked=True), *more]
