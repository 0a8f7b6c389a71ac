// Gather along one axis: y[outer][count][inner] = x[outer][axis][inner] at index[count].
#pragma once

#include <cstring>

#include "base/tiling.h"

namespace opcel {

struct GatherArgs {
  const void* x;
  const void* index;  // [count], int32 or int64; negative values count from the end
  void* y;
  std::int64_t outer, axis, count;
  std::int64_t inner_bytes;  // bytes of an element of [outer][axis]
  std::int32_t* error;       // set to 1, never cleared, if an index is outside of [-axis, axis); its slice of y is zero
  std::int64_t slices_per_task;
};

inline std::int64_t gather_task_count(const GatherArgs& args) {
  return detail::ceil_div(args.outer * args.count, args.slices_per_task);
}

namespace detail {

template <class Index>
OPCEL_INLINE void gather_slices(const GatherArgs& args, std::int64_t begin, std::int64_t end, std::int64_t bytes) {
  const char* x = static_cast<const char*>(args.x);
  char* y = static_cast<char*>(args.y);
  const Index* index = static_cast<const Index*>(args.index);
  std::int64_t outer = begin / args.count, i = begin % args.count;
  for (std::int64_t slice = begin; slice < end; ++slice) {
    std::int64_t at = index[i];
    if (at < 0) at += args.axis;
    if (at >= 0 && at < args.axis) {
      std::memcpy(y + slice * bytes, x + (outer * args.axis + at) * bytes, static_cast<std::size_t>(bytes));
    } else {
      std::memset(y + slice * bytes, 0, static_cast<std::size_t>(bytes));
      __atomic_store_n(args.error, 1, __ATOMIC_RELAXED);
    }
    if (++i == args.count) {
      i = 0;
      ++outer;
    }
  }
}

}  // namespace detail

// Tasks [begin, end) of gather_task_count(args). Index: std::int32_t or std::int64_t.
template <class Index>
void gather_tasks(const GatherArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t first = begin * args.slices_per_task;
  const std::int64_t last = detail::least(args.outer * args.count, end * args.slices_per_task);
  if (first >= last) return;
  switch (args.inner_bytes) {  // single elements without a call of memcpy
    case 1:
      return detail::gather_slices<Index>(args, first, last, 1);
    case 2:
      return detail::gather_slices<Index>(args, first, last, 2);
    case 4:
      return detail::gather_slices<Index>(args, first, last, 4);
    case 8:
      return detail::gather_slices<Index>(args, first, last, 8);
    default:
      return detail::gather_slices<Index>(args, first, last, args.inner_bytes);
  }
}

}  // namespace opcel
