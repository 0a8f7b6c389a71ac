// Attention, y = softmax(scale q k^T + mask) v, block by block of keys with a running softmax.
//
// A task takes some query rows of one head. Per block of keys it packs k^T once, then takes the rows tile by tile through
// scores, exponentials and the product with v; a tile's scores stay in the first-level cache. The blocks and the order of
// summation depend on the shape alone, so results don't depend on how query rows are spread over tasks.
//
// A row whose keys are all masked by -inf (or hidden by causality) is NaN, as in softmax. Scratch is on the stack, < 128 KB.
#pragma once

#include "base/tiling.h"
#include "base/transpose.h"
#include "base/vmath.h"

namespace opcel {

// Strides in elements; the last axis (head size) of q, k, v and y is contiguous.
struct AttentionArgs {
  const float *q, *k, *v;
  const float* mask;  // added to the scores, [batch][head][query][key]; null: none
  float* y;
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
};

inline std::int64_t attention_task_count(const AttentionArgs& args) {
  return args.batch * args.heads * detail::ceil_div(args.sq, args.q_per_task);
}

namespace detail {

constexpr int round_up_to(int n, int unit) { return (n + unit - 1) / unit * unit; }

template <int D, int DV>
struct AttentionBlock {
  static_assert(D % 4 == 0 && D >= 4 && D <= 256 && DV % 4 == 0 && DV >= 4 && DV <= 256, "head size");
  static constexpr int NV = 2;                  // vectors per tile
  static constexpr int R = W == 16 ? 12 : 6;    // rows of a full tile
  static constexpr int Low = R / 3;             // rows of a low tile
  static constexpr int Rows = 480;              // query rows that share a packing of k^T
  static constexpr bool CopyV = DV % W != 0;
  static constexpr int VRow = round_up_to(DV, W);
  // Keys: k^T and, where v needs padding, v's copy, in 64 and 96 KB.
  static constexpr int Fit = CopyV ? 22528 / (D + VRow) : 16384 / D;
  static constexpr int Keys = (Fit > 512 ? 512 : Fit) / (NV * W) * (NV * W);
  static constexpr int SRow = Keys + W;

  alignas(64) float kt[Keys * D];
  alignas(64) float vt[CopyV ? Keys * VRow : 1];
  alignas(64) float s[R * SRow];
  alignas(64) float q[R * D];
  float top[Rows + R], sum[Rows + R], decay[R];
};

// acc += a b over k rows of b.
template <int R, int NV, int ARow>
OPCEL_INLINE void attention_product(vf (&acc)[R][NV], const float* a, const float* b, std::int64_t b_row, std::int64_t k) {
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

// One row of scores to exponentials. visible: keys that the row sees, count: keys that the tile's product reads, mask_count:
// elements of the mask's row from here on.
template <int Mask /* 0 none, 1 a row, 2 one value */>
OPCEL_INLINE void attention_exponentials(float* s, std::int64_t count, std::int64_t visible, const float* mask,
                                         std::int64_t mask_count, float& top, float& sum, float& decay) {
  vf most = set(-__builtin_inff());
  for (std::int64_t j = 0; j < count; j += W) {
    vf v = load(s + j);
    if constexpr (Mask == 1) v += j + W <= mask_count ? load(mask + j) : load_n(mask + j, static_cast<int>(mask_count - j));
    if constexpr (Mask == 2) v += *mask;
    if (j + W > visible) v = select(first_lanes(static_cast<int>(visible - j)), v, set(-__builtin_inff()));
    if (Mask != 0 || j + W > visible) store(s + j, v);
    most = max(most, v);
  }
  const float old = top, high = hmax(most);
  const float now = old > high ? old : high;
  // Nothing seen yet: subtract 0, so that exp(-inf) gives 0 and not NaN.
  const float base = now == -__builtin_inff() ? 0.0f : now;
  vf total{};
  for (std::int64_t j = 0; j < count; j += W) {
    const vf e = exp_nonpositive(load(s + j) - base);
    store(s + j, e);
    total += e;
  }
  top = now;
  decay = exp_nonpositive(old - base);
  sum = sum * decay + hsum(total);
}

struct AttentionTile {
  const float* v;
  std::int64_t v_row;
  float* y;
  std::int64_t y_s;
  std::int64_t rows;
  std::int64_t count, held;  // keys of the block that some row sees, keys packed
  bool first, last;
};

template <int R, int NV, int SRow>
OPCEL_INLINE void attention_values(const AttentionTile& tile, const float* s, const float* decay, const float* sum, int col, int lanes) {
  vf acc[R][NV] = {};
  if (!tile.first) {
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      if (r < tile.rows) {
        OPCEL_UNROLL
        for (int j = 0; j < NV; ++j) {
          const float* y = tile.y + r * tile.y_s + col + j * W;
          acc[r][j] = (lanes == W ? load(y) : load_n(y, lanes)) * decay[r];
        }
      }
    }
  }
  attention_product<R, NV, SRow>(acc, s, tile.v + col, tile.v_row, tile.count);
  OPCEL_UNROLL
  for (int r = 0; r < R; ++r) {
    if (r < tile.rows) {
      const float scale = tile.last ? 1.0f / sum[r] : 1.0f;
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) {
        float* y = tile.y + r * tile.y_s + col + j * W;
        const vf v = acc[r][j] * scale;
        if (lanes == W)
          store(y, v);
        else
          store_n(y, v, lanes);
      }
    }
  }
}

// The keys from key0 on that this block holds, times the query rows [row, row + rows), rows <= R. `state`: the row's index in
// top and sum.
template <int R, int D, int DV>
__attribute__((noinline)) void attention_tile(const AttentionArgs& args, AttentionBlock<D, DV>& block, AttentionTile tile, const float* q,
                                              const float* mask, std::int64_t row, std::int64_t state, std::int64_t key0) {
  using Block = AttentionBlock<D, DV>;
  constexpr int NV = Block::NV, SRow = Block::SRow;
  for (int r = 0; r < R; ++r) {
    const float* from = q + least(row + r, args.sq - 1) * args.q_s;
    for (int d = 0; d < D; d += 4)
      for (int i = 0; i < 4; ++i) block.q[r * D + d + i] = r < tile.rows ? from[d + i] * args.scale : 0.0f;
  }
  std::int64_t j = 0;
  for (; j + (NV - 1) * W < tile.count; j += NV * W) attention_scores<R, NV, D, SRow>(block.q, block.kt + j * D, NV * W, block.s + j);
  if (j < tile.count) {
    const std::int64_t width = tile.held > j + W ? NV * W : W;
    attention_scores<R, 1, D, SRow>(block.q, block.kt + j * D, width, block.s + j);
  }
  float* top = block.top + state;
  float* sum = block.sum + state;
  for (int r = 0; r < tile.rows; ++r) {
    std::int64_t visible = tile.count;
    if (args.causal) visible = least(visible, args.past + row + r + 1 - key0);
    if (visible < 0) visible = 0;
    float* s = block.s + r * SRow;
    if (!args.mask)
      attention_exponentials<0>(s, tile.count, visible, nullptr, 0, top[r], sum[r], block.decay[r]);
    else if (args.m_k)
      attention_exponentials<1>(s, tile.count, visible, mask + (row + r) * args.m_q + key0, args.sk - key0, top[r], sum[r], block.decay[r]);
    else
      attention_exponentials<2>(s, tile.count, visible, mask + (row + r) * args.m_q, 0, top[r], sum[r], block.decay[r]);
  }
  int col = 0;
  for (; col + NV * W <= DV; col += NV * W) attention_values<R, NV, SRow>(tile, block.s, block.decay, sum, col, W);
  if constexpr (DV / W % NV != 0) {
    attention_values<R, 1, SRow>(tile, block.s, block.decay, sum, col, W);
    col += W;
  }
  if constexpr (DV % W != 0) attention_values<R, 1, SRow>(tile, block.s, block.decay, sum, col, DV - col);
}

}  // namespace detail

