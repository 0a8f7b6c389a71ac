// One step of a recurrent layer: each call advances every direction by one time step, its tasks share out hidden units.
//
// The inputs' part of the gates is computed before, for all steps at once, by a matrix product. What is left is bound by
// reading R: it is packed so that a block of W hidden units is one stream, and a task gets the same blocks in every
// step, so each core keeps its part of R in its own cache. R in bf16 is half of it, in bytes a quarter; the hidden state is
// then rounded for the product (for bytes on a grid of its own for each sequence and step) and kept in f32, as are the sums.
#pragma once

#include "base/bf16.h"
#include "base/bytes.h"
#include "base/tiling.h"
#include "base/vec.h"
#include "base/vmath.h"

namespace opcel {

struct RecurrentArgs {
  const float* gates;  // [steps][batch][directions][G][hidden], strides below
  std::int64_t gates_t, gates_b;
  // float: [directions][ceil(hidden / W)][hidden][G][W]; bf16: [directions][ceil(hidden / W)][ceil(hidden / 2)][G][W][2];
  // s8: [directions][ceil(hidden / W)] of the sums over all k, s32 [G][W], then [ceil(hidden / 4)][G][W][4];
  // zero past the last unit
  const void* r;
  const float* bias;     // [directions][2][G][hidden]; only gru's last row is read here, the others are in gates; or null
  const float* hidden0;  // [directions][batch][hidden], or null for zero
  const float* cell0;    // likewise; lstm only
  float* y;              // [steps][directions][batch][hidden], strides below
  std::int64_t y_t, y_d, y_b;
  float* cell;  // [directions][batch][hidden]: the cell state from step to step, and in the end the last; lstm only
  std::int64_t steps, directions, batch, hidden;
  std::int64_t blocks_per_task;
  bool reverse;  // the first direction runs backwards too
  const float* r_scale = nullptr;  // [directions][G][hidden], of r in bytes
};

// Where a block of one row of the batch lies.
struct RecurrentPlace {
  const float* gates;  // of the block's first unit; `hidden` elements from gate to gate
  const float* before;  // the hidden state before, or null for zero
  float* y;
  const float* cell_before;  // or null for zero
  float* cell;
  const float* bias;
};

// Cells: the number of gates, and what a block of units becomes. acc[g] is R's part of gate g.
struct LstmCell {
  static constexpr int gates = 4;
  template <bool Tail>
  static OPCEL_INLINE void apply(const vf (&acc)[4], const RecurrentPlace& at, std::int64_t hidden, int lanes) {
    const vf in = sigmoid(acc[0] + load_t<Tail>(at.gates, lanes));
    const vf out = sigmoid(acc[1] + load_t<Tail>(at.gates + hidden, lanes));
    const vf forget = sigmoid(acc[2] + load_t<Tail>(at.gates + 2 * hidden, lanes));
    vf cell = in * tanh(acc[3] + load_t<Tail>(at.gates + 3 * hidden, lanes));
    if (at.cell_before) cell = fma(forget, load_t<Tail>(at.cell_before, lanes), cell);
    store_t<Tail>(at.cell, cell, lanes);
    store_t<Tail>(at.y, out * tanh(cell), lanes);
  }
};

// The reset gate scales the product with R (linear_before_reset).
struct GruCell {
  static constexpr int gates = 3;
  template <bool Tail>
  static OPCEL_INLINE void apply(const vf (&acc)[3], const RecurrentPlace& at, std::int64_t hidden, int lanes) {
    const vf update = sigmoid(acc[0] + load_t<Tail>(at.gates, lanes));
    const vf reset = sigmoid(acc[1] + load_t<Tail>(at.gates + hidden, lanes));
    const vf product = at.bias ? acc[2] + load_t<Tail>(at.bias, lanes) : acc[2];
    const vf fresh = tanh(fma(reset, product, load_t<Tail>(at.gates + 2 * hidden, lanes)));
    vf y = (1.0f - update) * fresh;
    if (at.before) y = fma(update, load_t<Tail>(at.before, lanes), y);
    store_t<Tail>(at.y, y, lanes);
  }
};

template <bool Relu>
struct RnnCell {
  static constexpr int gates = 1;
  template <bool Tail>
  static OPCEL_INLINE void apply(const vf (&acc)[1], const RecurrentPlace& at, std::int64_t, int lanes) {
    const vf v = acc[0] + load_t<Tail>(at.gates, lanes);
    store_t<Tail>(at.y, Relu ? max(vf{}, v) : tanh(v), lanes);
  }
};

namespace detail {

// Partial sums of a gate: enough independent additions to hide their latency.
constexpr int recurrent_sums(int accumulators) {
  return accumulators >= 8 ? 1 : accumulators >= 4 ? 2 : accumulators >= 2 ? 4 : 8;
}

// R's part of the gates of N blocks, `panel` elements of R apart, for B rows of the batch, each gate in U interleaved
// partial sums.
template <int U, int N, int B, int G>
OPCEL_INLINE void recurrent_product(vf (&acc)[N][B][G], const float* r, std::int64_t panel, const float* const (&before)[B],
                                    std::int64_t n) {
  vf part[U][N][B][G] = {};
  std::int64_t k = 0;
  const auto step = [&](int u, std::int64_t at) __attribute__((always_inline)) {
    OPCEL_UNROLL
    for (int i = 0; i < N; ++i) {
      vf weights[G];
      OPCEL_UNROLL
      for (int g = 0; g < G; ++g) weights[g] = load(r + i * panel + g * W);
      OPCEL_UNROLL
      for (int b = 0; b < B; ++b) {
        const vf h = set(before[b][at]);
        OPCEL_UNROLL
        for (int g = 0; g < G; ++g) accumulate(part[u][i][b][g], h, weights[g]);
      }
    }
    r += G * W;
  };
  for (; k + U <= n; k += U) {
    OPCEL_UNROLL
    for (int u = 0; u < U; ++u) step(u, k + u);
  }
  if constexpr (U > 1)
    for (; k < n; ++k) step(0, k);
  OPCEL_UNROLL
  for (int i = 0; i < N; ++i) {
    OPCEL_UNROLL
    for (int b = 0; b < B; ++b) {
      OPCEL_UNROLL
      for (int g = 0; g < G; ++g) {
        acc[i][b][g] = part[0][i][b][g];
        OPCEL_UNROLL
        for (int u = 1; u < U; ++u) acc[i][b][g] += part[u][i][b][g];
      }
    }
  }
}

template <int U, int N, int B, int G>
OPCEL_INLINE void recurrent_product(vf (&acc)[N][B][G], const bf16* r, std::int64_t panel, const float* const (&before)[B],
                                    std::int64_t n) {
  vf sum[N][B][G] = {};
  bf16 h[B][kChunk];
  for (std::int64_t first = 0; first < n; first += kChunk) {
    const std::int64_t count = least(kChunk, n - first);
    for (int b = 0; b < B; ++b) {
      round_row(h[b], before[b] + first, count);
      if (count % 2 != 0) h[b][count] = {};
    }
    for (std::int64_t k = 0; k < count; k += 2, r += G * W * 2) {
      OPCEL_UNROLL
      for (int i = 0; i < N; ++i) {
        pairs weights[G];
        OPCEL_UNROLL
        for (int g = 0; g < G; ++g) weights[g] = load_pairs(r + i * panel + g * W * 2);
        OPCEL_UNROLL
        for (int b = 0; b < B; ++b) {
          const pairs x = set_pair(h[b] + k);
          OPCEL_UNROLL
          for (int g = 0; g < G; ++g) dot(sum[i][b][g], x, weights[g]);
        }
      }
    }
  }
  OPCEL_UNROLL
  for (int i = 0; i < N; ++i) {
    OPCEL_UNROLL
    for (int b = 0; b < B; ++b) {
      OPCEL_UNROLL
      for (int g = 0; g < G; ++g) acc[i][b][g] = sum[i][b][g];
    }
  }
}

// The grid of u8 that reaches from a row's least number to its largest and holds 0: numbers are (code - zero) * scale.
struct RowGrid {
  vf scale, zero;

