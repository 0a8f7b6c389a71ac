// Attention of one query row a head, as in a decode step: keys and values are read where they lie, each once.
//
// W keys at a time: while they are scored, the values of the W before them are added up, weighted with the running
// softmax. So keys and values are read side by side, as two streams that wait for memory together. Where a step returns
// the keys and values with new ones appended, what is read is written there as it passes.
#pragma once

#include "kernels/attention/blockwise.h"

namespace opcel {

// Keys and values behind the `held` ones that `AttentionArgs` has, and where all of them are to lie. Strides in
// elements; the last axis is contiguous.
struct AttentionAppend {
  std::int64_t held;
  const float *k_new, *v_new;
  float *k_all, *v_all;
  std::int64_t k_new_b, k_new_h, k_new_s;
  std::int64_t v_new_b, v_new_h, v_new_s;
  std::int64_t k_all_b, k_all_h, k_all_s;
  std::int64_t v_all_b, v_all_h, v_all_s;
  bool streamed;  // past the caches, where they lie on whole vectors
};

namespace detail {

// What happens to rows that are read: nothing, or they are written elsewhere, through the caches or past them.
enum class Copy { none, stored, streamed };

// Rows of a head, and where they are written.
struct HeadRows {
  const float* from;
  std::int64_t step;
  float* to;
  std::int64_t to_step;

  OPCEL_INLINE HeadRows at(std::int64_t row) const { return {from + row * step, step, to + row * to_step, to_step}; }
};

// Looks up the pages of a row some time before it is read and written: W rows of 64 fill one of 4 KB, and to wait for
// both of their translations takes a quarter of the time.
OPCEL_INLINE void find(const HeadRows& row) { __builtin_prefetch(row.from), __builtin_prefetch(row.to, 1); }

template <Copy C>
OPCEL_INLINE vf pass(const float* from, float* to) {
  const vf v = load(from);
  if constexpr (C == Copy::stored) store(to, v);
  if constexpr (C == Copy::streamed) stream(to, v);
  return v;
}

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