// Tasks [begin, end) of attention_task_count(args): batch, head, then groups of q_per_task query rows, the last fastest.
// D: head size of q and k, DV: of v and y; multiples of 4 up to 256.
template <int D, int DV = D>
void attention_tasks(const AttentionArgs& args, std::int64_t begin, std::int64_t end) {
  using Block = detail::AttentionBlock<D, DV>;
  using detail::least;
  Block block;
  const std::int64_t groups = detail::ceil_div(args.sq, args.q_per_task);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t head = task / groups % args.heads, batch = task / groups / args.heads;
    const std::int64_t kv = head / (args.heads / args.kv_heads);
    const float* q = args.q + batch * args.q_b + head * args.q_h;
    const float* k = args.k + batch * args.k_b + kv * args.k_h;
    const float* v = args.v + batch * args.v_b + kv * args.v_h;
    const float* mask = args.mask + batch * args.m_b + head * args.m_h;
    float* y = args.y + batch * args.y_b + head * args.y_h;
    const std::int64_t task_last = least(args.sq, (task % groups + 1) * args.q_per_task);
    for (std::int64_t first = task % groups * args.q_per_task; first < task_last; first += Block::Rows) {
      const std::int64_t last = least(task_last, first + Block::Rows);
      // Keys that some query row before `row` sees.
      const auto visible = [&](std::int64_t row) { return args.causal ? least(args.sk, args.past + row) : args.sk; };
      for (std::int64_t i = 0; i < last - first; ++i) {
        block.top[i] = -__builtin_inff();
        block.sum[i] = 0.0f;
        if (visible(first + i + 1) <= 0)
          for (int d = 0; d < DV; ++d) y[(first + i) * args.y_s + d] = args.sk > 0 ? __builtin_nanf("") : 0.0f;
      }
      const std::int64_t keys = visible(last);
      for (std::int64_t key0 = 0; key0 < keys; key0 += Block::Keys) {
        const std::int64_t held = least(Block::Keys, keys - key0);
        detail::attention_pack_k<D, Block::NV>(k + key0 * args.k_s, args.k_s, held, block.kt);
        if constexpr (Block::CopyV)
          for (std::int64_t i = 0; i < held; ++i)
            for (int d = 0; d < Block::VRow; ++d) block.vt[i * Block::VRow + d] = d < DV ? v[(key0 + i) * args.v_s + d] : 0.0f;
        for (std::int64_t row = first; row < last;) {
          const std::int64_t rest = last - row;
          const int height = rest > 2 * Block::Low ? Block::R : rest > 1 ? Block::Low : 1;
          const std::int64_t rows = least(height, rest), seen = visible(row + rows);
          if (seen > key0) {
            const detail::AttentionTile tile{Block::CopyV ? block.vt : v + key0 * args.v_s,
                                             Block::CopyV ? Block::VRow : args.v_s,
                                             y + row * args.y_s,
                                             args.y_s,
                                             rows,
                                             least(held, seen - key0),
                                             held,
                                             key0 == 0,
                                             seen <= key0 + held};
            if (height == Block::R)
              detail::attention_tile<Block::R>(args, block, tile, q, mask, row, row - first, key0);
            else if (height == Block::Low)
              detail::attention_tile<Block::Low>(args, block, tile, q, mask, row, row - first, key0);
            else
              detail::attention_tile<1>(args, block, tile, q, mask, row, row - first, key0);
          }
          row += rows;
        }
      }
    }
  }
}

}  // namespace opcel
