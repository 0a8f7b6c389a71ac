"""ai.onnx.ml's ensembles of decision trees: one `tree_ensemble` and a few operators on its scores."""

from __future__ import annotations

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.scores import labels_of, transformed
from opcel_compiler.frontend.trees import LEQ, MEMBER, MODES, Ensemble, Layout, TreeError, lay_out
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, dim_min, floordiv
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.ops.trees import AGGREGATES
from opcel_compiler.ir.types import F16, F32, F64

DOMAIN = "ai.onnx.ml"
_POST = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
TASKS = 16
"""Into how many tasks a few rows are divided at most."""
PART_STEPS = 2000
"""Steps through trees that are worth a task: some microseconds."""


@lowers("TreeEnsembleRegressor", domain=DOMAIN, first=1)
def tree_ensemble_regressor(c: Lowering) -> Value:
    targets = c.attr_int("n_targets", 1)
    e = _ensemble(c, "target", targets)
    scores = _scores(c, e, c.attr_str("aggregate_function", "SUM"), _base(c))
    return c.cast(transformed(c, scores, c.attr_str("post_transform", "NONE"), alone=True), F32)


@lowers("TreeEnsemble", domain=DOMAIN, first=5)
def tree_ensemble(c: Lowering) -> Value:
    x = c.x()
    targets = c.attr_int("n_targets", 1)
    post, aggregate = c.attr_int("post_transform", 0), c.attr_int("aggregate_function", 1)
    if not 0 <= post < len(_POST) or not 0 <= aggregate < len(_AGGREGATES):
        raise ModelError(f"node {c.origin!r} (TreeEnsemble): post_transform {post}, aggregate_function {aggregate}")
    scores = _scores(c, _ensemble_of_5(c, targets), _AGGREGATES[aggregate], None)
    return c.cast(transformed(c, scores, _POST[post], alone=True), c.dtype(x))


@lowers("TreeEnsembleClassifier", domain=DOMAIN, first=1)
def tree_ensemble_classifier(c: Lowering) -> tuple[Value, Value]:
    labels = labels_of(c)
    count = len(labels)
    e = _ensemble(c, "class", max(count, 1))
    base, post = _base(c), c.attr_str("post_transform", "NONE")
    ids = np.unique(e.weights[1])
    if count == 2 and len(ids) == 1:
        return _binary(c, e, labels, base, post)
    if count < 2:
        raise Unsupported(f"a classifier of {count} classes has no lowering")
    if count == 2 and (labels.tolist() != [0, 1] or (base is not None and len(base) > 1)):
        raise Unsupported("two classes with values of their own and base values, or labels other than 0 and 1")
    scores = _scores(c, e, "SUM", base, sure=True)
    if count == 2:
        second = c.slice(scores, 1, 1, 1)
        positive = c.emit("less", c.number(0, scores), c.reshape(second, (c.shape(scores)[0],)))
        label = c.emit("where", positive, c.constant(labels[1:].reshape(())), c.constant(labels[:1].reshape(())))
    else:
        label = c.emit("gather", c.constant(labels), c.emit("arg_max", scores, axis=1, keepdims=False), axis=0)
    return label, c.cast(transformed(c, scores, post), F32)


def _binary(c: Lowering, e: Ensemble, labels: np.ndarray, base: np.ndarray | None, post: str) -> tuple[Value, Value]:
    """Two classes, one of which has weights: the other's score follows from it."""
    if e.weights[1][0] != 0 or (base is not None and len(base) > 1):
        raise Unsupported("two classes, of which the second alone has values, have no lowering")
    e.targets = 1
    score = _scores(c, e, "SUM", base, sure=True)
    all_positive = bool((e.weights[2] >= 0).all())
    limit = c.number(0.5 if all_positive else 0, score)
    n = c.shape(score)[0]
    positive = c.emit("less", limit, c.reshape(score, (n,)))
    label = c.emit("where", positive, c.constant(labels[1:].reshape(())), c.constant(labels[:1].reshape(())))
    if post == "PROBIT":
        raise Unsupported("PROBIT of one score for two classes has no lowering")
    if post == "LOGISTIC":
        score, other = (c.emit("sigmoid", c.cast(v, F32)) for v in (score, c.emit("neg", score)))
    else:
        other = c.emit("sub", c.number(1, score), score) if all_positive else c.emit("neg", score)
    return label, c.cast(c.emit("concat", other, score, axis=1), F32)


