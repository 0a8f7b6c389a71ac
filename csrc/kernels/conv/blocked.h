// Direct convolution on the blocked layout [n][channel block][h][w][W], zero halo around h and w in the input buffer.
// Elements are f32, or bf16 whose products are taken in pairs and summed in f32, or u8 that are multiplied with s8 in
// quads and summed in s32. The output's may be any.
//
// A register tile is PH rows by PW pixels of NV output blocks. The loop over output blocks is outside of the loop over
// pixels, so each panel of weights crosses memory once a task while the task's input stays in cache. Every output is
// summed in the order input block, kh, kw, channel, whichever tile computes it.
#pragma once

#include <type_traits>

#include "base/bf16.h"
#include "base/bytes.h"
#include "base/int8.h"
#include "base/tiling.h"

namespace opcel {

// The elements of filters for images of T.
template <class T>
using ConvWeight = std::conditional_t<std::is_same_v<T, std::uint8_t>, std::int8_t, T>;

template <class T = float, class U = T>
struct ConvArgs {
  const T* x;  // the first padded pixel (halo included); adjacent pixels are CB elements apart
  std::int64_t x_n, x_cb, x_row;
  // f32: [group][ocb / NV][icb][kh][kw][CB][NV * W]. bf16: [group][ocb / NV][icb][kh][kw][CB / 2][NV * W][2]; where CB
  // is 1 [group][ocb / NV][icb][kh][kw / 2][NV * W][2] with a zero in the last pair of an odd kw, whose second pixel is
  // read. s8: [group][ocb / NV][icb][kh][kw][CB / 4][NV * W][4].
  const ConvWeight<T>* w;
  U* y;  // the first output pixel; adjacent pixels are y_pix elements apart
  std::int64_t y_n, y_cb, y_row;
  std::int64_t n, groups;
  std::int64_t ocb, icb;  // output and input blocks of one group; ocb is a multiple of NV
  std::int64_t oh, ow;
  std::int64_t rows_per_task;
  std::int64_t panels_per_task = 1;  // a panel is NV output blocks of one group
  std::int64_t y_pix = W;
  const std::int32_t* start = nullptr;  // u8: what the sum of each output channel begins with, [group][ocb][W]
};

namespace detail {

struct ConvPlace {
  std::int64_t n, cb, y, x;
};

// Products of one lane: a pixel's element with one of each output channel, or a pair of elements with pairs.
OPCEL_INLINE vf conv_broadcast(const float* x) { return set(*x); }
OPCEL_INLINE pairs conv_broadcast(const bf16* x) { return set_pair(x); }
OPCEL_INLINE quads conv_broadcast(const std::uint8_t* x) { return set_quads(x); }
OPCEL_INLINE vf conv_panel(const float* w) { return load(w); }
OPCEL_INLINE pairs conv_panel(const bf16* w) { return load_pairs(w); }
OPCEL_INLINE quads conv_panel(const std::int8_t* w) { return load_quads(w); }
OPCEL_INLINE void conv_accumulate(vf& acc, vf x, vf w) { accumulate(acc, x, w); }
OPCEL_INLINE void conv_accumulate(vf& acc, pairs x, pairs w) { dot(acc, x, w); }
OPCEL_INLINE void conv_accumulate(vi& acc, quads x, quads w) { dot(acc, x, w); }
// In the first W / 2 lanes at least.
OPCEL_INLINE void conv_accumulate_half(vf& acc, vf x, vf w) { accumulate_half(acc, x, w); }
OPCEL_INLINE void conv_accumulate_half(vf& acc, pairs x, pairs w) { dot_half(acc, x, w); }
OPCEL_INLINE void conv_accumulate_half(vi& acc, quads x, quads w) { dot_half(acc, x, w); }

// Sums as lanes of f32.
OPCEL_INLINE vf conv_sum(vf acc) { return acc; }
OPCEL_INLINE vf conv_sum(vi acc) { return to_float(acc); }

template <class T, class U, int CB, int KH, int KW, int SH, int SW, int DH, int DW, int NV, int Last>
struct Conv {
  using Args = ConvArgs<T, U>;
  using Weight = ConvWeight<T>;
  static constexpr bool Integers = std::is_same_v<T, std::uint8_t>;
  using Sum = std::conditional_t<Integers, vi, vf>;
  static constexpr int Pair = 4 / sizeof(T);
  static_assert(CB % Pair == 0 || (CB == 1 && DW == 1 && Pair == 2), "pairs are adjacent channels, or pixels of a plane");
  // Taps of a kernel row and the elements from one to the next; products of one tap; those of straight-line code.
  static constexpr int Taps = CB == 1 ? (KW + Pair - 1) / Pair : KW;
  static constexpr int Across = CB == 1 ? DW * Pair : DW * CB;
  static constexpr int Products = CB == 1 ? 1 : CB / Pair;
  static constexpr int LastProducts = CB == 1 ? 1 : Last / Pair;
  static constexpr int Most = Products > 8 && Products % 8 == 0 ? 8 : Products;
  static constexpr int Steps = LastProducts % Most == 0 ? Most : LastProducts;
  static_assert(Products % Steps == 0);
  // Input blocks summed before the sum is added to the total, which integers need not be.
  static constexpr std::int64_t InChunk = kChunk * Pair / (KH * KW * CB);
  static constexpr std::int64_t Chunk = Integers ? std::int64_t{1} << 40 : InChunk > 1 ? InChunk : 1;

