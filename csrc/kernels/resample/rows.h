// Images resampled along rows and columns by tables of places and weights: row-major f32 planes.
#pragma once

#include <cstring>

#include "base/gather.h"
#include "base/tiling.h"

namespace opcel {

// New positions along one axis: out[i] = sum over t < taps of in[at[t * size + i]] * weights[t * size + i]. Places
// outside of the image are cut to its edge. No weights: one tap of weight 1. No places: the axis stays as it is.
struct Resampled {
  const std::int32_t* at;
  const float* weights;
  std::int64_t taps, size;
};

struct ResampleArgs {
  const float* x;  // [planes][ih][iw]
  float* y;        // [planes][rows.size][columns.size]
  std::int64_t planes, ih, iw;
  Resampled rows, columns;
  std::int64_t rows_per_task;
};

inline std::int64_t resample_task_count(const ResampleArgs& args) {
  return args.planes * detail::ceil_div(args.rows.size, args.rows_per_task);
}

namespace detail {

OPCEL_INLINE std::int64_t inside(std::int64_t i, std::int64_t size) { return i < 0 ? 0 : i < size ? i : size - 1; }

// Whether rows a and b of the result read the same rows with the same weights.
inline bool same_row(const Resampled& r, std::int64_t a, std::int64_t b) {
  for (std::int64_t t = 0; t < r.taps; ++t) {
    if (r.at[t * r.size + a] != r.at[t * r.size + b]) return false;
    if (r.weights && r.weights[t * r.size + a] != r.weights[t * r.size + b]) return false;
  }
  return true;
}

// n elements from `first` on of the weighted sum of a plane's rows, for row `row` of the result.
inline void sum_rows(const float* plane, std::int64_t ih, std::int64_t iw, const Resampled& r, std::int64_t row,
                     std::int64_t first, std::int64_t n, float* out) {
  std::int64_t t = 0;
  for (; t < r.taps || t == 0; t += 2) {
    const float* a = plane + inside(r.at[t * r.size + row], ih) * iw + first;
    const bool two = t + 1 < r.taps;
    const float* b = two ? plane + inside(r.at[(t + 1) * r.size + row], ih) * iw + first : a;
    const float wa = r.weights[t * r.size + row], wb = two ? r.weights[(t + 1) * r.size + row] : 0.0f;
    const vf va = set(wa), vb = set(wb);
    std::int64_t i = 0;
    if (two) {
      for (; i + W <= n; i += W) {
        const vf sum = fma(load(b + i), vb, load(a + i) * va);
        store(out + i, t ? load(out + i) + sum : sum);
      }
      for (; i < n; ++i) out[i] = (t ? out[i] : 0.0f) + (a[i] * wa + b[i] * wb);
    } else {
      for (; i + W <= n; i += W) store(out + i, t ? fma(load(a + i), va, load(out + i)) : load(a + i) * va);
      for (; i < n; ++i) out[i] = (t ? out[i] : 0.0f) + a[i] * wa;
    }
  }
}

// What single places along a row have in common.
struct Pattern {
  std::int64_t repeats;        // each element of the row so many times in turn; 0: not so
  std::int64_t first, length;  // the longest run of neighbours that are neighbours in the row too

