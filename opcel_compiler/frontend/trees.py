"""Tree ensembles as ONNX describes them, laid out as the operator `tree_ensemble` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from opcel_compiler.ir.ops.trees import AGGREGATES, LOWEST, order_keys

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
LEQ, LT, GTE, GT, EQ, NEQ, MEMBER = range(len(MODES))
LANES = 12
"""How many rows a kernel takes through a tree at once."""


class TreeError(ValueError):
    """Trees that are no trees, or that have no layout; the text says why."""


@dataclass
class Ensemble:
    """Nodes by their index. `yes` and `no` are the children where a test holds and where not: a node, or ~i for leaf i.

    `values` are thresholds in the type in which features are compared; `missing`: NaN counts as a test that holds.
    `members` gives the values of each node of mode MEMBER. `weights` are [leaf, target, value] triples as three arrays.
    """

    feature: np.ndarray
    values: np.ndarray
    modes: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    missing: np.ndarray
    roots: np.ndarray
    weights: tuple[np.ndarray, np.ndarray, np.ndarray]
    leaves: int
    targets: int
    members: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass
class Layout:
    """The constant operands of `tree_ensemble`. `columns` is how its keys treat NaN: "high", "low", or "both", those
    two side by side."""

    nodes: np.ndarray
    leaves: np.ndarray
    trees: np.ndarray
    columns: str
    complete: bool
    """Whether every row gets a value for every target."""


@dataclass
class _Nodes:
    """Nodes with one kind of test: `one` is the child where the feature's key is below the threshold."""

    feature: np.ndarray
    threshold: np.ndarray
    one: np.ndarray
    zero: np.ndarray
    low: np.ndarray
    """Whether a NaN goes to `one`."""


def lay_out(e: Ensemble, features: int, aggregate: str) -> Layout:
    """Raises TreeError."""
    if not len(e.roots):
        raise TreeError("there is no tree")
    if len(e.feature) and not 0 <= e.feature.min() <= e.feature.max() < features:
        raise TreeError(f"a node tests feature {e.feature.max()} of {features}")
    n = _canonical(_expanded(e))
    level, tree = _levels(n, e.roots)
    reached = level >= 0
    columns = "high" if not n.low[reached].any() else "low" if n.low[reached].all() else "both"
    nodes, trees, owner = _placed(n, e, level, tree, features if columns == "both" else 0)
    leaves, column, complete = _values(e, owner, len(e.roots), aggregate)
    trees[:, 1] = column
    return Layout(nodes, leaves, trees, columns, complete)


def _expanded(e: Ensemble) -> Ensemble:
    """Tests for equality and membership as pairs and chains of tests for order."""
    special = np.flatnonzero(e.modes >= EQ)
    if not len(special):
        return e
    columns = [list(a) for a in (e.feature, e.values, e.modes, e.yes, e.no, e.missing)]

    def add(*row: object) -> int:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
        return len(columns[0]) - 1

    def put(at: int, *row: object) -> int:
        for column, value in zip(columns, row, strict=True):
            column[at] = value
        return at

    def equal(at: int | None, f: int, value: float, yes: int, no: int, missing: bool) -> int:
        below = add(f, value, LT, no, yes, False)
        row = (f, value, LEQ, below, no, missing)
        return add(*row) if at is None else put(at, *row)

    def member(f: int, values: np.ndarray, yes: int, no: int) -> int:
        if len(values) == 1:
            return equal(None, f, values[0], yes, no, False)
        half = len(values) // 2
        return add(
            f, values[half - 1], LEQ, member(f, values[:half], yes, no), member(f, values[half:], yes, no), False
        )

    for at in map(int, special):
        f, yes, no = e.feature[at], e.yes[at], e.no[at]
        if e.modes[at] == EQ:
            equal(at, f, e.values[at], yes, no, bool(e.missing[at]))
        elif e.modes[at] == NEQ:
            equal(at, f, e.values[at], no, yes, False)
        else:
            values = np.unique(e.members[at])
            found = member(f, values, yes, no) if len(values) else no
            put(at, f, np.inf, LEQ, found, yes if e.missing[at] else no, False)
    feature, bounds, modes, yes_, no_, missing = columns
    return Ensemble(
        np.array(feature), np.array(bounds, e.values.dtype), np.array(modes), np.array(yes_), np.array(no_),
        np.array(missing, bool), e.roots, e.weights, e.leaves, e.targets,
    )  # fmt: skip


def _canonical(e: Ensemble) -> _Nodes:
    threshold = order_keys(e.values)
    inclusive = (e.modes == LEQ) | (e.modes == GT)
    threshold[inclusive] += threshold.dtype.type(1)  # the key of +inf is not the last, that of a NaN is never
    never = np.isnan(e.values)  # no feature but a missing one passes
    threshold[never] = LOWEST[threshold.dtype] + 1
    swapped = (e.modes == GTE) | (e.modes == GT)
    low = e.missing != (swapped & ~never)
    flip = swapped & ~never
    one, zero = np.where(flip, e.no, e.yes), np.where(flip, e.yes, e.no)
    return _Nodes(e.feature, threshold, one, zero, low)


