// C[m, n] = epilogue(X[m, k] * W[k, n]) for W[k, n] = (w[k, n] - zero[k / group, n]) * scale[k / group, n], w of 4 or 8
// bits.
//
// With `RoundedRows` X is rounded to s8, each row by groups of k, so that a lane adds up four products with one
// instruction: w is the unsigned operand, and the sum over a group starts at -zero * sum(x). With `PlainRows` X stays
// f32 and w is widened as it is read. In both, few rows take as long as reading W and many as long as multiplying.
// Every element is summed in the same order whichever tile computes it: results depend neither on how rows are cut into
// tiles nor on how tasks are spread over threads.
#pragma once

#include "kernels/gemm/nbits_rows.h"
#include "kernels/gemm/packed.h"

namespace opcel {

struct NbitsArgs {
  const float* x;  // rows contiguous along k; x_row elements from one row to the next
  std::int64_t x_row;
  // [panel][group][step][NR][4], NR = NV * W, zero past n and k. A step is 4 elements along k of 8 bits, or 8 of 4
  // bits: a byte holds the element i in its lower half, i + 4 in its upper one.
  const std::uint8_t* w;
  const float* scale;        // [panel][group / shared][NR]
  const std::uint8_t* zero;  // the same; null: `middle` everywhere
  float* c;                  // rows contiguous along n
  std::int64_t c_row;
  std::int64_t batch, m, n, k;  // batch is 1
  std::int64_t group, shared;   // elements along k of a group of X; groups that have one scale
  std::int64_t middle;
  std::int64_t rows_per_task, panels_per_task;
};

namespace detail {

// The zero points of a panel's columns.
template <int NV>
OPCEL_INLINE void nbits_zeros(vi (&to)[NV], const std::uint8_t* zero, std::int64_t middle) {
  OPCEL_UNROLL
  for (int j = 0; j < NV; ++j) to[j] = zero ? widened(zero + j * W) : set_i(static_cast<std::int32_t>(middle));
}

template <int Bits, int R, int NV>
struct RoundedSums {
  // The upper halves are multiplied where they are, as 16 times their value, and have sums of their own, if few.
  static constexpr bool Apart = Bits == 4 && R * NV <= 8;
  static constexpr int Steps = Bits == 4 ? 2 : 1;  // quads of x for each vector of w
  vi acc[R][NV], high[Apart ? R : 1][Apart ? NV : 1];

  OPCEL_INLINE void start(const vi (&zeros)[NV], const std::int32_t* sum) {
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) {
        acc[r][j] = -(zeros[j] * set_i(sum[r]));
        if constexpr (Apart) high[r][j] = vi{};
      }
    }
  }
  OPCEL_INLINE void step(const std::uint8_t* x, const std::uint8_t* w) {
    quads low[NV], upper[NV];
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) {
      const quads v = load_quads(w + j * 4 * W);
      low[j] = Bits == 4 ? v & 0x0f0f0f0f : v;
      if constexpr (Bits == 4) upper[j] = Apart ? v & static_cast<std::int32_t>(0xf0f0f0f0u) : (v >> 4) & 0x0f0f0f0f;
    }
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      const quads first = set_quads(x + 4 * r);
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) dot(acc[r][j], low[j], first);
      if constexpr (Bits == 4) {
        const quads second = set_quads(x + 4 * (R + r));
        OPCEL_UNROLL
        for (int j = 0; j < NV; ++j) dot(Apart ? high[r][j] : acc[r][j], upper[j], second);
      }
    }
  }
  OPCEL_INLINE vf get(int r, int j) const {
    if constexpr (Apart) return to_float(acc[r][j] + (high[r][j] >> 4));
    return to_float(acc[r][j]);
  }
  static constexpr int elements = 4 * Steps;  // of a row that a step reads
};

template <int Bits, int R, int NV>
struct PlainSums {
  vf acc[R][NV];

  OPCEL_INLINE void start(const vi (&zeros)[NV], const float* sum) {
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) acc[r][j] = -(to_float(zeros[j]) * set(sum[r]));
    }
  }
  OPCEL_INLINE void step(const float* x, const std::uint8_t* w) {
    constexpr int Mask = (1 << Bits) - 1;
    vi v[NV];
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) v[j] = load_quads(w + j * 4 * W);
    OPCEL_UNROLL
    for (int i = 0; i < elements; ++i) {
      constexpr int Halves = 8 / Bits;
      const int at = i % 4 * 8 + i / 4 * 4;  // the bit of a lane where element i begins
      static_assert(elements == 4 * Halves);
      vf panel[NV];
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) panel[j] = to_float((v[j] >> at) & Mask);
      OPCEL_UNROLL
      for (int r = 0; r < R; ++r) {
        const vf a = set(x[i * R + r]);
        OPCEL_UNROLL
        for (int j = 0; j < NV; ++j) accumulate(acc[r][j], a, panel[j]);
      }
    }
  }
  OPCEL_INLINE vf get(int r, int j) const { return acc[r][j]; }
  static constexpr int elements = 32 / Bits;
};

