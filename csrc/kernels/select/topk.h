// The k first elements of each line in ascending or descending order, chosen by a heap that lies in the result.
#pragma once

#include <cstdint>

namespace opcel {

/// Whether a comes before b in ascending order; NaN is the largest, and equal to itself.
template <class T>
inline bool ascends(T a, T b) {
  return a < b || (b != b && a == a);
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
  void select(std::int64_t n, std::int64_t k) {
    if (k == 0) return;
    for (std::int64_t i = 0; i < k; ++i) at(i) = i;
    for (std::int64_t i = k / 2; i-- > 0;) sink(i, k);
    Number worst = value(at(0));
    for (std::int64_t i = k; i < n; ++i) {
      const Number item = value(i);
      if (!(Largest ? ascends(worst, item) : ascends(item, worst))) continue;  // an equal one comes later
      at(0) = i;
      sink(0, k);
      worst = value(at(0));
    }
    for (std::int64_t left = k; left-- > 1;) {
      const std::int64_t last = at(0);
      at(0) = at(left);
      at(left) = last;
      sink(0, left);
    }
  }

 private:
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
    TopkLine<T, Number, Largest>(from, index + to, args.inner).select(args.n, args.k);
    for (std::int64_t i = 0; i < args.k; ++i) y[to + i * args.inner] = from[index[to + i * args.inner] * args.inner];
  }
}

}  // namespace opcel
