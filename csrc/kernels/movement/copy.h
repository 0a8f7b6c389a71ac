// Strided copies of up to 8 axes: transposes, slices, broadcasts, concatenations.
//
// Axes of size 1 vanish and axes that are contiguous to each other in both operands merge. What remains is copied run
// by run if the last axis is contiguous in both, in transposed tiles if 4-byte elements are contiguous along different
// axes, and element by element otherwise.
#pragma once

#include <cstring>

#include "base/tiling.h"
#include "base/transpose.h"

namespace opcel {

constexpr int kMaxAxes = 8;

// Strides in elements; of x they may be 0 (a broadcast) or negative. x and y don't overlap.
struct CopyArgs {
  const void* x;
  void* y;
  std::int64_t axes;
  std::int64_t size[kMaxAxes], x_stride[kMaxAxes], y_stride[kMaxAxes];
  std::int64_t tasks;  // any count >= 1: the work is divided evenly
};

namespace detail {

template <int Bytes>
struct Element;
template <>
struct Element<1> {
  typedef std::uint8_t __attribute__((may_alias)) type;
};
template <>
struct Element<2> {
  typedef std::uint16_t __attribute__((may_alias)) type;
};
template <>
struct Element<4> {
  typedef std::uint32_t __attribute__((may_alias)) type;
};
template <>
struct Element<8> {
  typedef std::uint64_t __attribute__((may_alias)) type;
};

struct CopyAxis {
  std::int64_t size, x, y;
};

struct CopyPlan {
  CopyAxis axis[kMaxAxes];
  int axes = 0;
  std::int64_t elements = 1;

  void remove(int i) {
    for (--axes; i < axes; ++i) axis[i] = axis[i + 1];
  }
};

inline CopyPlan plan_copy(const CopyArgs& args) {
  CopyPlan plan;
  for (int i = 0; i < args.axes; ++i) {
    const CopyAxis next{args.size[i], args.x_stride[i], args.y_stride[i]};
    plan.elements *= next.size;
    if (next.size == 1) continue;
    if (plan.axes > 0) {
      CopyAxis& last = plan.axis[plan.axes - 1];
      if (last.x == next.x * next.size && last.y == next.y * next.size) {
        last = {last.size * next.size, next.x, next.y};
        continue;
      }
    }
    plan.axis[plan.axes++] = next;
  }
  if (plan.axes == 0) plan.axis[plan.axes++] = {1, 1, 1};
  return plan;
}

// Offsets of the index-th element of the first `axes` axes, the last of them fastest.
inline void copy_offsets(const CopyPlan& plan, int axes, std::int64_t index, std::int64_t& x, std::int64_t& y) {
  x = y = 0;
  for (int i = axes - 1; i >= 0; --i) {
    const std::int64_t at = index % plan.axis[i].size;
    index /= plan.axis[i].size;
    x += at * plan.axis[i].x;
    y += at * plan.axis[i].y;
  }
}

// y[i * y_row + j] = x[j * x_row + i] for i < rows, j < cols.
template <class T>
inline void copy_transposed(const T* x, std::int64_t x_row, T* y, std::int64_t y_row, std::int64_t rows,
                            std::int64_t cols) {
  std::int64_t i = 0;
  if constexpr (sizeof(T) == 4) {
    const float* from = reinterpret_cast<const float*>(x);
    float* to = reinterpret_cast<float*>(y);
    for (; i + W <= rows; i += W) {
      std::int64_t j = 0;
      for (; j + W <= cols; j += W) {
        vf t[W];
        OPCEL_UNROLL
        for (int l = 0; l < W; ++l) t[l] = load(from + (j + l) * x_row + i);
        transpose(t);
        OPCEL_UNROLL
        for (int l = 0; l < W; ++l) store(to + (i + l) * y_row + j, t[l]);
      }
      for (; j < cols; ++j)
        for (int l = 0; l < W; ++l) y[(i + l) * y_row + j] = x[j * x_row + i + l];
    }
  }
  for (; i < rows; ++i)
    for (std::int64_t j = 0; j < cols; ++j) y[i * y_row + j] = x[j * x_row + i];
}

}  // namespace detail

// Tasks [begin, end) of args.tasks, elements of Bytes (1, 2, 4 or 8) bytes. No task writes what another one does.
template <int Bytes>
void copy_tasks(const CopyArgs& args, std::int64_t begin, std::int64_t end) {
  using T = typename detail::Element<Bytes>::type;
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  detail::CopyPlan plan = detail::plan_copy(args);
  if (plan.elements == 0) return;
  const auto share = [&](std::int64_t units, std::int64_t task) {
    return units / args.tasks * task + units % args.tasks * task / args.tasks;
  };
  std::int64_t from, to;
  const detail::CopyAxis inner = plan.axis[plan.axes - 1];

  int across = -1;  // the axis along which x is contiguous, if another one than y's
  if (inner.y == 1 && inner.x != 1)
    for (int i = 0; i < plan.axes - 1; ++i)
      if (plan.axis[i].x == 1) across = i;
  if (across >= 0) {
    constexpr std::int64_t kTile = 64;
    const detail::CopyAxis rows = plan.axis[across];
    plan.remove(plan.axes - 1);
    plan.remove(across);
    const std::int64_t row_tiles = detail::ceil_div(rows.size, kTile), col_tiles = detail::ceil_div(inner.size, kTile);
    const std::int64_t units = plan.elements / rows.size / inner.size * row_tiles * col_tiles;
    for (std::int64_t unit = share(units, begin); unit < share(units, end); ++unit) {
      const std::int64_t row = unit / col_tiles % row_tiles * kTile, col = unit % col_tiles * kTile;
      detail::copy_offsets(plan, plan.axes, unit / col_tiles / row_tiles, from, to);
      detail::copy_transposed(x + from + col * inner.x + row, inner.x, y + to + row * rows.y + col, rows.y,
                              detail::least(kTile, rows.size - row), detail::least(kTile, inner.size - col));
    }
    return;
  }

  const bool contiguous = inner.x == 1 && inner.y == 1;
  if (plan.axes == 1) {
    const std::int64_t first = share(inner.size, begin), last = share(inner.size, end);
    if (contiguous)
      std::memcpy(y + first, x + first, static_cast<std::size_t>(last - first) * Bytes);
    else
      for (std::int64_t i = first; i < last; ++i) y[i * inner.y] = x[i * inner.x];
    return;
  }
  const std::int64_t units = plan.elements / inner.size;
  for (std::int64_t unit = share(units, begin); unit < share(units, end); ++unit) {
    detail::copy_offsets(plan, plan.axes - 1, unit, from, to);
    if (contiguous && inner.size * Bytes >= 64)
      std::memcpy(y + to, x + from, static_cast<std::size_t>(inner.size) * Bytes);
    else
      for (std::int64_t i = 0; i < inner.size; ++i) y[to + i * inner.y] = x[from + i * inner.x];
  }
}

}  // namespace opcel
