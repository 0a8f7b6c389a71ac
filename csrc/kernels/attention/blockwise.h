// Attention, y = softmax(scale q k^T + mask) v, block by block of keys with a running softmax.
//
// A task takes some query rows of one head. Per block of keys it packs k^T once, then takes the rows tile by tile
// through scores, exponentials and the product with v; a tile's scores stay in the first-level cache. The blocks and
// the order of summation depend on the shape alone, so results don't depend on how query rows are spread over tasks.
//
// A row whose keys are all masked by -inf (or hidden by causality) is NaN, as in softmax. Scratch is on the stack, <
// 256 KB. Results that are no f32 are what `Last` makes of them.
#pragma once

#include "base/narrow.h"
#include "base/tiling.h"
#include "base/transpose.h"
#include "base/vmath.h"

namespace opcel {

// Results as they are. Another `Last` has such an `apply`, which is given the first `lanes` lanes.
struct AsTheyAre {
  template <bool Tail>
  OPCEL_INLINE vf apply(vf v, int) const {
    return v;
  }
};

// Strides in elements; the last axis (head size) of q, k, v and y is contiguous.
template <class In = float, class Out = float, class Last = AsTheyAre>
struct AttentionArgs {
  const In *q, *k, *v;
  const float* mask;  // added to the scores, [batch][head][query][key]; null: none
  Out* y;
  std::int64_t q_b, q_h, q_s;
  std::int64_t k_b, k_h, k_s;
  std::int64_t v_b, v_h, v_s;
  std::int64_t m_b, m_h, m_q, m_k;  // 0 along an axis that is broadcast; m_k is 0 or 1
  std::int64_t y_b, y_h, y_s;
  std::int64_t batch, heads, kv_heads;  // heads a multiple of kv_heads; head h reads kv head h / (heads / kv_heads)
  std::int64_t sq, sk;
  float scale;
  bool causal;        // query i sees keys 0 .. past + i
  std::int64_t past;  // read if causal
  std::int64_t q_per_task;
  Last last = {};
};

template <class In, class Out, class Last>
OPCEL_INLINE std::int64_t attention_task_count(const AttentionArgs<In, Out, Last>& args) {
  return args.batch * args.heads * detail::ceil_div(args.sq, args.q_per_task);
}

namespace detail {

constexpr int round_up_to(int n, int unit) { return (n + unit - 1) / unit * unit; }

struct AttentionTile {
  const float* mask;             // of the first row, from the block's first key on
  std::int64_t m_q, mask_count;  // mask_count: elements of the mask's row from there on
  std::int64_t rows;
  std::int64_t count, held;  // keys of the block that some row sees, keys packed
  std::int64_t visible,
      visible_step;  // keys that the first row sees (may be beyond the block, or negative), and a row more
  int mask_kind;     // 0 none, 1 a row, 2 one value
  bool first, last;
};

// The first lanes (<= W) of a result, to y.
template <class Out, class Last>
OPCEL_INLINE void attention_store(Out* y, vf v, const Last& last, int lanes) {
  if (lanes == W)
    store(y, last.template apply<false>(v, W));
  else
    store_t<true>(y, last.template apply<true>(v, lanes), lanes);
}

template <int D, int DV, class Out, class Last>
struct AttentionBlock {
  static_assert(D % 4 == 0 && D >= 4 && D <= 256 && DV % 4 == 0 && DV >= 4 && DV <= 256, "head size");
  static constexpr int NV = 2;                             // vectors per tile
  static constexpr int R = W == 16 ? 12 : W == 8 ? 6 : 4;  // rows of a full tile
  static constexpr int Low = W == 16 ? 4 : 2;              // rows of a low tile
  static constexpr int VRow = round_up_to(DV, W);
  static constexpr bool Direct = std::is_same_v<Out, float>;  // sums over some keys lie where the result will
  // Query rows that share a packing of k^T: where the sums lie here, 96 KB of them.
  static constexpr int Rows = Direct || VRow < 64 ? 480 : 24576 / VRow / R * R;
  static constexpr int Fit = 24576 / (D + VRow);  // keys: k^T and the copy of v in 96 KB
  static constexpr int Keys = (Fit > 384 ? 384 : Fit) / (NV * W) * (NV * W);
  static constexpr int SRow = Keys + W;

  alignas(64) float kt[Keys * D];
  alignas(64) float vt[Keys * VRow];
  alignas(64) float s[R * SRow];
  alignas(64) float q[R * D];
  alignas(64) float sums[Direct ? 1 : Rows * VRow];
  float top[Rows + W], sum[Rows + W], decay[W];
  const float* v;
  std::int64_t v_row;
  Last finish;

  // Keys and values of a block. `rows` is how many query rows will use it.
  OPCEL_INLINE void pack(const float* k, std::int64_t k_s, const float* from_v, std::int64_t v_s, std::int64_t keys,
                         std::int64_t rows);

