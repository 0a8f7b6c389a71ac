"""Random tree ensembles as ONNX models."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ORDERED = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"]
GRID = np.float32([-1, -0.5, 0, 0.5, 1, 2])
"""Thresholds and features, so that many are equal."""


def nodes(
    rng: np.random.Generator, trees: int, features: int, modes: list[str], missing: bool = True
) -> dict[str, Any]:
    """The nodes_* attributes of random trees, and which of the nodes are leaves."""
    rows: dict[str, list[Any]] = {
        k: [] for k in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    }
    for tree in range(trees):
        yes, no = [0], [0]
        for _ in range(int(rng.integers(0, 12))):
            at = int(rng.choice([i for i, child in enumerate(yes) if child == 0]))
            yes[at], no[at] = len(yes), len(yes) + 1
            yes, no = [*yes, 0, 0], [*no, 0, 0]
        rows["treeids"] += [tree] * len(yes)
        rows["nodeids"] += range(len(yes))
        rows["featureids"] += rng.integers(0, features, len(yes)).tolist()
        rows["values"] += rng.choice(GRID, len(yes)).tolist()
        rows["modes"] += [str(rng.choice(modes)) if child else "LEAF" for child in yes]
        rows["truenodeids"] += yes
        rows["falsenodeids"] += no
    out = {f"nodes_{k}": v for k, v in rows.items()}
    if missing:
        out["nodes_missing_value_tracks_true"] = rng.integers(0, 2, len(rows["modes"])).tolist()
    return out


def leaf_values(rng: np.random.Generator, made: dict[str, Any], ids: list[int], dense: bool) -> dict[str, list[Any]]:
    """Of each leaf a value of one of `ids`, or of each of them: ids, treeids, nodeids, weights."""
    out: dict[str, list[Any]] = {k: [] for k in ("ids", "treeids", "nodeids", "weights")}
    for tree, node, mode in zip(made["nodes_treeids"], made["nodes_nodeids"], made["nodes_modes"], strict=True):
        for i in (ids if dense else [ids[tree % len(ids)]]) if mode == "LEAF" else []:
            for key, value in zip(out, (i, tree, node, float(rng.standard_normal())), strict=True):
                out[key].append(value)
    return out


def model(op_type: str, opset: int, outputs: int, features: int, dtype: int, **attrs: Any) -> onnx.ModelProto:
    node = helper.make_node(op_type, ["x"], ["y", "z"][:outputs], name="trees", domain="ai.onnx.ml", **attrs)
    kinds = [TensorProto.INT64, TensorProto.FLOAT] if outputs == 2 else [dtype if opset == 5 else TensorProto.FLOAT]
    graph = helper.make_graph(
        [node], "trees", [helper.make_tensor_value_info("x", dtype, ["n", features])],
        [helper.make_tensor_value_info(n, k, None) for n, k in zip("yz", kinds, strict=False)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def regressor(
    seed: int, modes: list[str], targets: int = 1, dense: bool = False, opset: int = 3, **attrs: Any
) -> onnx.ModelProto:  # fmt: skip
    rng = np.random.default_rng(seed)
    made = nodes(rng, 9, 4, modes)
    values = leaf_values(rng, made, list(range(targets)), dense)
    given = {f"target_{k}": v for k, v in values.items()}
    dtype = attrs.pop("dtype", TensorProto.FLOAT)
    if dtype == TensorProto.DOUBLE:
        for name in ("nodes_values", "target_weights"):
            array = np.array(made.pop(name, None) or given.pop(name), np.float64)
            given[f"{name}_as_tensor"] = numpy_helper.from_array(array, name)
    return model("TreeEnsembleRegressor", opset, 1, 4, dtype, n_targets=targets, **made, **given, **attrs)


def classifier(seed: int, classes: int, ids: list[int], dense: bool = False, **attrs: Any) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    made = nodes(rng, 9, 4, ORDERED)
    values = leaf_values(rng, made, ids, dense)
    if attrs.pop("positive", False):
        values["weights"] = [abs(w) / 9 for w in values["weights"]]
    given = {f"class_{k}": v for k, v in values.items()}
    labels = attrs.pop("labels", [0, 1] if classes == 2 else [10 * (i + 1) for i in range(classes)])
    dtype = attrs.pop("dtype", TensorProto.FLOAT)
    return model("TreeEnsembleClassifier", 3, 2, 4, dtype, classlabels_int64s=labels, **made, **given, **attrs)


def ensemble(
    seed: int, aggregate: int = 1, targets: int = 1, dtype: type = np.float32, **attrs: Any
) -> onnx.ModelProto:
    """A TreeEnsemble with every mode."""
    rng = np.random.default_rng(seed)
    names = [*ORDERED, "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER"]
    made = nodes(rng, 7, 4, names)
    keep = [i for i, mode in enumerate(made["nodes_modes"]) if mode != "LEAF"]
    key = {(t, n): i for i, (t, n) in enumerate(zip(made["nodes_treeids"], made["nodes_nodeids"], strict=True))}
    place = {old: new for new, old in enumerate(keep)}
    leaves: list[int] = []
    sides: dict[str, list[int]] = {"true": [], "false": []}
    flags: dict[str, list[int]] = {"true": [], "false": []}
    for i in keep:
        for side in ("true", "false"):
            at = key[made["nodes_treeids"][i], made[f"nodes_{side}nodeids"][i]]
            flags[side].append(int(at not in place))
            if at not in place:
                leaves.append(at)
            sides[side].append(place[at] if at in place else len(leaves) - 1)
    modes = [names.index(made["nodes_modes"][i]) for i in keep]
    members = [x for m in modes if m == 6 for x in (*rng.choice(GRID[4:], 2), np.nan)]
    roots = [place[i] for i in keep if made["nodes_nodeids"][i] == 0]

    def tensor(values: list[Any], kind: Any) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, kind))

    given: dict[str, Any] = {
        "nodes_featureids": [made["nodes_featureids"][i] for i in keep],
        "nodes_splits": tensor([made["nodes_values"][i] for i in keep], dtype), "nodes_modes": tensor(modes, np.uint8),
        "nodes_missing_value_tracks_true": [made["nodes_missing_value_tracks_true"][i] for i in keep],
        "leaf_weights": tensor(rng.standard_normal(len(leaves)).tolist(), dtype),
        "leaf_targetids": [made["nodes_treeids"][i] % targets for i in leaves], "tree_roots": roots,
    }  # fmt: skip
    for side in ("true", "false"):
        given |= {f"nodes_{side}nodeids": sides[side], f"nodes_{side}leafs": flags[side]}
    if members:
        given["membership_values"] = tensor(members, dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model("TreeEnsemble", 5, 1, 4, kind, n_targets=targets, aggregate_function=aggregate, **given, **attrs)


def rows(seed: int, count: int = 40, missing: bool = True, dtype: type = np.float32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.choice(GRID, (count, 4)).astype(dtype)
    if missing:
        x[rng.random(x.shape) < 0.1] = np.nan
    return x
