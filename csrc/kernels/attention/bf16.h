// Attention with both products in bf16: q, k, v and the weights of the keys are rounded, each once; sums, the scale and
// the running softmax are in f32. Operands lie in memory as f32 or bf16, and so does the result. Blocks and order are
// those of blockwise.h.
#pragma once

#include "base/bf16.h"
#include "kernels/attention/blockwise.h"

namespace opcel {
namespace detail {

// acc += a b over `count` pairs; rows of a are ARow elements apart, pairs of rows of b b_row.
template <int R, int NV, int ARow>
OPCEL_INLINE void attention_dots(vf (&acc)[R][NV], const bf16* a, const bf16* b, std::int64_t b_row,
                                 std::int64_t count) {
  constexpr int Steps = 4;
  const auto step = [&](int i) __attribute__((always_inline)) {
    pairs panel[NV];
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) panel[j] = load_pairs(b + 2 * j * W);
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      const pairs x = set_pair(a + r * ARow + 2 * i);
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) dot(acc[r][j], x, panel[j]);
    }
    b += b_row;
  };
  for (; count >= Steps; count -= Steps) {
    OPCEL_UNROLL
    for (int i = 0; i < Steps; ++i) step(i);
    a += 2 * Steps;
  }
  for (; count > 0; --count) {
    step(0);
    a += 2;
  }
}

template <int D, int DV, class In, class Out, class Last>
struct AttentionBlockBf16 {
  static_assert(D % 4 == 0 && D >= 4 && D <= 256 && DV % 4 == 0 && DV >= 4 && DV <= 256, "head size");
  static constexpr int NV = 2;                             // vectors per tile
  static constexpr int R = W == 16 ? 12 : W == 8 ? 6 : 4;  // rows of a full tile
  static constexpr int Low = W == 16 ? 4 : 2;              // rows of a low tile
  static constexpr int VRow = round_up_to(DV, W);
  static constexpr int Rows = 24576 / VRow / R * R;  // query rows that share packed keys: 96 KB of sums
  static constexpr int Fit = 49152 / (D + VRow);     // keys: k^T and v in 96 KB
  static constexpr int Keys = (Fit > 384 ? 384 : Fit) / (NV * W) * (NV * W);
  static constexpr int SRow = Keys + W;
  static constexpr int PRow = 2 * SRow;  // weights lie where the scores were

  alignas(64) bf16 kt[Keys * D];
  alignas(64) bf16 vt[Keys * VRow];  // pairs of keys
  alignas(64) float s[R * SRow];
  alignas(64) bf16 q[R * D];
  alignas(64) float sums[Rows * VRow];
  float top[Rows + W], sum[Rows + W], decay[W];
  Last finish;

  // Panels of NV vectors of keys (the last may have fewer), each [D / 2][vectors * W] pairs; keys past `keys` are zero.
  OPCEL_INLINE void pack(const In* k, std::int64_t k_s, const In* v, std::int64_t v_s, std::int64_t keys, std::int64_t) {
    const std::int64_t vectors = ceil_div(keys, W);
    for (std::int64_t j = 0; j < vectors; ++j) {
      const std::int64_t panel = j / NV;
      const std::int64_t width = 2 * least(NV, vectors - panel * NV) * W;
      bf16* out = kt + panel * NV * W * D + 2 * (j % NV) * W;
      const int count = static_cast<int>(least(W, keys - j * W));
      const In* in = k + j * W * k_s;
      for (int d = 0; d < D; d += 2 * W) {
        const int dims = D - d < 2 * W ? D - d : 2 * W;
        vf t[W];
        OPCEL_UNROLL
        for (int i = 0; i < W; ++i) t[i] = i < count ? as_float(load_pairs_n(in + i * k_s + d, dims)) : vf{};
        transpose(t);
        OPCEL_UNROLL
        for (int i = 0; i < W; ++i)
          if (2 * i < dims) store_pairs(out + (d / 2 + i) * width, as_int(t[i]));
      }
    }
    const In none[W] = {};
    for (std::int64_t i = 0; i < keys; i += 2) {
      const In* from = v + i * v_s;
      const bool both = i + 1 < keys;
      bf16* to = vt + i * VRow;
      for (int d = 0; d < DV; d += W)
        store_pairs(to + 2 * d, interleave_n(from + d, both ? from + v_s + d : none, DV - d < W ? DV - d : W));
    }
  }

