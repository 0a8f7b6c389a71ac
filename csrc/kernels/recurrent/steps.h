// One step of a recurrent layer: each call advances every direction by one time step, its tasks share out hidden units.
//
// The inputs' part of the gates is computed before, for all steps at once, by a matrix product. What is left is bound
// by reading R: it is packed so that a block of W hidden units is one stream, and a task gets the same blocks in every
// step, so each core keeps its part of R in its own cache. R in bf16 is half of it, in bytes a quarter; the hidden
// state is then rounded for the product (for bytes on a grid of its own for each sequence and step) and kept in f32, as
// are the sums.
#pragma once

#include "base/tiling.h"
#include "base/vec.h"
#include "base/vmath.h"
#include "kernels/recurrent/rounded.h"

namespace opcel {

struct RecurrentArgs {
  const float* gates;  // [steps][batch][directions][G][hidden], strides below
  std::int64_t gates_t, gates_b;
  // [directions][ceil(hidden / W)] of, float: [hidden][G][W]; bf16: [ceil(hidden / 2)][G][W][2]; s8: the sums over all
  // k, s32 [G][W], then [ceil(hidden / 4)][G][W][4]; zero past the last unit
  const void* r;
  const float* bias;     // [directions][2][G][hidden]; only gru's last row is read, the others are in gates; or null
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
OPCEL_INLINE void recurrent_product(vf (&acc)[N][B][G], const float* r, std::int64_t panel,
                                    const float* const (&before)[B], std::int64_t n) {
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

template <int N>
using Size = std::integral_constant<int, N>;

// A row of the hidden state before a step, or null for zero.
inline const float* state_before(const RecurrentArgs& args, std::int64_t step, std::int64_t direction,
                                 std::int64_t row) {
  if (step == 0) return args.hidden0 ? args.hidden0 + (direction * args.batch + row) * args.hidden : nullptr;
  const std::int64_t t = args.reverse || direction == 1 ? args.steps - step : step - 1;
  return args.y + t * args.y_t + direction * args.y_d + row * args.y_b;
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
                                              std::int64_t block, std::int64_t first, const StateRows<Weight>& rows) {
  constexpr int G = Cell::gates;
  const std::int64_t n = args.hidden, panel = recurrent_panel<Weight>(n, G), blocks = ceil_div(n, W);
  const bool backward = args.reverse || direction == 1;
  const std::int64_t t = backward ? args.steps - 1 - step : step;
  const float* before[B];
  for (int b = 0; b < B; ++b) before[b] = state_before(args, step, direction, first + b);
  vf acc[N][B][G] = {};
  if (const Weight* r = static_cast<const Weight*>(args.r) + (direction * blocks + block) * panel; before[0]) {
    if constexpr (std::is_same_v<Weight, float>) {
      recurrent_product<U>(acc, r, panel, before, n);
    } else {
      if constexpr (std::is_same_v<Weight, bf16>)
        add_groups(acc, r, panel, rows.row(first), rows.width(), n);
      else
        product_of_bytes(acc, r, panel, rows.row(first), rows.width(), rows.grid(first), n,
                         args.r_scale + direction * G * n + block * W, n - block * W);
    }
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

// Tasks [begin, end) of one step. Steps are called in order; all tasks of one end before the next begins. A tile takes
// N blocks where a task has as many left in a direction, else one. Rows: how many rows of the batch it takes,
// descending, the last 1.
template <class Cell, class Weight, int N, int... Rows>
void recurrent_tasks(const RecurrentArgs& args, std::int64_t step, std::int64_t begin, std::int64_t end) {
  const auto tile = [&](auto wide, auto height, const auto&... at) __attribute__((always_inline)) {
    constexpr int Blocks = decltype(wide)::value, Height = decltype(height)::value;
    constexpr int Sums = detail::recurrent_sums(Cell::gates * N * Height);
    detail::recurrent_tile<Cell, Weight, Sums, Blocks, Height>(args, step, at...);
  };
  const std::int64_t blocks = detail::ceil_div(args.hidden, W);
  detail::StateRows<Weight> state(args.hidden);
  for (std::int64_t first = 0, stop; first < args.batch; first = stop) {
    stop = detail::least(args.batch, first + detail::least(args.batch, state.most()));
    std::int64_t held = -1;
    for (std::int64_t i = 0; i < end - begin; ++i) {
      // Every other step backwards: where R does not fit the cache, what the last step read at its end is still there.
      const std::int64_t task = step % 2 != 0 ? end - 1 - i : begin + i;
      std::int64_t at = task * args.blocks_per_task;
      const std::int64_t last = detail::least(args.directions * blocks, at + args.blocks_per_task);
      while (at < last) {
        const std::int64_t direction = at / blocks, block = at % blocks;
        const bool wide = at + N <= last && block + N <= blocks;
        if (direction != held)
          state.take(first, stop, [&](std::int64_t row) { return detail::state_before(args, step, direction, row); });
        held = direction;
        for (std::int64_t row = first; row < stop;) {
          const std::int64_t height = detail::Cut<Rows...>::next(stop - row);
          ((height != Rows ? void()
            : wide ? tile(detail::Size<N>{}, detail::Size<Rows>{}, direction, block, row, state)
                   : tile(detail::Size<1>{}, detail::Size<Rows>{}, direction, block, row, state)),
           ...);
          row += height;
        }
        at += wide ? N : 1;
      }
    }
  }
}

}  // namespace opcel