  RowGrid() = default;
  RowGrid(const float* row, std::int64_t n) {
    vf low{}, high{};
    std::int64_t k = 0;
    for (; k + W <= n; k += W) {
      low = min(low, load(row + k));
      high = max(high, load(row + k));
    }
    for (; k < n; ++k) {
      low = min(low, set(row[k]));
      high = max(high, set(row[k]));
    }
    const float least = hmin(low), width = hmax(high) - least;
    scale = set((width == 0.0f ? 1.0f : width) / 255.0f);
    zero = cut(round_even(set(-least) / scale));
  }

  static OPCEL_INLINE vf cut(vf v) { return min(set(255.0f), max(vf{}, v)); }

  // The codes of `n` numbers, with those of up to three zeros behind them.
  OPCEL_INLINE void codes(std::uint8_t* to, const float* row, std::int64_t n) const {
    std::int64_t k = 0;
    for (; k + W <= n; k += W) store(to + k, cut(round_even(load(row + k) / scale) + zero));
    for (; k < n; ++k) to[k] = static_cast<std::uint8_t>(cut(round_even(set(row[k]) / scale) + zero)[0]);
    for (; k % 4 != 0; ++k) to[k] = 0;
  }
};

// As above with R in bytes: sums of codes, exact, less what the zero point adds to them; `scales` are those of the first
// block's units, n from gate to gate, of which `left` are there.
template <int N, int B, int G>
OPCEL_INLINE void recurrent_product(vf (&acc)[N][B][G], const std::int8_t* r, std::int64_t panel, const float* const (&before)[B],
                                    std::int64_t n, const float* scales, std::int64_t left) {
  RowGrid grid[B];
  for (int b = 0; b < B; ++b) grid[b] = RowGrid(before[b], n);
  vi sum[N][B][G];
  OPCEL_UNROLL
  for (int i = 0; i < N; ++i) {
    OPCEL_UNROLL
    for (int b = 0; b < B; ++b) {
      OPCEL_UNROLL
      for (int g = 0; g < G; ++g) sum[i][b][g] = load_quads(r + i * panel + g * W * 4) * -detail::nearest(grid[b].zero);
    }
  }
  r += G * W * 4;
  std::uint8_t h[B][kChunk];
  for (std::int64_t first = 0; first < n; first += kChunk) {
    const std::int64_t count = least(kChunk, n - first);
    for (int b = 0; b < B; ++b) grid[b].codes(h[b], before[b] + first, count);
    for (std::int64_t k = 0; k < count; k += 4, r += G * W * 4) {
      OPCEL_UNROLL
      for (int i = 0; i < N; ++i) {
        quads weights[G];
        OPCEL_UNROLL
        for (int g = 0; g < G; ++g) weights[g] = load_quads(r + i * panel + g * W * 4);
        OPCEL_UNROLL
        for (int b = 0; b < B; ++b) {
          const quads x = set_quads(h[b] + k);
          OPCEL_UNROLL
          for (int g = 0; g < G; ++g) dot(sum[i][b][g], x, weights[g]);
        }
      }
    }
  }
  for (int i = 0; i < N; ++i) {
    const int lanes = static_cast<int>(least(W, left - i * W));
    for (int b = 0; b < B; ++b)
      for (int g = 0; g < G; ++g)
        acc[i][b][g] = scaled(sum[i][b][g], grid[b].scale * load_t<true>(scales + g * n + i * W, lanes));
  }
}

// Elements of R in a block.
template <class Weight>
constexpr std::int64_t recurrent_panel(std::int64_t n, int gates) {
  if (sizeof(Weight) == 1) return (n + 7) / 4 * 4 * gates * W;
  return (sizeof(Weight) == 2 ? (n + 1) / 2 * 2 : n) * gates * W;
}

// N blocks of hidden units from `block` on, rows [first, first + B) of the batch.
template <class Cell, class Weight, int U, int N, int B>
__attribute__((noinline)) void recurrent_tile(const RecurrentArgs& args, std::int64_t step, std::int64_t direction,
                                              std::int64_t block, std::int64_t first) {
  constexpr int G = Cell::gates;
  const std::int64_t n = args.hidden, panel = recurrent_panel<Weight>(n, G), blocks = ceil_div(n, W);
  const bool backward = args.reverse || direction == 1;
  const std::int64_t t = backward ? args.steps - 1 - step : step;
  const float* before[B];
  for (int b = 0; b < B; ++b) {
    const std::int64_t row = first + b;
    if (step > 0)
      before[b] = args.y + (backward ? t + 1 : t - 1) * args.y_t + direction * args.y_d + row * args.y_b;
    else
      before[b] = args.hidden0 ? args.hidden0 + (direction * args.batch + row) * n : nullptr;
  }
  vf acc[N][B][G] = {};
  if (const Weight* r = static_cast<const Weight*>(args.r) + (direction * blocks + block) * panel; before[0]) {
    if constexpr (sizeof(Weight) == 1)
      recurrent_product(acc, r, panel, before, n, args.r_scale + direction * G * n + block * W, n - block * W);
    else
      recurrent_product<U>(acc, r, panel, before, n);
  }
  for (int i = 0; i < N; ++i) {
    const std::int64_t unit = (block + i) * W;
    const int lanes = static_cast<int>(least(W, n - unit));
    for (int b = 0; b < B; ++b) {
      const std::int64_t row = first + b, state = (direction * args.batch + row) * n + unit;
      const float* cell_before = step > 0 ? args.cell : args.cell0;
      const RecurrentPlace at{args.gates + t * args.gates_t + row * args.gates_b + direction * G * n + unit,
                              before[b] ? before[b] + unit : nullptr,
                              args.y + t * args.y_t + direction * args.y_d + row * args.y_b + unit,
                              cell_before ? cell_before + state : nullptr,
                              args.cell ? args.cell + state : nullptr,
                              args.bias ? args.bias + (direction * 2 * G + 2 * G - 1) * n + unit : nullptr};
      if (lanes == W)
        Cell::template apply<false>(acc[i][b], at, n, W);
      else
        Cell::template apply<true>(acc[i][b], at, n, lanes);
    }
  }
}

}  // namespace detail

// Number of tasks of a step: blocks of all directions, in groups.
inline std::int64_t recurrent_task_count(const RecurrentArgs& args) {
  return detail::ceil_div(args.directions * detail::ceil_div(args.hidden, W), args.blocks_per_task);
}

// Tasks [begin, end) of one step. Steps are called in order; all tasks of one end before the next begins. A tile takes N
// blocks where a task has as many left in a direction, else one. Rows: how many rows of the batch it takes, descending,
// the last 1.
template <class Cell, class Weight, int N, int... Rows>
void recurrent_tasks(const RecurrentArgs& args, std::int64_t step, std::int64_t begin, std::int64_t end) {
  using detail::recurrent_tile;
  const std::int64_t blocks = detail::ceil_div(args.hidden, W);
  for (std::int64_t i = 0; i < end - begin; ++i) {
    // Every other step backwards: where R does not fit the cache, what the last step read at its end is still there.
    const std::int64_t task = step % 2 != 0 ? end - 1 - i : begin + i;
    std::int64_t at = task * args.blocks_per_task;
    const std::int64_t last = detail::least(args.directions * blocks, at + args.blocks_per_task);
    while (at < last) {
      const std::int64_t direction = at / blocks, block = at % blocks;
      const bool wide = at + N <= last && block + N <= blocks;
      for (std::int64_t row = 0; row < args.batch;) {
        const std::int64_t height = detail::Cut<Rows...>::next(args.batch - row);
        ((height != Rows ? void()
          : wide ? recurrent_tile<Cell, Weight, detail::recurrent_sums(Cell::gates * N * Rows), N, Rows>(args, step, direction, block, row)
                 : recurrent_tile<Cell, Weight, detail::recurrent_sums(Cell::gates * N * Rows), 1, Rows>(args, step, direction, block, row)),
         ...);
        row += height;
      }
      at += wide ? N : 1;
    }
  }
}

}  // namespace opcel
