// Running sums and products along the middle axis of [outer, n, inner].
#pragma once

#include <cstdint>

namespace opcel {

struct CumulateArgs {
  std::int64_t n, inner;
  std::int64_t strips;   // of kCumulateStrip elements of the inner axis, the last one perhaps shorter
  std::int64_t lines;    // outer * strips
  std::int64_t per_task;  // lines of a task
  bool reverse;
};

constexpr std::int64_t kCumulateStrip = 32;

/// Tasks [begin, end) of ⌈lines / per_task⌉. Total: what sums and products are taken in, one element after another.
template <class T, class Total, bool Product, bool Exclusive>
void cumulate_tasks(const CumulateArgs& args, const T* __restrict x, T* __restrict y, std::int64_t begin,
                    std::int64_t end) {
  const std::int64_t last = end * args.per_task < args.lines ? end * args.per_task : args.lines;
  for (std::int64_t line = begin * args.per_task; line < last; ++line) {
    const std::int64_t first = line % args.strips * kCumulateStrip;
    const std::int64_t width = args.inner - first < kCumulateStrip ? args.inner - first : kCumulateStrip;
    const std::int64_t base = line / args.strips * args.n * args.inner + first;
    Total total[kCumulateStrip];
    for (std::int64_t j = 0; j < width; ++j) total[j] = Product ? Total(1) : Total(0);
    const auto step = [&](std::int64_t i, std::int64_t count) __attribute__((always_inline)) {
      const std::int64_t row = base + (args.reverse ? args.n - 1 - i : i) * args.inner;
      for (std::int64_t j = 0; j < count; ++j) {
        const Total before = total[j], item = static_cast<Total>(x[row + j]);
        total[j] = static_cast<Total>(Product ? before * item : before + item);
        y[row + j] = static_cast<T>(Exclusive ? before : total[j]);
      }
    };
    if (width == kCumulateStrip)
      for (std::int64_t i = 0; i < args.n; ++i) step(i, kCumulateStrip);
    else
      for (std::int64_t i = 0; i < args.n; ++i) step(i, width);
  }
}

}  // namespace opcel
