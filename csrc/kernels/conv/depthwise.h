// Depthwise convolution (one filter a channel), and convolution in groups of G channels and G filters, on the blocked
// layout [n][channel block][h][w][W]: images of f32 or bf16, filters and sums of f32. Padding is skipped where it is
// known, else a zero halo around the image.
//
// Each input vector is loaded once a kernel row and channel of a group, and feeds every output of the tile that it
// touches. Every output is summed in the order kh, channel, kw.
#pragma once

#include "base/bf16.h"
#include "base/tiling.h"

namespace opcel {

template <class T = float, class U = T>
struct DepthwiseArgs {
  const T* x;  // the first pixel; where there is a halo, that of the halo. Adjacent pixels are W elements apart
  std::int64_t x_n, x_cb, x_row;
  const float* w;  // [cb][kh][kw][G][W]
  U* y;            // adjacent pixels are W elements apart
  std::int64_t y_n, y_cb, y_row;
  std::int64_t n, cb;  // images and channel blocks
  std::int64_t oh, ow;
  std::int64_t rows_per_task;
  std::int64_t blocks_per_task = 1;
  std::int64_t top = 0;                         // rows of padding above that are not in memory
  std::int64_t ih = std::int64_t{1} << 40;      // rows in memory
};

namespace detail {

// One kernel row of a tile of PW outputs; x: the column of the tile's first output times SW. The Left first and the
// Right last columns of the window are padding.
template <int J, int G, int KW, int SW, int DH, int DW, int PL, int Left, int Right, int PW, class T>
OPCEL_INLINE void depthwise_row_sums(vf (&acc)[PW], const T* x, const float* w) {
  constexpr int Columns = (PW - 1) * SW + (KW - 1) * DW + 1;
  vf filter[KW];
  OPCEL_UNROLL
  for (int kw = 0; kw < KW; ++kw) filter[kw] = load(w + (kw * G + J) * W);
  OPCEL_UNROLL
  for (int column = Left; column < Columns - Right; ++column) {
    const vf v = spread<G, J>(load(x + (column - PL) * W));
    OPCEL_UNROLL
    for (int kw = 0; kw < KW; ++kw) {
      const int offset = column - kw * DW;
      if (offset >= 0 && offset % SW == 0 && offset / SW < PW) accumulate(acc[offset / SW], v, filter[kw]);
    }
  }
  if constexpr (J + 1 < G) depthwise_row_sums<J + 1, G, KW, SW, DH, DW, PL, Left, Right, PW>(acc, x, w);
}

template <int KH, int KW, int SH, int SW, int DH, int DW, int PL, int PR, int PW, int G = 1, class T, class U, class Epi>
OPCEL_INLINE void depthwise_rows(const DepthwiseArgs<T, U>& args, const Epi& epi, std::int64_t n, std::int64_t cb,
                                 std::int64_t first_row, std::int64_t last_row) {
  const float* w = args.w + cb * (KH * KW * G * W);
  for (std::int64_t row = first_row; row < last_row; ++row) {
    const std::int64_t from = row * SH - args.top;
    const std::int64_t first = from < 0 ? ceil_div(-from, DH) : 0;
    const std::int64_t last = least(KH, ceil_div(args.ih - from, DH));
    const T* x = args.x + n * args.x_n + cb * args.x_cb + (from + first * DH) * args.x_row;
    U* y = args.y + n * args.y_n + cb * args.y_cb + row * args.y_row;
    const auto tile = [&](auto width, auto left, auto right, std::int64_t col) __attribute__((always_inline)) {
      constexpr int P = decltype(width)::value;
      vf acc[P] = {};
      const T* window = x + col * SW * W;
      for (std::int64_t kh = first; kh < last; ++kh, window += DH * args.x_row)
        depthwise_row_sums<0, G, KW, SW, DH, DW, PL, decltype(left)::value, decltype(right)::value, P>(acc, window,
                                                                                                  w + kh * (KW * G * W));
      OPCEL_UNROLL
      for (int q = 0; q < P; ++q) store(y + (col + q) * W, epi.template apply<false>(acc[q], n, cb, row, col + q, W));
    };
    if constexpr (PW == 0) {
      std::int64_t col = 0;
      for (; col + 7 <= args.ow; col += 7) tile(Int<7>{}, Int<0>{}, Int<0>{}, col);
      for (; col + 3 <= args.ow; col += 3) tile(Int<3>{}, Int<0>{}, Int<0>{}, col);
      for (; col < args.ow; ++col) tile(Int<1>{}, Int<0>{}, Int<0>{}, col);
    } else if (args.ow == PW) {
      tile(Int<PW>{}, Int<PL>{}, Int<PR>{}, 0);
    } else {
      tile(Int<PW>{}, Int<PL>{}, Int<0>{}, 0);
      for (std::int64_t col = PW; col + PW < args.ow; col += PW) tile(Int<PW>{}, Int<0>{}, Int<0>{}, col);
      tile(Int<PW>{}, Int<0>{}, Int<PR>{}, args.ow - PW);
    }
  }
}

}  // namespace detail

// Number of tasks: image, group of channel blocks, row group; the last varies fastest.
template <class T, class U>
OPCEL_INLINE std::int64_t depthwise_task_count(const DepthwiseArgs<T, U>& args) {
  return args.n * detail::ceil_div(args.cb, args.blocks_per_task) * detail::ceil_div(args.oh, args.rows_per_task);
}

// Tasks [begin, end). PW: outputs of a tile, 0 for any width, with a halo; else ow is at least PW, and the last tile
// may compute outputs of the one before it again. PL, PR: columns of padding, not in memory, that the first and the
// last tile touch; no other tile may touch any.
template <int KH, int KW, int SH, int SW, int DH, int DW, int PL, int PR, int PW, int G = 1, class T, class U, class Epi>
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
      detail::depthwise_rows<KH, KW, SH, SW, DH, DW, PL, PR, PW, G>(args, epi, n, cb, first_row, last_row);
  }
}

}  // namespace opcel