  Pattern(const Resampled& r, std::int64_t extent) : repeats(0), first(0), length(0) {
    const std::int64_t n = r.size, times = extent > 0 && n % extent == 0 ? n / extent : 0;
    bool each = times > 0;
    for (std::int64_t i = 0; each && i < extent; ++i)
      for (std::int64_t j = 0; j < times; ++j) each = each && r.at[i * times + j] == i;
    if (each) repeats = times;
    for (std::int64_t i = 0, begin = 0; !each && i < n; ++i) {
      if (r.at[i] < 0 || r.at[i] >= extent) {
        begin = i + 1;
        continue;
      }
      if (i > begin && r.at[i] != r.at[i - 1] + 1) begin = i;
      if (i + 1 - begin > length) first = begin, length = i + 1 - begin;
    }
  }
};

template <int Times>
inline void repeat_columns(const float* __restrict row, std::int64_t extent, std::int64_t times, float* __restrict out) {
  const std::int64_t many = Times ? Times : times;
  for (std::int64_t i = 0; i < extent; ++i)
    for (std::int64_t j = 0; j < many; ++j) out[i * many + j] = row[i];
}

// A row read at one place for each column.
inline void pick_columns(const float* __restrict row, std::int64_t extent, const Resampled& r, const Pattern& pattern,
                         float* __restrict out) {
  if (pattern.repeats == 2) return repeat_columns<2>(row, extent, 2, out);
  if (pattern.repeats == 4) return repeat_columns<4>(row, extent, 4, out);
  if (pattern.repeats) return repeat_columns<0>(row, extent, pattern.repeats, out);
  const bool run = pattern.length >= W;
  const std::int64_t before = run ? pattern.first : r.size, after = before + (run ? pattern.length : 0);
  for (std::int64_t i = 0; i < before; ++i) out[i] = row[inside(r.at[i], extent)];
  if (run) std::memcpy(out + before, row + r.at[before], static_cast<std::size_t>(pattern.length) * sizeof(float));
  for (std::int64_t i = after; i < r.size; ++i) out[i] = row[inside(r.at[i], extent)];
}

// A row read at new columns with weights. Taps: 0 for any number.
template <int Taps>
inline void read_columns(const float* row, std::int64_t iw, const Resampled& r, float* out) {
  const std::int64_t n = r.size, taps = Taps ? Taps : r.taps;
  const vi last = set_i(static_cast<std::int32_t>(iw - 1));
  std::int64_t i = 0;
  for (; i + W <= n; i += W) {
    vf sum{};
    for (std::int64_t t = 0; t < taps; ++t) {
      vi at = load_i(r.at + t * n + i);
      at = select_i(at < 0, vi{}, select_i(at > last, last, at));
      sum = fma(gather(row, at), load(r.weights + t * n + i), sum);
    }
    store(out + i, sum);
  }
  for (; i < n; ++i) {
    float sum = 0;
    for (std::int64_t t = 0; t < taps; ++t) sum += row[inside(r.at[t * n + i], iw)] * r.weights[t * n + i];
    out[i] = sum;
  }
}

inline void read_columns(const float* row, std::int64_t iw, const Resampled& r, const Pattern& pattern, float* out) {
  if (!r.weights) return pick_columns(row, iw, r, pattern, out);
  switch (r.taps) {
    case 2:
      return read_columns<2>(row, iw, r, out);
    case 4:
      return read_columns<4>(row, iw, r, out);
    default:
      return read_columns<0>(row, iw, r, out);
  }
}

// Longest row whose vertical sum lies on the stack; of longer ones each column is summed where it is read.
constexpr std::int64_t kResampledRow = 16384;

inline void sum_scattered(const float* plane, std::int64_t ih, std::int64_t iw, const Resampled& rows, std::int64_t row,
                          const Resampled& columns, float* out) {
  for (std::int64_t i = 0; i < columns.size; ++i) {
    float sum = 0.0f;
    for (std::int64_t t = 0; t < columns.taps; ++t) {
      float value;
      sum_rows(plane, ih, iw, rows, row, inside(columns.at[t * columns.size + i], iw), 1, &value);
      sum += columns.weights ? value * columns.weights[t * columns.size + i] : value;
    }
    out[i] = sum;
  }
}

}  // namespace detail

// Tasks [begin, end) of resample_task_count(args).
inline void resample_tasks(const ResampleArgs& args, std::int64_t begin, std::int64_t end) {
  const Resampled &rows = args.rows, &columns = args.columns;
  const std::int64_t groups = detail::ceil_div(rows.size, args.rows_per_task), ow = columns.size;
  const std::size_t bytes = static_cast<std::size_t>(ow) * sizeof(float);
  const bool single = columns.at && !columns.weights && begin < end;
  const detail::Pattern pattern(single ? columns : Resampled{nullptr, nullptr, 0, 0}, single ? args.iw : 0);
  for (std::int64_t task = begin; task < end; ++task) {
    const float* plane = args.x + task / groups * args.ih * args.iw;
    float* y = args.y + task / groups * rows.size * ow;
    const std::int64_t first = task % groups * args.rows_per_task;
    const std::int64_t last = detail::least(rows.size, first + args.rows_per_task);
    for (std::int64_t row = first; row < last; ++row) {
      float* out = y + row * ow;
      if (row > first && rows.at && detail::same_row(rows, row, row - 1)) {
        std::memcpy(out, out - ow, bytes);
        continue;
      }
      if (rows.weights && columns.at && args.iw > detail::kResampledRow) {
        detail::sum_scattered(plane, args.ih, args.iw, rows, row, columns, out);
        continue;
      }
      const float* source = plane + (rows.at ? detail::inside(rows.at[row], args.ih) : row) * args.iw;
      if (rows.weights && !columns.at) {
        detail::sum_rows(plane, args.ih, args.iw, rows, row, 0, args.iw, out);
      } else if (rows.weights) {
        alignas(64) float sums[detail::kResampledRow];
        detail::sum_rows(plane, args.ih, args.iw, rows, row, 0, args.iw, sums);
        detail::read_columns(sums, args.iw, columns, pattern, out);
      } else if (columns.at) {
        detail::read_columns(source, args.iw, columns, pattern, out);
      } else {
        std::memcpy(out, source, bytes);
      }
    }
  }
}

}  // namespace opcel