# -- scores -----------------------------------------------------------------------------------------------------------


def _scores(c: Lowering, e: Ensemble, aggregate: str, base: np.ndarray | None, sure: bool = False) -> Value:
    """What the trees give for each row and target, with base values: [rows, targets]. `sure`: Unsupported where some
    row may get no value for a target."""
    if aggregate not in _AGGREGATES:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): aggregate_function {aggregate!r}")
    x = c.cast(_rows(c), F64 if e.values.dtype == np.float64 else F32)
    rows, features = c.shape(x)
    if not isinstance(features, int):
        raise Unsupported(f"the number of features is {features}, not a constant")
    join = {"MIN": "min", "MAX": "max"}.get(aggregate, "sum")
    try:
        made = lay_out(e, features, join)
    except TreeError as error:
        raise Unsupported(str(error)) from error
    if sure and not made.complete:
        raise Unsupported("no tree gives every row a score for some class")
    parts = _parts(made, rows)
    y = c.emit(
        "tree_ensemble", _keys(c, x, made.columns), c.constant(made.nodes), c.constant(made.leaves),
        c.constant(made.trees), targets=e.targets, aggregate=join, parts=(parts,),
    )  # fmt: skip
    if parts == 1:
        y = c.reshape(y, (rows, e.targets))
    else:
        y = c.emit(f"reduce_{join}", y, axes=(0,), keepdims=False)
    if join != "sum" and not made.complete:
        y = c.emit("where", c.emit("equal", y, c.number(AGGREGATES[join][1], y)), c.number(0, y), y)
    if aggregate == "AVERAGE":
        y = c.emit("div", y, c.number(len(made.trees), y))
    if base is not None:
        if len(base) not in (1, e.targets):
            raise Unsupported(f"{len(base)} base values for {e.targets} targets have no lowering")
        y = c.emit("add", y, c.constant(base.astype(c.dtype(y).numpy)))
    return y


def _rows(c: Lowering) -> Value:
    x = c.x()
    dims = c.shape(x)
    if len(dims) == 1:
        return c.reshape(x, (1, dims[0]))
    if len(dims) != 2:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): its input has rank {len(dims)}, not 2")
    return x


def _keys(c: Lowering, x: Value, columns: str) -> Value:
    """x as the nodes read it, a NaN that passes tests below every threshold."""
    if columns == "both":
        return c.emit("concat", c.emit("order_key", x, nan="high"), c.emit("order_key", x, nan="low"), axis=1)
    return c.emit("order_key", x, nan=columns)


