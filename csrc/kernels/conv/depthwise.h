// Depthwise convolution (one filter a channel) on the blocked layout [n][channel block][h][w][W] with a zero halo: images of
// f32 or bf16, filters and sums of f32.
//
// Each input vector is loaded once a kernel row and feeds every output of the tile that it touches. Every output is summed in
// the order kh, kw.
#pragma once

#include "base/bf16.h"
#include "base/tiling.h"

namespace opcel {

template <class T = float, class U = T>
struct DepthwiseArgs {
  const T* x;  // the first padded pixel (halo included); adjacent pixels are W elements apart
  std::int64_t x_n, x_cb, x_row;
  const float* w;  // [cb][kh][kw][W]
  U* y;            // adjacent pixels are W elements apart
  std::int64_t y_n, y_cb, y_row;
  std::int64_t n, cb;  // images and channel blocks
  std::int64_t oh, ow;
  std::int64_t rows_per_task;
  std::int64_t blocks_per_task = 1;
};

namespace detail {

template <int KH, int KW, int SW, int DH, int DW, int PW, class T>
OPCEL_INLINE void depthwise_sums(vf (&acc)[PW], const T* x, std::int64_t x_row, const vf* filter) {
  constexpr int Columns = (PW - 1) * SW + (KW - 1) * DW + 1;
  OPCEL_UNROLL
  for (int kh = 0; kh < KH; ++kh) {
    OPCEL_UNROLL
    for (int column = 0; column < Columns; ++column) {
      const vf v = load(x + kh * DH * x_row + column * W);
      OPCEL_UNROLL
      for (int kw = 0; kw < KW; ++kw) {
        const int offset = column - kw * DW;
        if (offset >= 0 && offset % SW == 0 && offset / SW < PW) accumulate(acc[offset / SW], v, filter[kh * KW + kw]);
      }
    }
  }
}

template <int KH, int KW, int SH, int SW, int DH, int DW, class T, class U, class Epi>
OPCEL_INLINE void depthwise_rows(const DepthwiseArgs<T, U>& args, const Epi& epi, std::int64_t n, std::int64_t cb,
                                 std::int64_t first_row, std::int64_t last_row) {
  vf filter[KH * KW];
  OPCEL_UNROLL
  for (int k = 0; k < KH * KW; ++k) filter[k] = load(args.w + (cb * KH * KW + k) * W);
  for (std::int64_t row = first_row; row < last_row; ++row) {
    const T* x = args.x + n * args.x_n + cb * args.x_cb + row * SH * args.x_row;
    U* y = args.y + n * args.y_n + cb * args.y_cb + row * args.y_row;
    const auto tile = [&](auto width, std::int64_t col) __attribute__((always_inline)) {
      constexpr int PW = decltype(width)::value;
      vf acc[PW] = {};
      depthwise_sums<KH, KW, SW, DH, DW, PW>(acc, x + col * SW * W, args.x_row, filter);
      OPCEL_UNROLL
      for (int q = 0; q < PW; ++q) store(y + (col + q) * W, epi.template apply<false>(acc[q], n, cb, row, col + q, W));
    };
    std::int64_t col = 0;
    for (; col + 7 <= args.ow; col += 7) tile(Int<7>{}, col);
    for (; col + 3 <= args.ow; col += 3) tile(Int<3>{}, col);
    for (; col < args.ow; ++col) tile(Int<1>{}, col);
  }
}

}  // namespace detail

// Number of tasks: image, group of channel blocks, row group; the last varies fastest.
template <class T, class U>
OPCEL_INLINE std::int64_t depthwise_task_count(const DepthwiseArgs<T, U>& args) {
  return args.n * detail::ceil_div(args.cb, args.blocks_per_task) * detail::ceil_div(args.oh, args.rows_per_task);
}

// Tasks [begin, end), any width.
template <int KH, int KW, int SH, int SW, int DH, int DW, class T, class U, class Epi>
void depthwise_tasks(const DepthwiseArgs<T, U>& args, const Epi& epi, std::int64_t begin, std::int64_t end) {
  const std::int64_t row_groups = detail::ceil_div(args.oh, args.rows_per_task);
  const std::int64_t block_groups = detail::ceil_div(args.cb, args.blocks_per_task);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first_block = task / row_groups % block_groups * args.blocks_per_task;
    const std::int64_t last_block = detail::least(args.cb, first_block + args.blocks_per_task);
    const std::int64_t first_row = task % row_groups * args.rows_per_task;
    const std::int64_t last_row = detail::least(args.oh, first_row + args.rows_per_task);
    const std::int64_t n = task / row_groups / block_groups;
    for (std::int64_t cb = first_block; cb < last_block; ++cb)
      detail::depthwise_rows<KH, KW, SH, SW, DH, DW>(args, epi, n, cb, first_row, last_row);
  }
}

}  // namespace opcel
