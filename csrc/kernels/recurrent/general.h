// Recurrent layers of any form: weights, biases and lengths as they lie in memory, any activations, one sequence of one
// direction a task. steps.h is far faster for what it takes.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/tiling.h"

namespace opcel {

enum class Function {
  sigmoid, tanh, relu, affine, leaky_relu, thresholded_relu, scaled_tanh, hard_sigmoid, elu, softsign, softplus,
};

template <class T>
struct Activation {
  Function function;
  T alpha, beta;

  T operator()(T x) const {
    switch (function) {
      case Function::sigmoid: return 1 / (1 + std::exp(-x));
      case Function::tanh: return std::tanh(x);
      case Function::relu: return x > 0 || x != x ? x : 0;
      case Function::affine: return alpha * x + beta;
      case Function::leaky_relu: return x >= 0 || x != x ? x : alpha * x;
      case Function::thresholded_relu: return x > alpha || x != x ? x : 0;
      case Function::scaled_tanh: return alpha * std::tanh(beta * x);
      case Function::hard_sigmoid: {
        const T y = alpha * x + beta;
        return y < 0 ? 0 : y > 1 ? 1 : y;
      }
      case Function::elu: return x >= 0 ? x : alpha * std::expm1(x);
      case Function::softsign: return x / (1 + std::abs(x));
      case Function::softplus: return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
    }
    return x;
  }
};

template <class T>
struct GeneralRecurrentArgs {
  const T* gates;  // x's part of the gates, without biases: element (step, sequence, direction, gate row)
  std::int64_t gates_step, gates_sequence;
  const T* r;                   // [directions][gates * n][n]
  const T* bias;                // [directions][2][gates * n], that of w and that of r; null: zero
  const T* h;                   // [directions][batch][n]; null: zero
  const T* c;                   // as h
  const std::int32_t* lengths;  // [batch], cut to [0, steps]; null: all are `steps`
  const T* peepholes;           // [directions][3][n]: input, output, forget; null: zero
  T* y;                         // rows of n, zero behind a sequence's end
  std::int64_t y_step, y_direction, y_sequence;
  T* last;  // [directions][batch][n], the cell state, which an lstm works in; null for other cells
  std::int64_t steps, batch, n;
  bool reverse, coupled;  // the first direction runs backwards; an lstm's forget gate is 1 - input
  T clip;                 // bound of what goes into a gate's function; 0: none
  Activation<T> functions[2][3];
};

namespace detail {

template <class T>
T inner_product(const T* a, const T* b, std::int64_t n) {
  constexpr int lanes = 16;
  T sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int k = 0; k < lanes; ++k) sums[k] += a[i + k] * b[i + k];
  for (; i < n; ++i) sums[i % lanes] += a[i] * b[i];
  for (int half = lanes / 2; half; half /= 2)
    for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
  return sums[0];
}

// One direction of one sequence.
template <class T, int Gates>
struct Sequence {
  const GeneralRecurrentArgs<T>& args;
  std::int64_t direction, sequence;
  const T* r;
  const T* bias;  // that of w; that of r lies Gates * n behind it
  const Activation<T>* functions;

  Sequence(const GeneralRecurrentArgs<T>& a, std::int64_t d, std::int64_t s)
      : args(a),
        direction(d),
        sequence(s),
        r(a.r + d * Gates * a.n * a.n),
        bias(a.bias ? a.bias + d * 2 * Gates * a.n : nullptr),
        functions(a.functions[d]) {}

  const T* gates(std::int64_t t) const {
    return args.gates + t * args.gates_step + sequence * args.gates_sequence + direction * Gates * args.n;
  }
  T input_bias(std::int64_t row) const { return bias ? bias[row] : 0; }
  T state_bias(std::int64_t row) const { return bias ? bias[Gates * args.n + row] : 0; }
  T product(std::int64_t row, const T* h) const { return h ? inner_product(r + row * args.n, h, args.n) : 0; }
  T total(const T* x, std::int64_t row, const T* h) const {
    return x[row] + input_bias(row) + product(row, h) + state_bias(row);
  }
  T clipped(T x) const { return args.clip > 0 ? (x > args.clip ? args.clip : x < -args.clip ? -args.clip : x) : x; }
};

}  // namespace detail