def _parts(made: Layout, rows: Dim) -> Dim:
    """Into how many parts the trees are divided: only where there are few rows to share out."""
    steps = int(made.trees[:, 3].sum())
    most = max(1, min(TASKS, len(made.trees) // 8, steps // PART_STEPS))
    return dim_max(1, dim_min(most, floordiv(TASKS, dim_max(1, ceildiv(rows, 24))))) if most > 1 else 1


# -- reading ----------------------------------------------------------------------------------------------------------


def _array(c: Lowering, name: str, dtype: type, size: int) -> np.ndarray:
    if not c.has(name):
        return np.zeros(size, dtype)
    out: np.ndarray = np.array(c.attr_ints(name), dtype)
    if len(out) != size:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): {name} has {len(out)} entries, not {size}")
    return out


def _numbers(c: Lowering, name: str) -> np.ndarray | None:
    """A list of floats, or the tensor `<name>_as_tensor` of floats or doubles."""
    if c.has(f"{name}_as_tensor"):
        data = c.attr_tensor(f"{name}_as_tensor")
        assert data is not None
        flat: np.ndarray = data.array.reshape(-1)
        return flat if data.dtype in (F32, F64) else flat.astype(np.float32)
    return np.array(c.attr_floats(name), np.float32) if c.has(name) else None


def _base(c: Lowering) -> np.ndarray | None:
    found = _numbers(c, "base_values")
    return None if found is None or not found.size else found


def _compared(c: Lowering, values: np.ndarray) -> type:
    """The type in which features and thresholds are compared."""
    wide = c.dtype(c.x()) == F64 or values.dtype == np.float64
    return np.float64 if wide else np.float32


def _ensemble(c: Lowering, prefix: str, targets: int) -> Ensemble:
    """The trees of a regressor or classifier, whose attributes list all nodes, leaves among them."""
    ids = np.array(c.attr_ints("nodes_nodeids"), np.int64)
    size = len(ids)
    names, modes = c.attr_strings("nodes_modes"), np.full(size, -1, np.int8)
    if len(names) != size:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): {len(names)} nodes_modes for {size} nodes")
    codes = {name.encode(): i for i, name in enumerate(MODES[:MEMBER])} | {b"LEAF": -1}
    if unknown := set(names) - set(codes):
        raise ModelError(f"node {c.origin!r} ({c.op_type}): nodes_modes has {unknown.pop()!r}")
    modes = np.array([codes[name] for name in names], np.int8)
    values = _numbers(c, "nodes_values")
    values = np.zeros(size, np.float32) if values is None else values
    tree = _array(c, "nodes_treeids", np.int64, size)
    find = _Finder(c, tree, ids)
    leaf = modes < 0
    yes, no = (_array(c, f"nodes_{side}nodeids", np.int64, size) for side in ("true", "false"))
    inner = np.flatnonzero(~leaf)
    place = np.cumsum(leaf) - 1
    sides = []
    for side in (yes, no):
        at = find(tree[inner], side[inner])
        out = np.zeros(size, np.int64)
        out[inner] = np.where(leaf[at], ~place[at], at)
        sides.append(out)
    child = np.zeros(size, bool)
    for side in sides:
        child[side[inner][side[inner] >= 0]] = True
    hit = np.zeros(int(leaf.sum()), bool)
    for side in sides:
        hit[~side[inner][side[inner] < 0]] = True
    child[leaf] = hit
    roots = np.flatnonzero(~child)
    entries = len(c.attr_ints(f"{prefix}_ids"))
    where = find(_array(c, f"{prefix}_treeids", np.int64, entries), _array(c, f"{prefix}_nodeids", np.int64, entries))
    weights = _numbers(c, f"{prefix}_weights")
    if weights is None or len(weights) != entries or len(values) != size:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): attributes of one list have different lengths")
    if not leaf[where].all():
        raise Unsupported("a node that is no leaf has a value")
    kept = _kept(inner, modes, yes=sides[0], no=sides[1])
    real = _compared(c, values)
    wide = np.float64 if c.dtype(c.x()) == F64 or weights.dtype == np.float64 else np.float32
    return Ensemble(
        _array(c, "nodes_featureids", np.int64, size)[inner], values[inner].astype(real), modes[inner],
        kept[0], kept[1], _array(c, "nodes_missing_value_tracks_true", np.int64, size)[inner] != 0,
        np.where(leaf[roots], ~place[roots], np.searchsorted(inner, roots)),
        (place[where], np.array(c.attr_ints(f"{prefix}_ids"), np.int64), weights.astype(wide)),
        int(leaf.sum()), targets,
    )  # fmt: skip


def _kept(inner: np.ndarray, modes: np.ndarray, yes: np.ndarray, no: np.ndarray) -> list[np.ndarray]:
    """Children by the position among `inner` nodes."""
    renumber = np.full(len(modes), -1)
    renumber[inner] = np.arange(len(inner))
    return [np.where(s[inner] >= 0, renumber[s[inner]], s[inner]) for s in (yes, no)]