  template <int Height, int Vectors>
  OPCEL_INLINE void scores(std::int64_t key, std::int64_t width, float scale) {
    vf acc[Height][Vectors] = {};
    attention_dots<Height, Vectors, D>(acc, q, kt + key * D, 2 * width, D / 2);
    OPCEL_UNROLL
    for (int r = 0; r < Height; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < Vectors; ++j) store(s + r * SRow + key + j * W, acc[r][j] * scale);
    }
  }

  template <int Height, int Vectors>
  OPCEL_INLINE void values(const AttentionTile& at, Out* y, std::int64_t y_s, std::int64_t state, int col, int lanes) {
    float* before = sums + state * VRow + col;
    vf acc[Height][Vectors] = {};
    if (!at.first) {
      OPCEL_UNROLL
      for (int r = 0; r < Height; ++r) {
        if (r < at.rows) {
          OPCEL_UNROLL
          for (int j = 0; j < Vectors; ++j) acc[r][j] = load(before + r * VRow + j * W) * decay[r];
        }
      }
    }
    attention_dots<Height, Vectors, PRow>(acc, reinterpret_cast<const bf16*>(s), vt + 2 * col, 2 * VRow,
                                          ceil_div(at.count, 2));
    OPCEL_UNROLL
    for (int r = 0; r < Height; ++r) {
      if (r < at.rows) {
        const float part = at.last ? 1.0f / sum[state + r] : 1.0f;
        OPCEL_UNROLL
        for (int j = 0; j < Vectors; ++j) {
          if (!at.last)
            store(before + r * VRow + j * W, acc[r][j]);
          else
            attention_store(y + r * y_s + col + j * W, acc[r][j] * part, finish, lanes);
        }
      }
    }
  }

  // One tile of query rows times the keys of the block. state: the first row's index in top, sum and sums.
  template <int Height>
  __attribute__((noinline)) void tile(const AttentionTile& at, const In* from, std::int64_t q_s, float scale, Out* y,
                                      std::int64_t y_s, std::int64_t state) {
    if (at.mask_kind == 0) scale *= kLog2E;  // a mask's lowest numbers bear no factor
    for (int r = 0; r < Height; ++r) {
      const In* row = from + least(r, at.rows - 1) * q_s;
      int d = 0;
      for (; d + W <= D; d += W) store(q + r * D + d, load(row + d));
      if constexpr (D % W != 0) store_n(q + r * D + d, load_n(row + d, D % W), D % W);
    }
    std::int64_t j = 0;
    for (; j + (NV - 1) * W < at.count; j += NV * W) scores<Height, NV>(j, NV * W, scale);
    if (j < at.count) scores<Height, 1>(j, at.held > j + W ? NV * W : W, scale);
    attention_exponentials<Height, SRow, PRow>(at, s, reinterpret_cast<bf16*>(s), top + state, sum + state, decay);
    int col = 0;
    for (; col + NV * W <= DV; col += NV * W) values<Height, NV>(at, y, y_s, state, col, W);
    if constexpr (DV / W % NV != 0) {
      values<Height, 1>(at, y, y_s, state, col, W);
      col += W;
    }
    if constexpr (DV % W != 0) values<Height, 1>(at, y, y_s, state, col, DV - col);
  }
};

}  // namespace detail

// As attention_tasks. Scratch is on the stack, < 240 KB.
template <int D, int DV = D, class In, class Out, class Last>
void attention_bf16_tasks(const AttentionArgs<In, Out, Last>& args, std::int64_t begin, std::int64_t end) {
  detail::attention_blocks<detail::AttentionBlockBf16<D, DV, In, Out, Last>, DV>(args, begin, end);
}

}  // namespace opcel