def _levels(n: _Nodes, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the longest way from a root, -1 where there is none; the tree) of each node. Raises TreeError for a circle."""
    level, tree = np.full(len(n.feature), -1), np.full(len(n.feature), -1)
    inner = roots >= 0
    level[roots[inner]], tree[roots[inner]] = 0, np.flatnonzero(inner)
    front = np.unique(roots[inner])
    for depth in range(1, len(n.feature) + 2):
        if not len(front):
            return level, tree
        if depth > 10_000:
            break
        children, owners = np.concatenate([n.one[front], n.zero[front]]), np.tile(tree[front], 2)
        kept = children >= 0
        children, owners = children[kept], owners[kept]
        if len(children) and children.max() >= len(n.feature):
            raise TreeError("a node has a child that is not there")
        if ((tree[children] >= 0) & (tree[children] != owners)).any():
            raise TreeError("a node belongs to two trees")
        level[children], tree[children] = depth, owners
        front = np.unique(children)
    raise TreeError("the nodes of a tree form a circle, or a chain of more than 10000")


def _placed(
    n: _Nodes, e: Ensemble, level: np.ndarray, tree: np.ndarray, offset: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nodes, trees, the tree of each leaf): a tree's root, then the pairs of children, level by level. Features of
    nodes with `low` are `offset` further."""
    order, pair, base = _pairs(n, e.roots, level, tree, together=True)
    if _backward(n, order, pair):
        order, pair, base = _pairs(n, e.roots, level, tree, together=False)
    total = int(base[-1])
    refs = np.full(total, -1)
    refs[base[:-1] + 1] = e.roots
    refs[pair[order]], refs[pair[order] + 1] = n.zero[order], n.one[order]
    at = np.flatnonzero(refs >= 0)
    used = np.zeros(total, bool)
    used[base[:-1] + 1] = used[pair[order]] = used[pair[order] + 1] = True
    step, feature = np.zeros(total, np.int64), np.zeros(total, np.int64)
    step[at] = pair[refs[at]] - at
    feature[at] = n.feature[refs[at]] + np.where(n.low[refs[at]], offset, 0)
    word: type = np.uint32 if n.threshold.dtype == np.uint32 and max(step.max(), feature.max()) < 1 << 16 else np.uint64
    if total >= 1 << 31 or feature.max() >= 1 << 32 or step.min() < 0:
        raise TreeError(f"{total} nodes are too many")
    if e.leaves >= LOWEST[n.threshold.dtype]:
        raise TreeError(f"{e.leaves} leaves are too many")
    threshold: np.ndarray = np.zeros(total, word)
    threshold[at] = n.threshold[refs[at]]
    leaf = np.flatnonzero(used & (refs < 0))
    threshold[leaf] = ~refs[leaf]
    link = feature.astype(word) | (step.astype(word) << word(np.dtype(word).itemsize * 4))
    nodes = np.stack([threshold, link], 1)
    where = np.zeros(total, np.int64)
    where[base[:-1] + 1] = np.arange(len(e.roots))
    where[pair[order]] = where[pair[order] + 1] = tree[order]
    owner = np.full(max(e.leaves, 1), -1)
    owner[~refs[leaf]] = where[leaf]
    trees = np.zeros((len(e.roots), 4), np.int32)
    trees[:, 0] = base[:-1] + 1
    trees[:, 2], trees[:, 3] = _depths(refs, used, pair, base, where)
    return nodes, trees, owner


