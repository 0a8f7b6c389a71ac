// Between the plain layout [n][c][h][w] and the blocked one [n][ceil(c / W)][h][w][W], and from the plain layout to one
// with a halo, [n][c][h][w] with border, or to quads, [n][ceil(c / 4)][h][w][4]. Elements are f32, bf16 or u8 on either
// side; on the way from the plain layout a functor may compute others. Channels past c and the halo are filled with
// `pad`.
#pragma once

#include <cstring>

#include "base/bf16.h"
#include "base/bytes.h"
#include "base/tiling.h"
#include "base/transpose.h"

namespace opcel {

// Strides in elements. Adjacent pixels of a row are 1 (plain) or W (blocked) elements apart.
template <class T = float, class U = T>
struct RelayoutArgs {
  const T* x;                    // first pixel of the image; of a blocked source too, behind its halo
  U* y;                          // first pixel of the halo, which is the image where there is none
  std::int64_t x_n, x_c, x_row;  // x_c, y_c: from channel to channel (plain) or block to block (blocked)
  std::int64_t y_n, y_c, y_row;
  std::int64_t n, c, h, w;
  std::int64_t top, left, bottom, right;  // halo of y in pixels; 0 for a plain destination without one
  std::int64_t rows_per_task;             // of y, halo included
  U pad{};                                // zero but for bytes
};

struct AsIs {
  OPCEL_INLINE vf apply(vf v) const { return v; }
};

namespace detail {

template <class T, class U, class Row>
OPCEL_INLINE void relayout_rows(const RelayoutArgs<T, U>& args, std::int64_t slabs, std::int64_t begin, std::int64_t end,
                                const Row& row) {
  const std::int64_t rows = args.top + args.h + args.bottom, groups = ceil_div(rows, args.rows_per_task);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t slab = task / groups % slabs, n = task / groups / slabs;
    const std::int64_t last = least(rows, (task % groups + 1) * args.rows_per_task);
    for (std::int64_t r = task % groups * args.rows_per_task; r < last; ++r)
      row(n, slab, r - args.top, args.y + n * args.y_n + slab * args.y_c + r * args.y_row);
  }
}

template <class T, class U>
OPCEL_INLINE std::int64_t relayout_task_count(const RelayoutArgs<T, U>& args, std::int64_t slabs) {
  return args.n * slabs * ceil_div(args.top + args.h + args.bottom, args.rows_per_task);
}

template <class U>
OPCEL_INLINE void fill(U* y, std::int64_t count, U pad) {
  int byte = 0;
  if constexpr (is_byte<U>) byte = pad;
  std::memset(static_cast<void*>(y), byte, static_cast<std::size_t>(count) * sizeof(U));
}

}  // namespace detail

template <class T, class U>
inline std::int64_t to_blocked_task_count(const RelayoutArgs<T, U>& args) {
  return detail::relayout_task_count(args, detail::ceil_div(args.c, W));
}
template <class T, class U>
inline std::int64_t from_blocked_task_count(const RelayoutArgs<T, U>& args) { return to_blocked_task_count(args); }
template <class T, class U>
inline std::int64_t to_planar_task_count(const RelayoutArgs<T, U>& args) { return detail::relayout_task_count(args, args.c); }

template <class T, class U>
inline std::int64_t to_quads_task_count(const RelayoutArgs<T, U>& args) {
  return detail::relayout_task_count(args, detail::ceil_div(args.c, 4));
}

// Plain to blocked with halo. Tasks: batch, channel block, row group, the last fastest.
template <class T, class U, class Map = AsIs>
inline void to_blocked_tasks(const RelayoutArgs<T, U>& args, std::int64_t begin, std::int64_t end, const Map& map = {}) {
  const vf pad = set(static_cast<float>(args.pad));
  detail::relayout_rows(args, detail::ceil_div(args.c, W), begin, end,
                        [&](std::int64_t n, std::int64_t block, std::int64_t row, U* y) {
                          if (row < 0 || row >= args.h)
                            return detail::fill(y, (args.left + args.w + args.right) * W, args.pad);
                          detail::fill(y, args.left * W, args.pad);
                          y += args.left * W;
                          const T* x = args.x + n * args.x_n + block * W * args.x_c + row * args.x_row;
                          const int channels = static_cast<int>(detail::least(W, args.c - block * W));
                          const bool vectors = args.w == 1 && args.x_c == 1 && channels == W;
                          if (vectors) store(y, map.apply(load(x)));
                          for (std::int64_t i = vectors; i < args.w; i += W) {
                            const int pixels = static_cast<int>(detail::least(W, args.w - i));
                            vf t[W];
                            OPCEL_UNROLL
                            for (int l = 0; l < W; ++l) {
                              if (l < channels)
                                t[l] = map.apply(pixels == W ? load(x + l * args.x_c + i)
                                                             : load_t<true>(x + l * args.x_c + i, pixels));
                              else
                                t[l] = pad;
                            }
                            transpose(t);
                            if (pixels == W) {
                              store_results(map, y + i * W, W, t);
                            } else {
                              OPCEL_UNROLL
                              for (int l = 0; l < W; ++l)
                                if (l < pixels) store(y + (i + l) * W, t[l]);
                            }
                          }
                          detail::fill(y + args.w * W, args.right * W, args.pad);
                        });
}

