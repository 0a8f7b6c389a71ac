// Attention of one query row a head, as in a decode step: keys and values are read where they lie, each once.
//
// W keys at a time: while they are scored, the values of the W before them are added up, weighted with the running softmax.
// So keys and values are read side by side, as two streams that wait for memory together.
#pragma once

#include "kernels/attention/blockwise.h"

namespace opcel {
namespace detail {

template <int D, int DV>
struct AttentionRow {
  static_assert(D % W == 0 && D >= W && D <= 256 && DV % W == 0 && DV >= W && DV <= 256, "head size");
  static constexpr float Low = -__builtin_inff();

  vf q[D / W];
  vf acc[DV / W] = {};  // of exp(score - base) v, as `total` of exp(score - base)
  vf total = {};
  float top = Low, base = 0;
  alignas(64) float weights[W];  // of the W keys scored last
  const float* mask;             // of the first key
  int mask_kind;                 // 0 none, 1 a row, 2 one value

  // Scores of W keys from k on; W values from v on, weighted.
  template <bool Scores, bool Sums>
  OPCEL_INLINE vf step(const float* k, std::int64_t k_s, const float* v, std::int64_t v_s) {
    vf products[W];
    OPCEL_UNROLL
    for (int i = 0; i < W; ++i) {
      if constexpr (Scores) products[i] = product(k + i * k_s);
      if constexpr (Sums) add(weights[i], v + i * v_s);
    }
    if constexpr (Scores)
      return reduce_rows(products, AttentionSum{});
    else
      return vf{};
  }
  // Of fewer than W, in the first lanes.
  OPCEL_INLINE vf scores(const float* k, std::int64_t k_s, int count) const {
    vf products[W] = {};
    for (int i = 0; i < count; ++i) products[i] = product(k + i * k_s);
    return reduce_rows(products, AttentionSum{});
  }
  OPCEL_INLINE vf product(const float* key) const {
    vf sum = q[0] * load(key);
    OPCEL_UNROLL
    for (int d = 1; d < D / W; ++d) sum = fma(q[d], load(key + d * W), sum);
    return sum;
  }
  OPCEL_INLINE void add(float weight, const float* value) {
    OPCEL_UNROLL
    for (int d = 0; d < DV / W; ++d) accumulate(acc[d], set(weight), load(value + d * W));
  }

  // The weights of `count` keys from `key` on, by their scores. A maximum that grows takes its share off what was summed.
  OPCEL_INLINE void weigh(vf score, std::int64_t key, std::int64_t count) {
    const int lanes = static_cast<int>(least(W, count));
    if (mask_kind == 1) score += load_n(mask + key, lanes);
    if (mask_kind == 2) score += *mask;
    if (lanes < W) score = select(first_lanes(lanes), score, set(Low));
    const float most = hmax(score);
    if (!(most <= top)) {
      base = most;
      const vf decay = power(set(top), set(base));
      OPCEL_UNROLL
      for (int d = 0; d < DV / W; ++d) acc[d] *= decay;
      total *= decay;
      top = most;
    }
    const vf e = power(score, set(base));
    total += e;
    store(weights, e);
  }
  OPCEL_INLINE vf power(vf score, vf from) const {
    return mask_kind == 0 ? attention_power<0>(score, from) : attention_power<1>(score, from);
  }
};

}  // namespace detail

// As attention_tasks, for args.sq = 1 and head sizes of whole vectors.
template <int D, int DV = D, class Out, class Last>
void attention_row_tasks(const AttentionArgs<float, Out, Last>& args, std::int64_t begin, std::int64_t end) {
  using namespace detail;
  const std::int64_t keys = args.causal ? least(args.sk, args.past + 1) : args.sk, whole = keys / W * W;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t head = task % args.heads, batch = task / args.heads;
    const std::int64_t kv = head / (args.heads / args.kv_heads);
    const float* from = args.q + batch * args.q_b + head * args.q_h;
    const float* k = args.k + batch * args.k_b + kv * args.k_h;
    const float* v = args.v + batch * args.v_b + kv * args.v_h;
    Out* y = args.y + batch * args.y_b + head * args.y_h;
    if (keys <= 0) {
      for (int d = 0; d < DV; d += W)
        attention_store(y + d, set(args.sk > 0 ? __builtin_nanf("") : 0.0f), args.last, W);
      continue;
    }
    AttentionRow<D, DV> row;
    row.mask = args.mask + batch * args.m_b + head * args.m_h;
    row.mask_kind = !args.mask ? 0 : args.m_k ? 1 : 2;
    const float scale = row.mask_kind == 0 ? args.scale * kLog2E : args.scale;
    OPCEL_UNROLL
    for (int d = 0; d < D / W; ++d) row.q[d] = load(from + d * W) * scale;
    if (whole > 0) {
      row.weigh(row.template step<true, false>(k, args.k_s, v, args.v_s), 0, keys);
      for (std::int64_t j = W; j < whole; j += W) {
        row.weigh(row.template step<true, true>(k + j * args.k_s, args.k_s, v + (j - W) * args.v_s, args.v_s), j,
                  keys - j);
      }
      row.template step<false, true>(k, args.k_s, v + (whole - W) * args.v_s, args.v_s);
    }
    if (whole < keys) {
      const int rest = static_cast<int>(keys - whole);
      row.weigh(row.scores(k + whole * args.k_s, args.k_s, rest), whole, rest);
      for (int i = 0; i < rest; ++i) row.add(row.weights[i], v + (whole + i) * args.v_s);
    }
    const float inverse = 1.0f / hsum(row.total);
    OPCEL_UNROLL
    for (int d = 0; d < DV / W; ++d) attention_store(y + d * W, row.acc[d] * inverse, args.last, W);
  }
}

}  // namespace opcel