  template <int PH, int PW, bool Half>
  static OPCEL_INLINE void tap(Sum (&acc)[PH][PW][NV], const T* x, std::int64_t x_row, const Weight*& w, int products) {
    for (int c = 0; c < products; c += Steps) {
      const T* row[PH];
      OPCEL_UNROLL
      for (int p = 0; p < PH; ++p) {
        row[p] = x + p * SH * x_row + c * Pair;
        keep(row[p]);
      }
      OPCEL_UNROLL
      for (int s = 0; s < Steps; ++s) {
        decltype(conv_panel(w)) panel[NV];
        OPCEL_UNROLL
        for (int j = 0; j < NV; ++j) panel[j] = conv_panel(w + (s * NV + j) * W * Pair);
        OPCEL_UNROLL
        for (int p = 0; p < PH; ++p) {
          OPCEL_UNROLL
          for (int q = 0; q < PW; ++q) {
            const auto v = conv_broadcast(row[p] + q * SW * CB + s * Pair);
            OPCEL_UNROLL
            for (int j = 0; j < NV; ++j) {
              if (Half && j == NV - 1)
                conv_accumulate_half(acc[p][q][j], v, panel[j]);
              else
                conv_accumulate(acc[p][q][j], v, panel[j]);
            }
          }
        }
      }
      w += Steps * NV * W * Pair;
      keep(w);
    }
    if constexpr (LastProducts != Products) w += (Products - products) * NV * W * Pair;
  }

  template <int PH, int PW, bool Half, class Epi>
  static __attribute__((noinline)) void tile(const Args& args, const T* x, const Weight* w, const Epi& epi,
                                             const ConvPlace& at) {
    OPCEL_UNROLL
    for (int p = 0; p < PH; ++p) {
      OPCEL_UNROLL
      for (int q = 0; q < PW; ++q) {
        OPCEL_UNROLL
        for (int j = 0; j < NV; ++j) prefetch_epilogue(0, epi, at.n, at.cb + j, at.y + p, at.x + q);
      }
    }
    Sum acc[PH][PW][NV], total[PH][PW][NV];
    each<NV>([&](auto j) __attribute__((always_inline)) {
      Sum first{};
      if constexpr (Integers) first = load_i(args.start + (at.cb + decltype(j)::value) * W);
      each<PH * PW>([&](auto i) __attribute__((always_inline)) {
        acc[decltype(i)::value / PW][decltype(i)::value % PW][decltype(j)::value] = first;
      });
    });
    const std::int64_t x_row = args.x_row;
    bool carried = false;
    for (std::int64_t icb = args.icb;;) {
      for (const std::int64_t stop = icb > Chunk ? icb - Chunk : 0; icb > stop; --icb, x += args.x_cb) {
        const T* x_kh = x;
        const int products = LastProducts == Products || icb > 1 ? Products : LastProducts;
        for (int kh = 0; kh < KH; ++kh, x_kh += DH * x_row) {
          if constexpr (Products == 1) {
            OPCEL_UNROLL
            for (int kw = 0; kw < Taps; ++kw) tap<PH, PW, Half>(acc, x_kh + kw * Across, x_row, w, products);
          } else {
            for (int kw = 0; kw < Taps; ++kw) tap<PH, PW, Half>(acc, x_kh + kw * Across, x_row, w, products);
          }
        }
      }
      if constexpr (Integers) {
        break;
      } else {
        if (icb == 0) break;
        carry(total, acc, !carried);
        carried = true;
      }
    }
    if constexpr (!Integers)
      if (carried) add_total(acc, total);
    U* y = args.y + at.n * args.y_n + at.cb * args.y_cb + at.y * args.y_row + at.x * args.y_pix;
    each<PH * NV>([&](auto i) __attribute__((always_inline)) {
      constexpr int p = decltype(i)::value / NV, j = decltype(i)::value % NV;
      vf pixels[PW];
      each<PW>([&](auto q_) __attribute__((always_inline)) {
        constexpr int q = decltype(q_)::value;
        pixels[q] = epi.template apply<false>(conv_sum(acc[p][q][j]), at.n, at.cb + j, at.y + p, at.x + q, W);
      });
      store_results(epi, y + j * args.y_cb + p * args.y_row, args.y_pix, pixels);
    });
  }

