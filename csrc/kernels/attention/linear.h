// Linear attention: a matrix that keys write to and queries read, step by step. Its columns do not touch one another,
// so a task owns some columns of one head and runs through all steps.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/tiling.h"

namespace opcel {

template <class T>
struct LinearAttentionArgs {
  const T* q;      // [batch][steps][heads * group][size]
  const T* k;      // [batch][steps][heads][size]
  const T* v;      // [batch][steps][heads][width]
  const T* past;   // [batch][heads][size][width]; null: zero
  const T* decay;  // [batch][steps][decay_heads][decay_size], each the heads' and sizes' number or 1; null: one
  const T* beta;   // [batch][steps][beta_heads]; null: v is written as it is
  T* y;            // [batch][steps][heads * group][width]
  T* state;        // as past: the last state, in which the task works
  std::int64_t batch, steps, heads, group, size, width;
  std::int64_t decay_heads, decay_size, beta_heads;
};

constexpr std::int64_t kLinearColumns = 64;

template <class T>
void linear_attention_tasks(const LinearAttentionArgs<T>& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t chunks = detail::ceil_div(args.width, kLinearColumns);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first = task % chunks * kLinearColumns, head = task / chunks % args.heads;
    const std::int64_t b = task / chunks / args.heads;
    const std::int64_t n = detail::least(kLinearColumns, args.width - first);
    const std::int64_t base = (b * args.heads + head) * args.size * args.width + first;
    T* const state = args.state + base;
    for (std::int64_t d = 0; d < args.size; ++d)
      for (std::int64_t m = 0; m < n; ++m)
        state[d * args.width + m] = args.past ? args.past[base + d * args.width + m] : T(0);
    for (std::int64_t t = 0; t < args.steps; ++t) {
      const std::int64_t step = b * args.steps + t;
      const T* const k = args.k + (step * args.heads + head) * args.size;
      const T* const v = args.v + (step * args.heads + head) * args.width + first;
      if (args.decay) {
        const T* const decay = args.decay + (step * args.decay_heads + head % args.decay_heads) * args.decay_size;
        for (std::int64_t d = 0; d < args.size; ++d) {
          const T factor = decay[d % args.decay_size];
          for (std::int64_t m = 0; m < n; ++m) state[d * args.width + m] *= factor;
        }
      }
      T written[kLinearColumns];
      if (args.beta) {
        T seen[kLinearColumns] = {};
        for (std::int64_t d = 0; d < args.size; ++d)
          for (std::int64_t m = 0; m < n; ++m) seen[m] += k[d] * state[d * args.width + m];
        const T rate = args.beta[step * args.beta_heads + head % args.beta_heads];
        for (std::int64_t m = 0; m < n; ++m) written[m] = rate * (v[m] - seen[m]);
      } else {
        for (std::int64_t m = 0; m < n; ++m) written[m] = v[m];
      }
      for (std::int64_t d = 0; d < args.size; ++d)
        for (std::int64_t m = 0; m < n; ++m) state[d * args.width + m] += k[d] * written[m];
      for (std::int64_t g = head * args.group; g < (head + 1) * args.group; ++g) {
        const std::int64_t row = step * args.heads * args.group + g;
        const T* const q = args.q + row * args.size;
        T read[kLinearColumns] = {};
        for (std::int64_t d = 0; d < args.size; ++d)
          for (std::int64_t m = 0; m < n; ++m) read[m] += q[d] * state[d * args.width + m];
        for (std::int64_t m = 0; m < n; ++m) args.y[row * args.width + first + m] = read[m];
      }
    }
  }
}

}  // namespace opcel
