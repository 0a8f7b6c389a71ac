// The k first elements of each line in ascending or descending order, chosen by a heap that lies in the result.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/vec.h"

namespace opcel {

/// Whether a comes before b in ascending order; NaN is the largest, and equal to itself.
template <class T>
inline bool ascends(T a, T b) {
  return (a < b) | ((b != b) & (a == a));
}

struct TopkArgs {
  std::int64_t n, inner, k;
  std::int64_t lines;     // outer * inner; element i of a line lies at i * inner
  std::int64_t per_task;  // lines of a task
};

/// Number: what elements are compared as.
template <class T, class Number, bool Largest>
class TopkLine {
 public:
  TopkLine(const T* x, std::int64_t* index, std::int64_t step) : x_(x), index_(index), step_(step) {}

  /// The first k of n elements, in order.
  void choose(std::int64_t n, std::int64_t k) {
    if (k == 0) return;
    if (k == 1) return choose_one(n);
    for (std::int64_t i = 0; i < k; ++i) at(i) = i;
    for (std::int64_t i = k / 2; i-- > 0;) sink(i, k);
    Number worst = value(at(0));
    const auto better = [&](std::int64_t i) {  // than the last one; an equal one comes later
      const Number item = value(i);
      return Largest ? ascends(worst, item) : ascends(item, worst);
    };
    constexpr std::int64_t kBlock = 4 * W;
    for (std::int64_t i = k; i < n; i += kBlock) {
      const std::int64_t last = i + kBlock < n ? i + kBlock : n;
      if (last - i == kBlock) {
        if constexpr (std::is_same<T, float>::value) {
          if (step_ == 1 && !any_better(x_ + i, worst)) continue;
        }
      }
      for (std::int64_t j = i; j < last; ++j) {
        if (!better(j)) continue;
        at(0) = j;
        sink(0, k);
        worst = value(at(0));
      }
    }
    for (std::int64_t left = k; left-- > 1;) {
      const std::int64_t last = at(0);
      at(0) = at(left);
      at(left) = last;
      sink(0, left);
    }
  }

 private:
  /// The extreme of n numbers, and whether none of them is NaN.
  static bool extreme(const float* x, std::int64_t n, float* found) {
    vf top = load(x);
    vi ordered = top == top;
    std::int64_t i = W;
    for (; i + W <= n; i += W) {
      const vf next = load(x + i);
      ordered &= next == next;
      top = Largest ? max(top, next) : min(top, next);
    }
    *found = Largest ? hmax(top) : hmin(top);
    bool good = hmin(opcel::select(ordered, set(1.0f), vf{})) > 0;
    for (; i < n; ++i) {
      good = good && x[i] == x[i];
      if (Largest ? x[i] > *found : x[i] < *found) *found = x[i];
    }
    return good;
  }

  void choose_one(std::int64_t n) {
    if constexpr (std::is_same<T, float>::value) {
      float found;
      if (step_ == 1 && n >= W && extreme(x_, n, &found)) {
        std::int64_t i = 0;
        while (x_[i] != found) ++i;
        at(0) = i;
        return;
      }
    }
    std::int64_t best = 0;
    Number found = value(0);
    for (std::int64_t i = 1; i < n; ++i) {
      const Number item = value(i);
      if (!(Largest ? ascends(found, item) : ascends(item, found))) continue;
      found = item;
      best = i;
    }
    at(0) = best;
  }

  /// Whether a block of 4 W elements may hold one that is better than `worst`.
  static bool any_better(const float* block, float worst) {
    vi none = block_mask(block, worst);
    for (int v = 1; v < 4; ++v) none &= block_mask(block + v * W, worst);
    return hmin(select(none, set(1.0f), vf{})) == 0;
  }
  static vi block_mask(const float* block, float worst) {
    return Largest ? load(block) <= set(worst) : load(block) >= set(worst);
  }

  std::int64_t& at(std::int64_t i) { return index_[i * step_]; }
  Number value(std::int64_t i) const { return static_cast<Number>(x_[i * step_]); }

  /// Whether element a comes after element b in the result.
  bool after(std::int64_t a, std::int64_t b) const {
    const Number p = value(a), q = value(b);
    if (Largest ? ascends(p, q) : ascends(q, p)) return true;
    return !(Largest ? ascends(q, p) : ascends(p, q)) && a > b;
  }

  /// Restores the heap of `size` elements, whose top is the one that comes last, below place i.
  void sink(std::int64_t i, std::int64_t size) {
    const std::int64_t item = at(i);
    for (std::int64_t child = 2 * i + 1; child < size; child = 2 * i + 1) {
      if (child + 1 < size && after(at(child + 1), at(child))) ++child;
      if (!after(at(child), item)) break;
      at(i) = at(child);
      i = child;
    }
    at(i) = item;
  }

  const T* x_;
  std::int64_t* index_;
  std::int64_t step_;
};

/// Tasks [begin, end) of ⌈lines / per_task⌉.
template <class T, class Number, bool Largest>
void topk_tasks(const TopkArgs& args, const T* x, T* y, std::int64_t* index, std::int64_t begin, std::int64_t end) {
  const std::int64_t last = end * args.per_task < args.lines ? end * args.per_task : args.lines;
  for (std::int64_t line = begin * args.per_task; line < last; ++line) {
    const std::int64_t outer = line / args.inner, at = line % args.inner;
    const T* from = x + outer * args.n * args.inner + at;
    const std::int64_t to = outer * args.k * args.inner + at;
    TopkLine<T, Number, Largest>(from, index + to, args.inner).choose(args.n, args.k);
    for (std::int64_t i = 0; i < args.k; ++i) y[to + i * args.inner] = from[index[to + i * args.inner] * args.inner];
  }
}

}  // namespace opcel