  template <bool Half, int PH, int... PW, class Epi>
  static OPCEL_INLINE void rows(const Args& args, const T* x, const Weight* w, const Epi& epi, ConvPlace at) {
    const T* line = x + at.y * SH * args.x_row;
    for (at.x = 0; at.x < args.ow;) {
      const std::int64_t width = Cut<PW...>::next(args.ow - at.x);
      if (width == 0) break;
      ((width == PW ? tile<PH, PW, Half>(args, line + at.x * SW * CB, w, epi, at) : void()), ...);
      at.x += width;
    }
  }
};

}  // namespace detail

// Number of tasks: image, group, panel group, row group; the last varies fastest.
template <int NV, class T, class U>
OPCEL_INLINE std::int64_t conv_task_count(const ConvArgs<T, U>& args) {
  return args.n * args.groups * detail::ceil_div(args.ocb / NV, args.panels_per_task) *
         detail::ceil_div(args.oh, args.rows_per_task);
}

// Tasks [begin, end). CB: channels of an input block (W, or fewer for an input of few channels: 1 reads planes as they
// are). PW: the tile widths to instantiate, descending. Any width can be cut if the last is 1; otherwise ow must be a
// sum of them that a fewest-tiles even split finds. Rows left over by PH are done one at a time. A 1x1 convolution of
// stride 1 without halo may take any oh * ow = h * w.
// Last: channels of a group's last input block, rounded up to 8 where a block has more. Half: no more than W / 2 of a
// group's last output block are channels, and the others need not be computed.
template <int CB, int KH, int KW, int SH, int SW, int DH, int DW, int NV, int Last, bool Half, int PH, int... PW, class T,
          class U, class Epi>
void conv_tasks(const ConvArgs<T, U>& args, const Epi& epi, std::int64_t begin, std::int64_t end) {
  using Conv = detail::Conv<T, U, CB, KH, KW, SH, SW, DH, DW, NV, Last>;
  const std::int64_t row_groups = detail::ceil_div(args.oh, args.rows_per_task);
  const std::int64_t panels = args.ocb / NV;
  const std::int64_t panel_groups = detail::ceil_div(panels, args.panels_per_task);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first_row = task % row_groups * args.rows_per_task;
    const std::int64_t last_row = detail::least(args.oh, first_row + args.rows_per_task);
    const std::int64_t panel_group = task / row_groups % panel_groups;
    const std::int64_t group = task / row_groups / panel_groups % args.groups;
    const std::int64_t n = task / row_groups / panel_groups / args.groups;
    const std::int64_t last_panel = detail::least(panels, (panel_group + 1) * args.panels_per_task);
    const T* x = args.x + n * args.x_n + group * args.icb * args.x_cb;
    for (std::int64_t panel = panel_group * args.panels_per_task; panel < last_panel; ++panel) {
      constexpr int elements = KH * Conv::Taps * Conv::Products * Conv::Pair * NV * W;
      const ConvWeight<T>* w = args.w + (group * panels + panel) * args.icb * elements;
      const std::int64_t cb = group * args.ocb + panel * NV;
      const auto run = [&](auto half) __attribute__((always_inline)) {
        constexpr bool H = decltype(half)::value != 0;
        std::int64_t row = first_row;
        for (; row + PH <= last_row; row += PH) Conv::template rows<H, PH, PW...>(args, x, w, epi, {n, cb, row, 0});
        if constexpr (PH > 1)
          for (; row < last_row; ++row) Conv::template rows<H, 1, PW...>(args, x, w, epi, {n, cb, row, 0});
      };
      if (Half && panel == panels - 1)
        run(detail::Int<Half>{});
      else
        run(detail::Int<0>{});
    }
  }
}

}  // namespace opcel