template <int Bits, int R, int NV, class Rows>
struct NbitsSums;
template <int Bits, int R, int NV>
struct NbitsSums<Bits, R, NV, RoundedRows> : RoundedSums<Bits, R, NV> {};
template <int Bits, int R, int NV>
struct NbitsSums<Bits, R, NV, PlainRows> : PlainSums<Bits, R, NV> {};

// The R rows from `row` on, whose tile begins `first` rows into the task, times a panel.
template <int Bits, int NV, int R, class Rows, class Epi>
__attribute__((noinline)) void nbits_tile(const NbitsArgs& args, const Tiles<Rows>& tiles, std::int64_t first,
                                          std::int64_t row, std::int64_t panel, const Epi& epi) {
  using Sums = NbitsSums<Bits, R, NV, Rows>;
  constexpr int NR = NV * W;
  const Groups cut{args.k, args.group};
  const std::int64_t scales = ceil_div(tiles.groups, args.shared) * NR;
  const std::uint8_t* w = args.w + panel * (tiles.depth * NR * Bits / 8);
  const float* scale = args.scale + panel * scales;
  const std::uint8_t* zero = args.zero ? args.zero + panel * scales : nullptr;
  const typename Rows::Element* x = tiles.elements + first * tiles.depth;
  const float* x_scale = tiles.scales + first * tiles.groups;
  const typename Rows::Sum* x_sum = tiles.sums + first * tiles.groups;
  const GemmPlace at{0, row, panel * NR, args.n - panel * NR};
  vf total[R][NV] = {};
  std::int64_t left = args.shared;
  for (std::int64_t g = 0; g < tiles.groups; ++g) {
    Sums sums;
    vi zeros[NV];
    nbits_zeros(zeros, zero, args.middle);
    sums.start(zeros, x_sum);
    for (std::int64_t i = cut.depth(g) / Sums::elements; i > 0; --i) {
      sums.step(x, w);
      x += Sums::elements * R;
      w += 4 * NR;
    }
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) {
      const vf s = load(scale + j * W);
      OPCEL_UNROLL
      for (int r = 0; r < R; ++r) total[r][j] = fma(sums.get(r, j), s * set(x_scale[r]), total[r][j]);
    }
    x_scale += R;
    x_sum += R;
    if (--left == 0) {
      left = args.shared;
      scale += NR;
      if (zero) zero += NR;
    }
  }
  float* const c = args.c + row * args.c_row + at.col;
  if (at.cols >= NR) {
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j)
        store(c + r * args.c_row + j * W, epi.template apply<false>(total[r][j], 0, row + r, at.col + j * W, W));
    }
  } else {
    float tile[R * NR];
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) store(tile + (r * NV + j) * W, total[r][j]);
    }
    gemm_store_edge<NV>(tile, R, c, args.c_row, epi, at);
  }
}

}  // namespace detail

// Tasks [begin, end) of gemm_task_count. Heights: of the tiles to instantiate, descending; the last is 1, or every
// task's row count is a sum of them that a fewest-tiles even split finds. The rows of a task lie on the stack.
template <class Rows, int Bits, int NV, int... Heights, class Epi>
void nbits_tasks(const NbitsArgs& args, const Epi& epi, std::int64_t begin, std::int64_t end) {
  using Cut = detail::Cut<Heights...>;
  const detail::Groups cut{args.k, args.group};
  const std::int64_t most = detail::least(args.m, args.rows_per_task);
  void* const memory = __builtin_alloca_with_align(static_cast<std::size_t>(detail::Tiles<Rows>::bytes(cut, most)), 512);
  const detail::Tiles<Rows> tiles(memory, cut, most);
  std::int64_t held = -1;  // the first of the rows that `tiles` hold
  for (std::int64_t task = begin; task < end; ++task) {
    const detail::GemmTask part = detail::gemm_task<NV>(args, task);
    const auto each = [&](auto&& tile) __attribute__((always_inline)) {
      for (std::int64_t row = part.first_row; row < part.last_row;) {
        const std::int64_t height = Cut::next(part.last_row - row);
        if (height == 0) break;
        tile(row, height);
        row += height;
      }
    };
    if (held != part.first_row) {
      each([&](std::int64_t row, std::int64_t height) {
        tiles.fill(cut, row - part.first_row, height, args.x + row * args.x_row, args.x_row);
      });
      held = part.first_row;
    }
    for (std::int64_t panel = part.first_panel; panel < part.last_panel; ++panel) {
      each([&](std::int64_t row, std::int64_t height) {
        ((height == Heights
              ? detail::nbits_tile<Bits, NV, Heights>(args, tiles, row - part.first_row, row, panel, epi)
              : void()),
         ...);
      });
    }
  }
}

}  // namespace opcel
