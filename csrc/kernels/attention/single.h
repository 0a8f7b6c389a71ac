// Attention of one query row a head, as in a decode step: keys and values are read where they lie, each once.
#pragma once

#include "kernels/attention/blockwise.h"

namespace opcel {
namespace detail {

template <int D, int DV, class Out, class Last>
struct AttentionRow {
  static_assert(D % W == 0 && D >= W && D <= 256 && DV % W == 0 && DV >= W && DV <= 256, "head size");
  static constexpr int R = 1, Low = 1, Rows = 1;
  static constexpr int NV = DV / W % 4 == 0 ? 4 : DV / W % 2 == 0 ? 2 : 1;  // vectors of values summed together
  static constexpr bool Direct = std::is_same_v<Out, float>;
  static constexpr int Keys = 1024, SRow = Keys + W;

  alignas(64) float s[SRow];
  alignas(64) float sums[Direct ? 1 : DV];
  float top[W] = {}, sum[W] = {}, decay[W];
  const float *k, *v;
  std::int64_t k_row, v_row;
  Last finish;

  OPCEL_INLINE void pack(const float* from_k, std::int64_t k_s, const float* from_v, std::int64_t v_s, std::int64_t,
                         std::int64_t) {
    k = from_k;
    v = from_v;
    k_row = k_s;
    v_row = v_s;
  }

  template <int Height>
  __attribute__((noinline)) void tile(const AttentionTile& at, const float* from, std::int64_t, float q_scale, Out* y,
                                      std::int64_t y_s, std::int64_t) {
    static_assert(Height == 1);
    if (at.mask_kind == 0) q_scale *= kLog2E;
    vf q[D / W];
    OPCEL_UNROLL
    for (int d = 0; d < D / W; ++d) q[d] = load(from + d * W) * q_scale;
    for (std::int64_t j = 0; j < at.count; j += W) {
      vf products[W];
      OPCEL_UNROLL
      for (int i = 0; i < W; ++i) {
        const float* key = k + least(j + i, at.count - 1) * k_row;
        products[i] = q[0] * load(key);
        OPCEL_UNROLL
        for (int d = 1; d < D / W; ++d) products[i] = fma(q[d], load(key + d * W), products[i]);
      }
      store(s + j, reduce_rows(products, AttentionSum{}));
    }
    attention_exponentials<1, SRow, SRow>(at, s, s, top, sum, decay);
    OPCEL_UNROLL
    for (int col = 0; col < DV; col += NV * W) {
      float* part;
      if constexpr (Direct)
        part = y;
      else
        part = sums;
      attention_values<1, NV, SRow>(at, s, v + col, v_row, decay, sum, part + col, DV, y + col, y_s, finish, W);
    }
  }
};

}  // namespace detail

// As attention_tasks, for args.sq = 1 and head sizes of whole vectors.
template <int D, int DV = D, class Out, class Last>
void attention_row_tasks(const AttentionArgs<float, Out, Last>& args, std::int64_t begin, std::int64_t end) {
  detail::attention_blocks<detail::AttentionRow<D, DV, Out, Last>, DV>(args, begin, end);
}

}  // namespace opcel