  // Scores of the W keys k; the W values v, weighted.
  template <Copy C, bool Scores, bool Sums>
  OPCEL_INLINE vf step(const HeadRows& k, const HeadRows& v) {
    vf products[W];
    OPCEL_UNROLL
    for (int i = 0; i < W; ++i) {
      if constexpr (Scores) products[i] = product<C>(k.from + i * k.step, k.to + i * k.to_step);
      if constexpr (Sums) add<C>(weights[i], v.from + i * v.step, v.to + i * v.to_step);
    }
    if constexpr (Scores)
      return reduce_rows(products, AttentionSum{});
    else
      return vf{};
  }
  template <Copy C>
  OPCEL_INLINE vf product(const float* key, float* to) const {
    vf sum = q[0] * pass<C>(key, to);
    OPCEL_UNROLL
    for (int d = 1; d < D / W; ++d) sum = fma(q[d], pass<C>(key + d * W, to + d * W), sum);
    return sum;
  }
  template <Copy C>
  OPCEL_INLINE void add(float weight, const float* value, float* to) {
    OPCEL_UNROLL
    for (int d = 0; d < DV / W; ++d) accumulate(acc[d], set(weight), pass<C>(value + d * W, to + d * W));
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

// One head of one sample: the `held` keys and values k and v, and those after them up to `keys`, k_new and v_new.
template <Copy C, int D, int DV, class Out, class Last>
OPCEL_INLINE void attention_row(const AttentionArgs<float, Out, Last>& args, std::int64_t batch, std::int64_t head,
                                std::int64_t keys, std::int64_t held, HeadRows k, HeadRows v, HeadRows k_new,
                                HeadRows v_new) {
  const float* from = args.q + batch * args.q_b + head * args.q_h;
  Out* y = args.y + batch * args.y_b + head * args.y_h;
  AttentionRow<D, DV> row;
  row.mask = args.mask + batch * args.m_b + head * args.m_h;
  row.mask_kind = !args.mask ? 0 : args.m_k ? 1 : 2;
  const float scale = row.mask_kind == 0 ? args.scale * kLog2E : args.scale;
  OPCEL_UNROLL
  for (int d = 0; d < D / W; ++d) row.q[d] = load(from + d * W) * scale;
  const std::int64_t whole = least(held, keys) / W * W;
  if (whole > 0) {
    row.weigh(row.template step<C, true, false>(k, v), 0, keys);
    for (std::int64_t j = W; j < whole; j += W) {
      if constexpr (C != Copy::none) find(k.at(j + 2 * W)), find(v.at(j + W));
      row.weigh(row.template step<C, true, true>(k.at(j), v.at(j - W)), j, keys - j);
    }
    row.template step<C, false, true>(k, v.at(whole - W));
  }
  for (std::int64_t j = whole; j < keys; j += W) {
    constexpr Copy Kept = C == Copy::none ? C : Copy::stored;
    const int count = static_cast<int>(least(W, keys - j));
    vf products[W] = {};
    for (int i = 0; i < count; ++i) {
      const HeadRows key = j + i < held ? k.at(j + i) : k_new.at(j + i - held);
      products[i] = row.template product<Kept>(key.from, key.to);
    }
    row.weigh(reduce_rows(products, AttentionSum{}), j, count);
    for (int i = 0; i < count; ++i) {
      const HeadRows value = j + i < held ? v.at(j + i) : v_new.at(j + i - held);
      row.template add<Kept>(row.weights[i], value.from, value.to);
    }
  }
  const float inverse = 1.0f / hsum(row.total);
  OPCEL_UNROLL
  for (int d = 0; d < DV / W; ++d) attention_store(y + d * W, row.acc[d] * inverse, args.last, W);
}

}  // namespace detail

// As attention_tasks, for args.sq = 1 and head sizes of whole vectors.
template <int D, int DV = D, class Out, class Last>
void attention_row_tasks(const AttentionArgs<float, Out, Last>& args, std::int64_t begin, std::int64_t end) {
  using namespace detail;
  const std::int64_t keys = args.causal ? least(args.sk, args.past + 1) : args.sk;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t head = task % args.heads, batch = task / args.heads;
    const std::int64_t kv = head / (args.heads / args.kv_heads);
    if (keys <= 0) {
      Out* y = args.y + batch * args.y_b + head * args.y_h;
      for (int d = 0; d < DV; d += W)
        attention_store(y + d, set(args.sk > 0 ? __builtin_nanf("") : 0.0f), args.last, W);
      continue;
    }
    const HeadRows k{args.k + batch * args.k_b + kv * args.k_h, args.k_s, nullptr, 0};
    const HeadRows v{args.v + batch * args.v_b + kv * args.v_h, args.v_s, nullptr, 0};
    attention_row<Copy::none, D, DV>(args, batch, head, keys, keys, k, v, k, v);
  }
}

// The same for keys and values that are appended to: args.sk counts all of them, args.k and args.v are those held. The
// query sees them all. The first head of those that share keys and values writes them.
template <int D, int DV = D, class Out, class Last>
void attention_append_tasks(const AttentionArgs<float, Out, Last>& args, const AttentionAppend& append,
                            std::int64_t begin, std::int64_t end) {
  using namespace detail;
  const std::int64_t group = args.heads / args.kv_heads, held = append.held;
  const auto on_vectors = [](const float* p, std::int64_t b, std::int64_t h, std::int64_t s) {
    return (reinterpret_cast<std::uintptr_t>(p) / sizeof(float) | static_cast<std::uint64_t>(b | h | s)) % W == 0;
  };
  const bool streams = append.streamed &&
                       on_vectors(append.k_all, append.k_all_b, append.k_all_h, append.k_all_s) &&
                       on_vectors(append.v_all, append.v_all_b, append.v_all_h, append.v_all_s);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t head = task % args.heads, batch = task / args.heads, kv = head / group;
    HeadRows k{args.k + batch * args.k_b + kv * args.k_h, args.k_s,
               append.k_all + batch * append.k_all_b + kv * append.k_all_h, append.k_all_s};
    HeadRows v{args.v + batch * args.v_b + kv * args.v_h, args.v_s,
               append.v_all + batch * append.v_all_b + kv * append.v_all_h, append.v_all_s};
    const HeadRows k_new{append.k_new + batch * append.k_new_b + kv * append.k_new_h, append.k_new_s, k.at(held).to,
                         k.to_step};
    const HeadRows v_new{append.v_new + batch * append.v_new_b + kv * append.v_new_h, append.v_new_s, v.at(held).to,
                         v.to_step};
    if (head % group != 0)
      attention_row<Copy::none, D, DV>(args, batch, head, args.sk, held, k, v, k_new, v_new);
    else if (streams)
      attention_row<Copy::streamed, D, DV>(args, batch, head, args.sk, held, k, v, k_new, v_new);
    else
      attention_row<Copy::stored, D, DV>(args, batch, head, args.sk, held, k, v, k_new, v_new);
  }
  if (streams) streamed();
}

}  // namespace opcel