class _Finder:
    """The positions of nodes given by tree and id."""

    def __init__(self, c: Lowering, tree: np.ndarray, ids: np.ndarray) -> None:
        self.c = c
        self.order = np.lexsort((ids, tree))
        self.keys = np.stack([tree, ids], 1)[self.order]
        if len(self.keys) > 1 and (self.keys[1:] == self.keys[:-1]).all(1).any():
            raise ModelError(f"node {c.origin!r} ({c.op_type}): two nodes of a tree have one id")
        self.trees, starts = np.unique(self.keys[:, 0], return_index=True)
        self.span = int(ids.max(initial=0) - ids.min(initial=0)) + 1
        self.low = int(ids.min(initial=0))
        self.flat = np.repeat(np.arange(len(self.trees)), np.diff([*starts, len(ids)])) * self.span
        self.flat = self.flat + self.keys[:, 1] - self.low

    def __call__(self, tree: np.ndarray, ids: np.ndarray) -> np.ndarray:
        if not len(ids):
            return np.zeros(0, np.int64)
        where = np.searchsorted(self.trees, tree)
        known = (where < len(self.trees)) & (ids >= self.low) & (ids < self.low + self.span)
        wanted = np.where(known, where * self.span + ids - self.low, -1)
        at = np.minimum(np.searchsorted(self.flat, wanted), len(self.flat) - 1)
        found = known & (self.flat[at] == wanted)
        found &= self.keys[at, 0] == tree
        if not found.all():
            i = int(np.flatnonzero(~found)[0])
            raise ModelError(f"node {self.c.origin!r} ({self.c.op_type}): there is no node {ids[i]} in tree {tree[i]}")
        out: np.ndarray = self.order[at]
        return out


def _ensemble_of_5(c: Lowering, targets: int) -> Ensemble:
    """The trees of a TreeEnsemble, whose attributes list tests and leaves apart."""
    size = len(c.attr_ints("nodes_featureids"))
    splits, modes, weights = (c.attr_tensor(n) for n in ("nodes_splits", "nodes_modes", "leaf_weights"))
    if splits is None or modes is None or weights is None:
        raise ModelError(f"node {c.origin!r} (TreeEnsemble) lacks nodes_splits, nodes_modes or leaf_weights")
    kinds, values, held = (t.array.reshape(-1) for t in (modes, splits, weights))
    if not len(kinds) == len(values) == size or (size and not LEQ <= kinds.min() <= kinds.max() <= MEMBER):
        raise ModelError(f"node {c.origin!r} (TreeEnsemble): its nodes_modes or nodes_splits do not fit its nodes")
    leaf_targets = np.array(c.attr_ints("leaf_targetids"), np.int64)
    if len(leaf_targets) != len(held):
        raise ModelError(f"node {c.origin!r} (TreeEnsemble): {len(leaf_targets)} leaf_targetids, {len(held)} weights")
    sides, used, count = [], [], 0
    for side in ("true", "false"):
        to, is_leaf = _array(c, f"nodes_{side}nodeids", np.int64, size), _array(c, f"nodes_{side}leafs", bool, size)
        if len(to) and not (0 <= to.min() and (to < np.where(is_leaf, len(held), size)).all()):
            raise ModelError(f"node {c.origin!r} (TreeEnsemble): a nodes_{side}nodeids is out of range")
        used.append(to[is_leaf])
        out = to.copy()
        out[is_leaf] = ~(count + np.arange(int(is_leaf.sum())))
        count += int(is_leaf.sum())
        sides.append(out)
    leaves = np.concatenate(used)
    roots = np.array(c.attr_ints("tree_roots"), np.int64)
    if len(roots) and not 0 <= roots.min() <= roots.max() < size:
        raise ModelError(f"node {c.origin!r} (TreeEnsemble): a tree_roots is out of range")
    members, sets = {}, c.attr_tensor("membership_values")
    if sets is not None:
        flat = sets.array.reshape(-1)
        groups = np.split(flat, np.flatnonzero(np.isnan(flat)))
        for at, group in zip(np.flatnonzero(kinds == MEMBER), groups, strict=False):
            members[int(at)] = group[~np.isnan(group)].astype(_compared(c, values))
    if set(np.flatnonzero(kinds == MEMBER)) - set(members):
        raise ModelError(f"node {c.origin!r} (TreeEnsemble): a BRANCH_MEMBER has no membership_values")
    wide = np.float64 if held.dtype == np.float64 else np.float32
    if c.dtype(c.x()) not in (F16, F32, F64):
        raise Unsupported(f"trees over {c.dtype(c.x())} have no lowering")
    return Ensemble(
        _array(c, "nodes_featureids", np.int64, size), values.astype(_compared(c, values)), kinds.astype(np.int8),
        sides[0], sides[1], _array(c, "nodes_missing_value_tracks_true", np.int64, size) != 0, roots,
        (np.arange(len(leaves)), leaf_targets[leaves], held[leaves].astype(wide)), len(leaves), targets, members,
    )  # fmt: skip