// Plain to quads of bytes with halo. Tasks: batch, quad of channels, row group, the last fastest.
template <class T, class Map = AsIs>
inline void to_quads_tasks(const RelayoutArgs<T, std::uint8_t>& args, std::int64_t begin, std::int64_t end, const Map& map = {}) {
  detail::relayout_rows(args, detail::ceil_div(args.c, 4), begin, end,
                        [&](std::int64_t n, std::int64_t block, std::int64_t row, std::uint8_t* y) {
                          if (row < 0 || row >= args.h)
                            return detail::fill(y, (args.left + args.w + args.right) * 4, args.pad);
                          detail::fill(y, args.left * 4, args.pad);
                          y += args.left * 4;
                          const T* x = args.x + n * args.x_n + block * 4 * args.x_c + row * args.x_row;
                          const int channels = static_cast<int>(detail::least(4, args.c - block * 4));
                          for (std::int64_t i = 0; i < args.w; i += W) {
                            const int pixels = static_cast<int>(detail::least(W, args.w - i));
                            vi all{};
                            OPCEL_UNROLL
                            for (int l = 0; l < 4; ++l) {
                              vi v = set_i(args.pad);
                              if (l < channels)
                                v = to_int(map.apply(pixels == W ? load(x + l * args.x_c + i)
                                                                 : load_t<true>(x + l * args.x_c + i, pixels)));
                              all |= v << (8 * l);
                            }
                            if (pixels == W)
                              *reinterpret_cast<detail::vi_bytes*>(y + i * 4) = all;
                            else
                              std::memcpy(y + i * 4, &all, static_cast<std::size_t>(pixels) * 4);
                          }
                          detail::fill(y + args.w * 4, args.right * 4, args.pad);
                        });
}

// Blocked to plain, without halo in y (top .. right are 0). Tasks as to_blocked_tasks.
template <class T, class U>
inline void from_blocked_tasks(const RelayoutArgs<T, U>& args, std::int64_t begin, std::int64_t end) {
  detail::relayout_rows(args, detail::ceil_div(args.c, W), begin, end,
                        [&](std::int64_t n, std::int64_t block, std::int64_t row, U*) {
                          const T* x = args.x + n * args.x_n + block * args.x_c + row * args.x_row;
                          U* y = args.y + n * args.y_n + block * W * args.y_c + row * args.y_row;
                          const int channels = static_cast<int>(detail::least(W, args.c - block * W));
                          const bool vectors = args.w == 1 && args.y_c == 1 && channels == W;
                          if (vectors) store(y, load(x));
                          for (std::int64_t i = vectors; i < args.w; i += W) {
                            const int pixels = static_cast<int>(detail::least(W, args.w - i));
                            vf t[W];
                            OPCEL_UNROLL
                            for (int l = 0; l < W; ++l) t[l] = l < pixels ? load(x + (i + l) * W) : vf{};
                            transpose(t);
                            OPCEL_UNROLL
                            for (int l = 0; l < W; ++l) {
                              if (l >= channels) continue;
                              if (pixels == W)
                                store(y + l * args.y_c + i, t[l]);
                              else
                                store_t<true>(y + l * args.y_c + i, t[l], pixels);
                            }
                          }
                        });
}

// Plain to plain with a halo. Tasks: batch, channel, row group, the last fastest.
template <class T, class U>
inline void to_planar_tasks(const RelayoutArgs<T, U>& args, std::int64_t begin, std::int64_t end) {
  detail::relayout_rows(args, args.c, begin, end, [&](std::int64_t n, std::int64_t c, std::int64_t row, U* y) {
    if (row < 0 || row >= args.h) return detail::fill(y, args.left + args.w + args.right, args.pad);
    detail::fill(y, args.left, args.pad);
    const T* x = args.x + n * args.x_n + c * args.x_c + row * args.x_row;
    std::int64_t i = 0;
    for (; i + W <= args.w; i += W) store(y + args.left + i, load(x + i));
    const int rest = static_cast<int>(args.w - i);
    store_t<true>(y + args.left + i, load_t<true>(x + i, rest), rest);
    detail::fill(y + args.left + args.w, args.right, args.pad);
  });
}

}  // namespace opcel