  // One tile of query rows times the keys of the block. state: the first row's index in top and sum.
  template <int Height>
  __attribute__((noinline)) void tile(const AttentionTile& tile, const float* from, std::int64_t q_s, float q_scale,
                                      Out* y, std::int64_t y_s, std::int64_t state);
};

// acc += a b over k rows of b.
template <int R, int NV, int ARow>
OPCEL_INLINE void attention_product(vf (&acc)[R][NV], const float* a, const float* b, std::int64_t b_row,
                                    std::int64_t k) {
  constexpr int Steps = 4;
  const auto step = [&](int i) __attribute__((always_inline)) {
    vf panel[NV];
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) panel[j] = load(b + j * W);
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      const vf x = set(a[r * ARow + i]);
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) accumulate(acc[r][j], x, panel[j]);
    }
    b += b_row;
  };
  for (; k >= Steps; k -= Steps) {
    OPCEL_UNROLL
    for (int i = 0; i < Steps; ++i) step(i);
    a += Steps;
  }
  for (; k > 0; --k) {
    step(0);
    ++a;
  }
}

// Panels of NV vectors of keys (the last may have fewer), each [D][vectors * W]; keys past `keys` are zero.
template <int D, int NV>
OPCEL_INLINE void attention_pack_k(const float* k, std::int64_t k_s, std::int64_t keys, float* kt) {
  const std::int64_t vectors = ceil_div(keys, W);
  for (std::int64_t j = 0; j < vectors; ++j) {
    const std::int64_t panel = j / NV;
    const std::int64_t width = least(NV, vectors - panel * NV) * W;
    float* out = kt + panel * NV * W * D + j % NV * W;
    const int count = static_cast<int>(least(W, keys - j * W));
    const float* in = k + j * W * k_s;
    for (int d = 0; d < D; d += W) {
      const int dims = D - d < W ? D - d : W;
      vf t[W];
      OPCEL_UNROLL
      for (int i = 0; i < W; ++i) {
        if (i < count)
          t[i] = dims == W ? load(in + i * k_s + d) : load_n(in + i * k_s + d, dims);
        else
          t[i] = vf{};
      }
      transpose(t);
      OPCEL_UNROLL
      for (int i = 0; i < W; ++i)
        if (i < dims) store(out + (d + i) * width, t[i]);
    }
  }
}

template <int R, int NV, int D, int SRow>
OPCEL_INLINE void attention_scores(const float* q, const float* kt, std::int64_t kt_row, float* s) {
  vf acc[R][NV] = {};
  attention_product<R, NV, D>(acc, q, kt, kt_row, D);
  OPCEL_UNROLL
  for (int r = 0; r < R; ++r) {
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) store(s + r * SRow + j * W, acc[r][j]);
  }
}

struct AttentionMax {
  OPCEL_INLINE vf operator()(vf a, vf b) const { return max(a, b); }
};
struct AttentionSum {
  OPCEL_INLINE vf operator()(vf a, vf b) const { return a + b; }
};

// exp(score - top) of scores in the units of this kind of mask: without one ln 2, so that powers of two serve.
template <int Mask>
OPCEL_INLINE vf attention_power(vf score, vf top) {
  if constexpr (Mask == 0)
    return exp2_minus(top - score);
  else
    return exp_nonpositive(score - top);
}

// Scores to exponentials, with the rows' running maximum, sum and the factor by which what was summed before decays.
template <int R, int SRow, int PRow, int Mask, class P>
OPCEL_INLINE void attention_exponentials_of(const AttentionTile& tile, float* scores, P* weights, float* top,
                                            float* sum, float* decay) {
  const vf low = set(-__builtin_inff());
  vf per_row[R];
  for (int r = 0; r < R; ++r) {
    float* s = scores + r * SRow;
    const float* mask = tile.mask + least(r, tile.rows - 1) * tile.m_q;
    const std::int64_t visible = least(tile.count, tile.visible + r * tile.visible_step);
    vf most = low;
    std::int64_t j = 0;
    for (; j + W <= visible; j += W) {
      vf v = load(s + j);
      if constexpr (Mask == 1) v += load(mask + j);
      if constexpr (Mask == 2) v += *mask;
      if constexpr (Mask != 0) store(s + j, v);
      most = max(most, v);
    }
    for (; j < tile.count; j += W) {
      vf v = load(s + j);
      if constexpr (Mask == 1) v += load_n(mask + j, static_cast<int>(least(W, tile.mask_count - j)));
      if constexpr (Mask == 2) v += *mask;
      v = select(first_lanes(static_cast<int>(visible - j)), v, low);
      store(s + j, v);
      most = max(most, v);
    }
    per_row[r] = most;
  }
  const vf old = load(top), now = max(old, reduce_rows(per_row, AttentionMax{}));
  // Nothing seen yet: subtract 0, so that exp(-inf) gives 0 and not NaN.
  const vf base = select(now == low, vf{}, now), factor = attention_power<Mask>(old, base);
  float subtract[W];
  store(subtract, base);
  for (int r = 0; r < R; ++r) {
    float* s = scores + r * SRow;
    vf total = {};
    for (std::int64_t j = 0; j < tile.count; j += W) {
      const vf e = attention_power<Mask>(load(s + j), set(subtract[r]));
      store(weights + r * PRow + j, e);
      total += e;
    }
    per_row[r] = total;
  }
  store_n(top, now, R);
  store_n(sum, fma(load(sum), factor, reduce_rows(per_row, AttentionSum{})), R);
  store(decay, factor);
}

