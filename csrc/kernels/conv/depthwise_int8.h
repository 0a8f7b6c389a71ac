// Depthwise convolution of u8 with s8 on the blocked layout [n][channel block][h][w][W], summed exactly in s32.
//
// Four adjacent pixels of a block are transposed to a quad for each channel, which meets the taps of a kernel row.
// Where a window is narrower than its quads, neighbouring outputs share them: their taps are packed shifted, zeros
// around them. The border of the image is in memory, and holds what counts as zero.
#pragma once

#include "base/bytes.h"
#include "base/tiling.h"

namespace opcel {

template <class U>
struct DepthwiseInt8Args {
  const std::uint8_t* x;  // the first padded pixel; adjacent pixels are W elements apart
  std::int64_t x_n, x_cb, x_row;
  const std::int8_t* w;       // [cb][kh][output of a group][quad][W][4]
  const std::int32_t* start;  // [cb][W]: what sums begin with
  U* y;
  std::int64_t y_n, y_cb, y_row;
  std::int64_t n, cb;  // images and channel blocks
  std::int64_t oh, ow;
  std::int64_t rows_per_task, blocks_per_task;
};

namespace detail {

template <int KH, int KW, int SH, int SW>
struct DepthwiseInt8 {
  static constexpr int Quads = (KW + 3) / 4;
  // Outputs that the quads of one group have all taps of, and columns of a tile.
  static constexpr int Group = (4 * Quads - KW) / SW + 1 < 4 ? (4 * Quads - KW) / SW + 1 : 4;
  static constexpr int Groups = 4 / Group;
  static constexpr int Width = Groups * Group;

  // R rows and Width columns of outputs, of which `columns` are stored.
  template <int R, class U, class Epi>
  static OPCEL_INLINE void tile(const DepthwiseInt8Args<U>& args, const Epi& epi, std::int64_t n, std::int64_t cb,
                                std::int64_t row, std::int64_t col, std::int64_t columns) {
    const std::uint8_t* x = args.x + n * args.x_n + cb * args.x_cb + row * SH * args.x_row + col * SW * W;
    const std::int8_t* w = args.w + cb * (KH * Group * Quads * 4 * W);
    const vi start = load_i(args.start + cb * W);
    vi acc[R][Width];
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int q = 0; q < Width; ++q) acc[r][q] = start;
    }
    constexpr int rows = (R - 1) * SH + KH;
    OPCEL_UNROLL
    for (int i = 0; i < rows; ++i, x += args.x_row) {
      OPCEL_UNROLL
      for (int g = 0; g < Groups; ++g) {
        OPCEL_UNROLL
        for (int k = 0; k < Quads; ++k) {
          const quads v = load_across(x + (g * Group * SW + 4 * k) * W);
          OPCEL_UNROLL
          for (int r = 0; r < R; ++r) {
            const int kh = i - r * SH;
            if (kh < 0 || kh >= KH) continue;
            OPCEL_UNROLL
            for (int o = 0; o < Group; ++o)
              dot(acc[r][g * Group + o], v, load_quads(w + ((kh * Group + o) * Quads + k) * 4 * W));
          }
        }
      }
    }
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      U* y = args.y + n * args.y_n + cb * args.y_cb + (row + r) * args.y_row + col * W;
      vf pixels[Width];
      OPCEL_UNROLL
      for (int q = 0; q < Width; ++q)
        pixels[q] = epi.template apply<false>(to_float(acc[r][q]), n, cb, row + r, col + q, W);
      if (columns == Width) {
        store_results(epi, y, W, pixels);
      } else {
        OPCEL_UNROLL
        for (int q = 0; q < Width; ++q) {
          const vf pixel[] = {pixels[q]};
          if (q < columns) store_results(epi, y + q * W, W, pixel);
        }
      }
    }
  }
};

}  // namespace detail

template <class U>
OPCEL_INLINE std::int64_t depthwise_int8_task_count(const DepthwiseInt8Args<U>& args) {
  return args.n * detail::ceil_div(args.cb, args.blocks_per_task) * detail::ceil_div(args.oh, args.rows_per_task);
}

// Tasks [begin, end): image, group of channel blocks, row group, the last fastest. R: rows of a tile. The last tile of
// a row computes outputs of the one before it again, so a row is read up to max(ow, Width) outputs, and for a whole
// number of quads: pixels of `x` up to column (max(ow, Width) - Group) SW + 4 Quads.
template <int KH, int KW, int SH, int SW, int R, class U, class Epi>
void depthwise_int8_tasks(const DepthwiseInt8Args<U>& args, const Epi& epi, std::int64_t begin, std::int64_t end) {
  using Depthwise = detail::DepthwiseInt8<KH, KW, SH, SW>;
  constexpr int width = Depthwise::Width;
  const std::int64_t row_groups = detail::ceil_div(args.oh, args.rows_per_task);
  const std::int64_t block_groups = detail::ceil_div(args.cb, args.blocks_per_task);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first_row = task % row_groups * args.rows_per_task;
    const std::int64_t last_row = detail::least(args.oh, first_row + args.rows_per_task);
    const std::int64_t first_block = task / row_groups % block_groups * args.blocks_per_task;
    const std::int64_t n = task / row_groups / block_groups;
    const std::int64_t last_block = detail::least(args.cb, first_block + args.blocks_per_task);
    for (std::int64_t cb = first_block; cb < last_block; ++cb) {
      const auto across = [&](auto rows, std::int64_t row) __attribute__((always_inline)) {
        constexpr int count = decltype(rows)::value;
        std::int64_t col = 0;
        for (; col + width <= args.ow; col += width)
          Depthwise::template tile<count>(args, epi, n, cb, row, col, width);
        if (col == args.ow) return;
        const std::int64_t last = args.ow > width ? args.ow - width : 0;
        Depthwise::template tile<count>(args, epi, n, cb, row, last, detail::least(args.ow, width));
      };
      std::int64_t row = first_row;
      for (; row + R <= last_row; row += R) across(detail::Int<R>{}, row);
      if constexpr (R > 1)
        for (; row < last_row; ++row) across(detail::Int<1>{}, row);
    }
  }
}

}  // namespace opcel