struct GeneralLstm {
  static constexpr int gates = 4;

  template <class T>
  static void step(const detail::Sequence<T, gates>& s, const T* x, const T* h, T* y) {
    const std::int64_t n = s.args.n;
    T* const c = s.args.last + (s.direction * s.args.batch + s.sequence) * n;
    const T* const peep = s.args.peepholes ? s.args.peepholes + s.direction * 3 * n : nullptr;
    const auto see = [&](int gate, std::int64_t j) { return peep ? peep[gate * n + j] * c[j] : T(0); };
    for (std::int64_t j = 0; j < n; ++j) {
      const T input = s.functions[0](s.clipped(s.total(x, j, h) + see(0, j)));
      const T forget = s.args.coupled ? 1 - input : s.functions[0](s.clipped(s.total(x, 2 * n + j, h) + see(2, j)));
      c[j] = forget * c[j] + input * s.functions[1](s.clipped(s.total(x, 3 * n + j, h)));
      y[j] = s.functions[0](s.clipped(s.total(x, n + j, h) + see(1, j))) * s.functions[2](c[j]);
    }
  }
};

template <bool ResetAfter>
struct GeneralGru {
  static constexpr int gates = 3;
  static constexpr std::int64_t kMaxHidden = 8192;  // units of a layer that resets before the product

  template <class T>
  static void step(const detail::Sequence<T, gates>& s, const T* x, const T* h, T* y) {
    const std::int64_t n = s.args.n;
    const auto gate = [&](std::int64_t row) { return s.functions[0](s.clipped(s.total(x, row, h))); };
    T scaled[ResetAfter ? 1 : kMaxHidden];
    if constexpr (!ResetAfter)
      for (std::int64_t j = 0; j < n; ++j) scaled[j] = h ? gate(n + j) * h[j] : T(0);
    for (std::int64_t j = 0; j < n; ++j) {
      T part;
      if constexpr (ResetAfter)
        part = gate(n + j) * (s.product(2 * n + j, h) + s.state_bias(2 * n + j));
      else
        part = s.product(2 * n + j, scaled) + s.state_bias(2 * n + j);
      const T hidden = s.functions[1](s.clipped(x[2 * n + j] + s.input_bias(2 * n + j) + part));
      const T update = gate(j);
      y[j] = (1 - update) * hidden + (h ? update * h[j] : T(0));
    }
  }
};

struct GeneralRnn {
  static constexpr int gates = 1;

  template <class T>
  static void step(const detail::Sequence<T, gates>& s, const T* x, const T* h, T* y) {
    for (std::int64_t j = 0; j < s.args.n; ++j) y[j] = s.functions[0](s.clipped(s.total(x, j, h)));
  }
};

// Tasks [begin, end) of directions * batch.
template <class Cell, class T>
void general_recurrent_tasks(const GeneralRecurrentArgs<T>& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t task = begin; task < end; ++task) {
    const detail::Sequence<T, Cell::gates> s(args, task / args.batch, task % args.batch);
    const bool backward = s.direction == 1 || args.reverse;
    std::int64_t length = args.lengths ? args.lengths[s.sequence] : args.steps;
    length = length < 0 ? 0 : detail::least(length, args.steps);
    const auto row = [&](std::int64_t t) {
      return args.y + t * args.y_step + s.direction * args.y_direction + s.sequence * args.y_sequence;
    };
    if (args.last)
      for (std::int64_t j = task * args.n; j < (task + 1) * args.n; ++j) args.last[j] = args.c ? args.c[j] : T(0);
    const T* h = args.h ? args.h + task * args.n : nullptr;
    for (std::int64_t i = 0; i < length; ++i) {
      const std::int64_t t = backward ? length - 1 - i : i;
      Cell::step(s, s.gates(t), h, row(t));
      h = row(t);
    }
    for (std::int64_t t = length; t < args.steps; ++t)
      for (std::int64_t j = 0; j < args.n; ++j) row(t)[j] = 0;
  }
}

}  // namespace opcel