// Rows of scores are SRow apart, those of weights, which may begin where the scores do, PRow.
template <int R, int SRow, int PRow, class P>
OPCEL_INLINE void attention_exponentials(const AttentionTile& tile, float* scores, P* weights, float* top, float* sum,
                                         float* decay) {
  if (tile.mask_kind == 0)
    attention_exponentials_of<R, SRow, PRow, 0>(tile, scores, weights, top, sum, decay);
  else if (tile.mask_kind == 1)
    attention_exponentials_of<R, SRow, PRow, 1>(tile, scores, weights, top, sum, decay);
  else
    attention_exponentials_of<R, SRow, PRow, 2>(tile, scores, weights, top, sum, decay);
}

// part: the sums over the keys before, rows p_s apart.
template <int R, int NV, int SRow, class Out, class Last>
OPCEL_INLINE void attention_values(const AttentionTile& tile, const float* s, const float* v, std::int64_t v_row,
                                   const float* decay, const float* sum, float* part, std::int64_t p_s, Out* out,
                                   std::int64_t y_s, const Last& last, int lanes) {
  vf acc[R][NV] = {};
  if (!tile.first) {
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      if (r < tile.rows) {
        OPCEL_UNROLL
        for (int j = 0; j < NV; ++j) {
          const float* y = part + r * p_s + j * W;
          acc[r][j] = (lanes == W ? load(y) : load_n(y, lanes)) * decay[r];
        }
      }
    }
  }
  attention_product<R, NV, SRow>(acc, s, v, v_row, tile.count);
  OPCEL_UNROLL
  for (int r = 0; r < R; ++r) {
    if (r < tile.rows) {
      const float scale = tile.last ? 1.0f / sum[r] : 1.0f;
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) {
        const vf value = acc[r][j] * scale;
        if (tile.last)
          attention_store(out + r * y_s + j * W, value, last, lanes);
        else
          attention_store(part + r * p_s + j * W, value, AsTheyAre{}, lanes);
      }
    }
  }
}

template <int D, int DV, class Out, class Last>
OPCEL_INLINE void AttentionBlock<D, DV, Out, Last>::pack(const float* k, std::int64_t k_s, const float* from_v,
                                                         std::int64_t v_s, std::int64_t keys, std::int64_t rows) {
  attention_pack_k<D, NV>(k, k_s, keys, kt);
  // A copy of v for its padding, and so that its rows, often pages apart, are read from there once.
  const bool copied = DV % W != 0 || rows > R;
  v = copied ? vt : from_v;
  v_row = copied ? VRow : v_s;
  if (!copied) return;
  for (std::int64_t i = 0; i < keys; ++i) {
    const float* from = from_v + i * v_s;
    float* to = vt + i * VRow;
    int d = 0;
    for (; d + W <= DV; d += W) store(to + d, load(from + d));
    if constexpr (DV % W != 0) store(to + d, load_n(from + d, DV - d));
  }
}

template <int D, int DV, class Out, class Last>
template <int Height>
void AttentionBlock<D, DV, Out, Last>::tile(const AttentionTile& at, const float* from, std::int64_t q_s, float q_scale,
                                            Out* y, std::int64_t y_s, std::int64_t state) {
  if (at.mask_kind == 0) q_scale *= kLog2E;  // a mask's lowest numbers bear no factor
  for (int r = 0; r < Height; ++r) {
    const float* row = from + least(r, at.rows - 1) * q_s;
    int d = 0;
    for (; d + W <= D; d += W) store(q + r * D + d, load(row + d) * q_scale);
    for (; d < D; ++d) q[r * D + d] = row[d] * q_scale;
  }
  std::int64_t j = 0;
  for (; j + (NV - 1) * W < at.count; j += NV * W)
    attention_scores<Height, NV, D, SRow>(q, kt + j * D, NV * W, s + j);
  if (j < at.count) {
    const std::int64_t width = at.held > j + W ? NV * W : W;
    attention_scores<Height, 1, D, SRow>(q, kt + j * D, width, s + j);
  }
  attention_exponentials<Height, SRow, SRow>(at, s, s, top + state, sum + state, decay);
  const auto values = [&](auto vectors, int col, int lanes) __attribute__((always_inline)) {
    float* part;
    if constexpr (Direct)
      part = y;
    else
      part = sums + state * VRow;
    attention_values<Height, decltype(vectors)::value, SRow>(at, s, v + col, v_row, decay, sum + state, part + col,
                                                             Direct ? y_s : VRow, y + col, y_s, finish, lanes);
  };
  int col = 0;
  for (; col + NV * W <= DV; col += NV * W) values(Int<NV>{}, col, W);
  if constexpr (DV / W % NV != 0) {
    values(Int<1>{}, col, W);
    col += W;
  }
  if constexpr (DV % W != 0) values(Int<1>{}, col, DV - col);
}

