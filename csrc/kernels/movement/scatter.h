// Updates written into a copy of a tensor. A task owns a box of the result: it copies that box and then joins, in
// order, the updates that fall into it, so the result does not depend on how tasks are shared out.
#pragma once

#include <cstring>

#include "base/scalar.h"
#include "base/tiling.h"

namespace opcel {

struct JoinNone {
  template <class T>
  static T join(T, T b) { return b; }
};
struct JoinAdd {
  template <class T>
  static T join(T a, T b) { return static_cast<T>(a + b); }
};
struct JoinMul {
  template <class T>
  static T join(T a, T b) { return static_cast<T>(a * b); }
};
struct JoinMin {
  template <class T>
  static T join(T a, T b) { return scalar::min<T>(a, b); }
};
struct JoinMax {
  template <class T>
  static T join(T a, T b) { return scalar::max<T>(a, b); }
};

template <class T, class Index>
struct ScatterElementsArgs {
  const T* x;          // [outer][axis][inner]
  const Index* index;  // [lines][count][width], indices along `axis`; negative ones count from the end
  const T* updates;    // as index
  T* y;                // as x
  std::int64_t outer, axis, inner;
  std::int64_t lines, count, width;
  // The updates' lines are a box within outer, their innermost axes a box within inner (detail::place_of).
  std::int64_t line_axes, inner_axes;
  std::int64_t line_size[8], line_step[8];
  std::int64_t inner_size[8], inner_step[8];
  std::int64_t rows, strip;  // a task's box: rows of outer, elements of inner
  std::int32_t* error;       // set to 1, never cleared, for an index outside of [-axis, axis); its update is dropped
};

namespace detail {

// The offset of element i of a box of `axes` axes within the larger box that holds it; of 0 axes: the boxes are the
// same.
OPCEL_INLINE std::int64_t place_of(std::int64_t i, std::int64_t axes, const std::int64_t* size, const std::int64_t* step) {
  if (axes == 0) return i;
  std::int64_t at = 0;
  for (std::int64_t a = axes - 1; a >= 0; --a) {
    at += i % size[a] * step[a];
    i /= size[a];
  }
  return at;
}

// Columns [first, last) of rows [row, row_end) of `inner` elements each.
template <class T>
OPCEL_INLINE void copy_box(T* to, const T* from, std::int64_t inner, std::int64_t row, std::int64_t row_end,
                           std::int64_t first, std::int64_t last) {
  for (; row < row_end; ++row)
    std::memcpy(to + row * inner + first, from + row * inner + first, static_cast<std::size_t>(last - first) * sizeof(T));
}

}  // namespace detail

template <class Join, class T, class Index>
void scatter_elements_tasks(const ScatterElementsArgs<T, Index>& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t strips = detail::ceil_div(args.inner, args.strip);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t row = task / strips * args.rows, row_end = detail::least(args.outer, row + args.rows);
    const std::int64_t first = task % strips * args.strip, last = detail::least(args.inner, first + args.strip);
    detail::copy_box(args.y, args.x, args.inner, row * args.axis, row_end * args.axis, first, last);
    for (std::int64_t line = 0; line < args.lines; ++line) {
      const std::int64_t o = detail::place_of(line, args.line_axes, args.line_size, args.line_step);
      if (o < row || o >= row_end) continue;
      T* const y = args.y + o * args.axis * args.inner;
      for (std::int64_t k = 0; k < args.count; ++k)
        for (std::int64_t w = 0; w < args.width; ++w) {
          const std::int64_t i = detail::place_of(w, args.inner_axes, args.inner_size, args.inner_step);
          if (i < first || i >= last) continue;
          const std::int64_t from = (line * args.count + k) * args.width + w;
          std::int64_t at = args.index[from];
          if (at < 0) at += args.axis;
          if (at < 0 || at >= args.axis) {
            __atomic_store_n(args.error, 1, __ATOMIC_RELAXED);
            continue;
          }
          T* const to = y + at * args.inner + i;
          *to = Join::join(*to, args.updates[from]);
        }
    }
  }
}

template <class T, class Index>
struct ScatterNdArgs {
  const T* x;          // [slices][inner]
  const Index* index;  // [count][depth]; negative indices count from the end
  const T* updates;    // [count][inner]
  T* y;                // as x
  std::int64_t slices, inner, count, depth;
  std::int64_t size[8];      // the axes that slices is the product of
  std::int64_t rows, strip;  // a task's box: slices, elements of inner
  std::int32_t* error;       // set to 1, never cleared, for an index that is out of range; its update is dropped
};

template <class Join, class T, class Index>
void scatter_nd_tasks(const ScatterNdArgs<T, Index>& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t strips = detail::ceil_div(args.inner, args.strip);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t row = task / strips * args.rows, row_end = detail::least(args.slices, row + args.rows);
    const std::int64_t first = task % strips * args.strip, last = detail::least(args.inner, first + args.strip);
    detail::copy_box(args.y, args.x, args.inner, row, row_end, first, last);
    for (std::int64_t k = 0; k < args.count; ++k) {
      std::int64_t slice = 0;
      bool inside = true;
      for (std::int64_t a = 0; a < args.depth; ++a) {
        std::int64_t at = args.index[k * args.depth + a];
        if (at < 0) at += args.size[a];
        inside = inside && at >= 0 && at < args.size[a];
        slice = slice * args.size[a] + at;
      }
      if (!inside) {
        __atomic_store_n(args.error, 1, __ATOMIC_RELAXED);
        continue;
      }
      if (slice < row || slice >= row_end) continue;
      T* const to = args.y + slice * args.inner;
      const T* const from = args.updates + k * args.inner;
      for (std::int64_t i = first; i < last; ++i) to[i] = Join::join(to[i], from[i]);
    }
  }
}

}  // namespace opcel
