// Ensembles of decision trees: y[part][row][target] = the values of the leaves that a row reaches, over a part's trees.
//
// A step has no branch: a node's children are neighbours, and a leaf steps to itself until all have arrived. What
// bounds it is the latency of a step, so many walks go on at once: several rows through one tree, or one row through
// several trees.
#pragma once

#include "base/tiling.h"

namespace opcel {

// A leaf has step 0; its threshold, below which no key is, is the number of its values.
struct NarrowNode {
  std::uint32_t threshold;
  std::uint16_t feature, step;
};

struct WideNode {
  std::uint64_t threshold;
  std::uint32_t feature, step;
};

struct Tree {
  std::int32_t root, target;  // target: the column of y if leaves have one value
  std::int32_t first, depth;  // no row is likely to be at a leaf before `first` steps; every row is after `depth`
};

template <class Node, class Key, class Leaf>
struct TreeArgs {
  const Key* x;  // dense rows
  const Node* nodes;
  const Leaf* leaves;
  const Tree* trees;
  Leaf* y;
  std::int64_t rows, parts, trees_total, targets;
  std::int64_t rows_per_task;
};

enum class Join { sum, min, max };

namespace detail {

template <Join J, class T>
OPCEL_INLINE void join_value(T& to, T v) {
  if constexpr (J == Join::sum) to += v;
  if constexpr (J == Join::min) to = v < to ? v : to;
  if constexpr (J == Join::max) to = v > to ? v : to;
}

// Walks of N lanes: `next(lane, node index)` gives the node after a step and ORs the step into `moved`.
template <int N, class Next>
OPCEL_INLINE void walk(std::uint64_t (&at)[N], int first, int depth, Next next) {
  std::uint32_t moved = 0;
  int s = 0;
  for (; s < first; ++s) {
    OPCEL_UNROLL
    for (int i = 0; i < N; ++i) at[i] = next(i, at[i], moved);
  }
  for (; s < depth; ++s) {
    moved = 0;
    OPCEL_UNROLL
    for (int i = 0; i < N; ++i) at[i] = next(i, at[i], moved);
    if (moved == 0) break;
  }
}

template <class Node, class Key>
OPCEL_INLINE std::uint64_t tree_step(const Node* nodes, std::uint64_t at, const Key* x, std::uint32_t& moved) {
  const Node& node = nodes[at];
  moved |= node.step;
  return at + node.step + (x[node.feature] < node.threshold);
}

template <Join J, bool Dense, class Node, class Leaf>
OPCEL_INLINE void add_leaf(const Node& node, const Leaf* leaves, const Tree& tree, Leaf* y, std::int64_t targets) {
  const Leaf* const found = leaves + static_cast<std::int64_t>(node.threshold) * (Dense ? targets : 1);
  if constexpr (Dense)
    for (std::int64_t k = 0; k < targets; ++k) join_value<J>(y[k], found[k]);
  else
    join_value<J>(y[tree.target], *found);
}

// N rows from x on, through one tree.
template <int N, int Features, Join J, bool Dense, class Node, class Key, class Leaf>
__attribute__((noinline)) void tree_rows(const TreeArgs<Node, Key, Leaf>& args, const Tree& tree, const Key* x, Leaf* y) {
  std::uint64_t at[N];
  OPCEL_UNROLL
  for (int i = 0; i < N; ++i) at[i] = static_cast<std::uint64_t>(tree.root);
  walk(at, tree.first, tree.depth, [&](int i, std::uint64_t node, std::uint32_t& moved) __attribute__((always_inline)) {
    return tree_step(args.nodes, node, x + i * Features, moved);
  });
  OPCEL_UNROLL
  for (int i = 0; i < N; ++i)
    add_leaf<J, Dense>(args.nodes[at[i]], args.leaves, tree, y + i * args.targets, args.targets);
}

// One row through N trees.
template <int N, Join J, bool Dense, class Node, class Key, class Leaf>
__attribute__((noinline)) void row_trees(const TreeArgs<Node, Key, Leaf>& args, const Tree* trees, const Key* x, Leaf* y) {
  std::uint64_t at[N];
  int first = 0, depth = 0;
  OPCEL_UNROLL
  for (int i = 0; i < N; ++i) {
    at[i] = static_cast<std::uint64_t>(trees[i].root);
    first = first > trees[i].first ? first : trees[i].first;
    depth = depth > trees[i].depth ? depth : trees[i].depth;
  }
  walk(at, first, depth, [&](int, std::uint64_t node, std::uint32_t& moved) __attribute__((always_inline)) {
    return tree_step(args.nodes, node, x, moved);
  });
  OPCEL_UNROLL
  for (int i = 0; i < N; ++i) add_leaf<J, Dense>(args.nodes[at[i]], args.leaves, trees[i], y, args.targets);
}

}  // namespace detail

// Task t: rows_per_task rows, part t % parts. Trees join in their order, whatever a task holds.
template <int Features, Join J, bool Dense, class Node, class Key, class Leaf>
void tree_tasks(const TreeArgs<Node, Key, Leaf>& args, std::int64_t begin, std::int64_t end) {
  constexpr int R = 12, T = 12;
  constexpr Leaf start = J == Join::sum ? Leaf(0) : J == Join::min ? Leaf(__builtin_inf()) : Leaf(-__builtin_inf());
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t part = task % args.parts, first = task / args.parts * args.rows_per_task;
    const std::int64_t last = detail::least(args.rows, first + args.rows_per_task);
    const std::int64_t tree0 = part * args.trees_total / args.parts, tree1 = (part + 1) * args.trees_total / args.parts;
    Leaf* const y = args.y + part * args.rows * args.targets;
    for (std::int64_t i = first * args.targets; i < last * args.targets; ++i) y[i] = start;
    const std::int64_t whole = first + (last - first) / R * R;
    for (std::int64_t tree = tree0; tree < tree1; ++tree)
      for (std::int64_t row = first; row < whole; row += R)
        detail::tree_rows<R, Features, J, Dense>(args, args.trees[tree], args.x + row * Features,
                                                         y + row * args.targets);
    for (std::int64_t row = whole; row < last; ++row) {
      std::int64_t tree = tree0;
      for (; tree + T <= tree1; tree += T)
        detail::row_trees<T, J, Dense>(args, args.trees + tree, args.x + row * Features, y + row * args.targets);
      for (; tree < tree1; ++tree)
        detail::row_trees<1, J, Dense>(args, args.trees + tree, args.x + row * Features, y + row * args.targets);
    }
  }
}

}  // namespace opcel