// Tasks [begin, end) of attention_task_count(args), each with the scratch and the arithmetic of Block.
template <class Block, int DV, class In, class Out, class Last>
OPCEL_INLINE void attention_blocks(const AttentionArgs<In, Out, Last>& args, std::int64_t begin, std::int64_t end) {
  Block block;
  block.finish = args.last;
  const std::int64_t groups = ceil_div(args.sq, args.q_per_task);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t head = task / groups % args.heads, batch = task / groups / args.heads;
    const std::int64_t kv = head / (args.heads / args.kv_heads);
    const In* q = args.q + batch * args.q_b + head * args.q_h;
    const In* k = args.k + batch * args.k_b + kv * args.k_h;
    const In* v = args.v + batch * args.v_b + kv * args.v_h;
    const float* mask = args.mask + batch * args.m_b + head * args.m_h;
    Out* y = args.y + batch * args.y_b + head * args.y_h;
    const std::int64_t task_last = least(args.sq, (task % groups + 1) * args.q_per_task);
    for (std::int64_t first = task % groups * args.q_per_task; first < task_last; first += Block::Rows) {
      const std::int64_t last = least(task_last, first + Block::Rows);
      // Keys that some query row before `row` sees.
      const auto visible = [&](std::int64_t row) { return args.causal ? least(args.sk, args.past + row) : args.sk; };
      for (std::int64_t i = 0; i < last - first; ++i) {
        block.top[i] = -__builtin_inff();
        block.sum[i] = 0.0f;
        if (visible(first + i + 1) <= 0)
          for (int d = 0; d < DV; d += W)
            attention_store(y + (first + i) * args.y_s + d, set(args.sk > 0 ? __builtin_nanf("") : 0.0f), args.last,
                            static_cast<int>(least(W, DV - d)));
      }
      const std::int64_t keys = visible(last);
      for (std::int64_t key0 = 0; key0 < keys; key0 += Block::Keys) {
        const std::int64_t held = least(Block::Keys, keys - key0);
        block.pack(k + key0 * args.k_s, args.k_s, v + key0 * args.v_s, args.v_s, held, last - first);
        for (std::int64_t row = first; row < last;) {
          const std::int64_t rest = last - row;
          const int height = rest > 2 * Block::Low ? Block::R : rest > 1 ? Block::Low : 1;
          const std::int64_t rows = least(height, rest), seen = visible(row + rows);
          if (seen > key0) {
            AttentionTile tile;
            tile.mask = mask + row * args.m_q + key0 * args.m_k;
            tile.m_q = args.m_q;
            tile.mask_count = args.sk - key0;
            tile.rows = rows;
            tile.count = least(held, seen - key0);
            tile.held = held;
            tile.visible = visible(row + 1) - key0;
            tile.visible_step = args.causal;
            tile.first = key0 == 0;
            tile.last = seen <= key0 + held;
            tile.mask_kind = !args.mask ? 0 : args.m_k ? 1 : 2;
            const In* from = q + row * args.q_s;
            Out* to = y + row * args.y_s;
            const std::int64_t state = row - first;
            if (height == Block::R)
              block.template tile<Block::R>(tile, from, args.q_s, args.scale, to, args.y_s, state);
            else if (height == Block::Low)
              block.template tile<Block::Low>(tile, from, args.q_s, args.scale, to, args.y_s, state);
            else
              block.template tile<1>(tile, from, args.q_s, args.scale, to, args.y_s, state);
          }
          row += rows;
        }
      }
    }
  }
}

}  // namespace detail

// Tasks [begin, end) of attention_task_count(args): batch, head, then groups of q_per_task query rows, the last
// fastest. D: head size of q and k, DV: of v and y; multiples of 4 up to 256.
template <int D, int DV = D, class Out, class Last>
void attention_tasks(const AttentionArgs<float, Out, Last>& args, std::int64_t begin, std::int64_t end) {
  detail::attention_blocks<detail::AttentionBlock<D, DV, Out, Last>, DV>(args, begin, end);
}

}  // namespace opcel