def _pairs(
    n: _Nodes, roots: np.ndarray, level: np.ndarray, tree: np.ndarray, together: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the nodes reached, where the pair of children of each lies, where each tree begins and all end).

    Eight places are a cache line of narrow nodes; a tree's root is its second. `together`: a node of an even level has
    the pairs of its children on the line of its own, so that a line is two steps.
    """
    reached = np.flatnonzero(level >= 0)
    owner, slot = np.full(len(level), -1), np.zeros(len(level), np.int64)
    owner[reached], size = reached, np.ones(len(level), np.int64)
    if together:
        even = reached[level[reached] % 2 == 0]
        for child in (n.zero, n.one):
            mine = even[child[even] >= 0]
            mine = mine[(level[child[mine]] == level[mine] + 1) & (owner[child[mine]] == child[mine])]
            slot[child[mine]], owner[child[mine]] = size[mine], mine
            size[mine] += 1
    blocks = reached[owner[reached] == reached]
    blocks = blocks[np.lexsort((blocks, -size[blocks], level[blocks], tree[blocks]))]
    group = np.flatnonzero(np.diff(tree[blocks] * (level.max(initial=0) + 1) + level[blocks], prepend=-1))
    one, two, three = (
        np.add.reduceat((size[blocks] == k).astype(np.int64), group) if len(group) else group for k in (1, 2, 3)
    )
    which = np.repeat(np.arange(len(group)), np.diff([*group, len(blocks)]))
    rank = np.arange(len(blocks)) - group[which]
    after3, after2 = rank - three[which], rank - (three + two)[which]
    hole = after2 < three[which]
    single = np.where(hole, 4 * after2 + 3, (4 * three + 2 * two)[which] + after2 - three[which])
    at = np.where(after3 < 0, 4 * rank, np.where(after2 < 0, 4 * three[which] + 2 * after3, single))
    lines = (4 * three + 2 * two + np.maximum(one - three, 0) + 3) // 4 * 4
    first = level[blocks[group]] == 0
    lines[first] = 4
    start = np.concatenate([[0], np.cumsum(lines)])
    bare = np.flatnonzero(roots < 0)  # a tree that is a leaf: a line of its own, behind the others
    place = np.full(len(level), -1)
    place[blocks] = 2 * (start[which] + at + first[which])
    place[reached] = place[owner[reached]] + 2 * slot[reached]
    base = np.zeros(len(roots) + 1, np.int64)
    base[:-1][roots >= 0] = 2 * start[:-1][first]
    base[bare] = 2 * start[-1] + 8 * np.arange(len(bare))
    base[-1] = 2 * start[-1] + 8 * len(bare)
    return reached, place, base


def _backward(n: _Nodes, order: np.ndarray, pair: np.ndarray) -> bool:
    """Whether the children of a node lie before it, which a step cannot say."""
    for child in (n.zero, n.one):
        inner = order[child[order] >= 0]
        if (pair[child[inner]] <= pair[inner]).any():
            return True
    return False


def _depths(
    refs: np.ndarray, used: np.ndarray, pair: np.ndarray, base: np.ndarray, where: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(steps before all of LANES rows are likely to be at leaves, steps after which they are) of each tree, if each
    test is as likely to hold as not."""
    trees = len(base) - 1
    share = np.zeros(len(refs))
    share[base[:-1] + 1] = 1
    arrived, first, depth, front = np.zeros(trees), np.zeros(trees, np.int64), np.zeros(trees, np.int64), base[:-1] + 1
    steps = 0
    while len(front):
        leaf = refs[front] < 0
        np.add.at(arrived, where[front[leaf]], share[front[leaf]])
        share[front[leaf]] = 0
        depth[where[front]] = steps
        waiting = arrived**LANES < 0.3
        first[waiting] = steps + 1
        inner = front[~leaf]
        to = pair[refs[inner]]
        moved = share[inner] / 2
        share[inner] = 0
        np.add.at(share, to, moved)
        np.add.at(share, to + 1, moved)
        front = np.unique(np.concatenate([to, to + 1]))
        steps += 1
    first = np.minimum(first, depth)
    return np.where(depth - first <= 2, depth, first), depth


def _values(e: Ensemble, owner: np.ndarray, trees: int, aggregate: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """(leaves, the target of each tree whose leaves have one value, whether each target gets a value of every row)."""
    leaf, target, value = e.weights
    start, join = AGGREGATES[aggregate][1], AGGREGATES[aggregate][0]
    kept = owner[leaf] >= 0 if len(leaf) else np.zeros(0, bool)
    leaf, target, value = leaf[kept], target[kept], value[kept]
    if len(target) and not 0 <= target.min() <= target.max() < e.targets:
        raise TreeError(f"a leaf has a value for target {target.max()} of {e.targets}")
    low, high = np.full(trees, e.targets), np.full(trees, -1)
    np.minimum.at(low, owner[leaf], target)
    np.maximum.at(high, owner[leaf], target)
    one = bool((low >= high).all())
    width = 1 if one else e.targets
    if e.leaves * width > 1 << 26:
        raise TreeError(f"{e.leaves} leaves with {width} values each are too many")
    out = np.full((max(e.leaves, 1), width), start, value.dtype)
    join.at(out, (leaf, np.zeros_like(target) if one else target), value)
    given = np.zeros((max(e.leaves, 1), width), bool)
    given[leaf, np.zeros_like(target) if one else target] = True
    full = np.ones((trees, width), bool)
    for k in range(width):
        np.logical_and.at(full[:, k], owner[owner >= 0], given[owner >= 0, k])
    column = np.maximum(high, 0) if one else np.zeros(trees, np.int64)
    sure = np.zeros(e.targets, bool)
    if one:
        sure[column[full[:, 0]]] = True
    else:
        sure |= full.any(0)
    return out, column, bool(sure.all())
