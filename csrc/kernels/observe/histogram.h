// Counts of a tensor's elements in 2048 bins whose width is a power of two, with its extremes and those of its channels.
//
// The tensor is divided into parts, each counted by one task in bins of its own; `merge_parts` then adds them up. Bins of
// powers of two merge exactly, and the division depends on sizes alone, so results depend on no number of threads.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/tiling.h"
#include "base/vec.h"

namespace opcel {

constexpr int kBins = 2048;
constexpr int kPartCounts = kBins + 16;  // the bins, elements that are not finite, lanes of no element, the bins' place
constexpr int kNotFinite = kBins, kNothing = kBins + 1, kExponent = kBins + 2, kStart = kBins + 3;
constexpr int kTables = 4;  // so that increments of one bin follow each other less closely
constexpr int kRun = 16;    // vectors whose bins are found before they are counted: stores are slow to read back at once

/// What the elements of a row of contiguous elements are: of all channels, of one, or of a block of W.
enum class Channels { along, one, block };

struct ObserveArgs {
  const float* x;
  const float* window;  // exponent and start of the bins that held what came before; an exponent of -127: none are known
  std::uint32_t* counts;  // [kBins + 1]
  float* seen;            // the window used, the least and the largest finite element
  float* channels;        // [2][count]: the largest magnitudes, the sums
  std::uint32_t* part_counts;  // [parts][kPartCounts]
  float* part_channels;        // [parts][2 * room + 16], room: count in whole blocks of 16
  std::int64_t extents[3], steps[3];  // of the rows, outermost first
  std::int64_t n, total;              // elements of a row, and of all rows, the last of which may be shorter
  std::int64_t axis;                  // which of the extents numbers the channels, or their blocks; -1: none
  std::int64_t count, parts;
};

namespace detail {

/// Bin b of width 2^exponent holds start + b <= x / 2^exponent < start + b + 1.
struct Bins {
  std::int32_t exponent, start;

  static OPCEL_INLINE float power(std::int32_t e) {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(e + 127) << 23);
  }
  float scaled(float x) const {
    const float place = x * power(-exponent);
    return x < 0 && place == 0 ? -1.0f : __builtin_floorf(place);  // a product too small for f32
  }
  bool hold(float least, float most) const {
    return scaled(least) >= static_cast<float>(start) && scaled(most) < static_cast<float>(start + kBins);
  }

  /// The narrowest that hold zero and all from `least` to `most`, but none narrower than 2^exponent.
  static Bins fitting(float least, float most, std::int32_t exponent) {
    if (!(least < 0)) least = 0;
    if (!(most > 0)) most = 0;
    const float reach = most > -least ? most : -least;
    const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, reach) & 0x7fffffff;
    const std::int32_t e = static_cast<std::int32_t>(bits >> 23) - 127 - 11;
    Bins out{e > exponent ? e : exponent, 0};
    while (out.scaled(most) - out.scaled(least) >= kBins) ++out.exponent;
    out.start = static_cast<std::int32_t>(out.scaled(least));
    return out;
  }
  static constexpr std::int32_t kLeastExponent = -126;

  /// Those of a window; false where none is known.
  static bool of(const float* window, Bins& out) {
    if (!(window[0] >= kLeastExponent)) return false;
    out = {static_cast<std::int32_t>(window[0]), static_cast<std::int32_t>(window[1])};
    return true;
  }
};

OPCEL_INLINE std::int64_t channel_room(const ObserveArgs& args) { return (args.count + 15) / 16 * 16; }

/// What is kept of a row in registers: the extremes, and the largest magnitude and the sum by lanes.
struct Running {
  vf least, most, peak, sum;
};

/// The counters of one part, on the stack of its task.
struct Counter {
  alignas(64) std::uint32_t tables[kTables][kPartCounts];
  alignas(64) std::int32_t bins[kRun * W];  // of vectors whose elements are not counted yet
  vf scale, start, least, most;

  explicit Counter(Bins b)
      : scale(set(Bins::power(-b.exponent))), start(set(static_cast<float>(b.start))), least(set(__builtin_inff())),
        most(set(-__builtin_inff())) {
    std::memset(tables, 0, sizeof tables);
  }

  /// Note the bins of the first `lanes` of v, or of all, as vector `slot`; gives v with zeros in place of what has none.
  template <bool Tail>
  OPCEL_INLINE vf place(vf v, int lanes, int slot, vf width, vf first, Running& r) {
    vi counted = abs(v) < set(__builtin_inff());
    vi bin = select_i(counted, vi{}, set_i(kNotFinite));
    if constexpr (Tail) {
      const vi given = first_lanes(lanes);
      bin = select_i(given, bin, set_i(kNothing));
      counted &= given;
    }
    v = select(counted, v, vf{});
    r.least = select(counted & (v < r.least), v, r.least);
    r.most = select(counted & (v > r.most), v, r.most);
    const vf exact = v * width;
    const vf at = select((v < vf{}) & (exact == vf{}), set(-1.0f), floor(exact)) - first;
    bin = select_i(counted, to_int(max(min(at, set(kBins - 1.0f)), vf{})), bin);
    store_i(bins + slot * W, bin);
    return v;
  }

  /// Count what was noted in the first `vectors` slots.
  OPCEL_INLINE void count(int vectors) {
    for (int slot = 0; slot < vectors; ++slot) {
      OPCEL_UNROLL
      for (int i = 0; i < W; ++i) ++tables[i % kTables][bins[slot * W + i]];
    }
  }
};

template <Channels C>
struct RowCounter {
  const ObserveArgs& args;
  Counter& counter;
  float* largest;  // of the part, by channel
  float* sums;

  template <bool Tail>
  OPCEL_INLINE void vector(const float* p, int lanes, std::int64_t col, int slot, vf width, vf first, Running& r) const {
    const vf v = counter.place<Tail>(load_t<Tail>(p + col, lanes), lanes, slot, width, first, r);
    if constexpr (C == Channels::along) {
      store(largest + col, max(load(largest + col), abs(v)));
      store(sums + col, load(sums + col) + v);
    } else {
      r.peak = max(r.peak, abs(v));
      r.sum += v;
    }
  }

  /// A row of n elements that belong to `channel`, the first of them, or all.
  void row(const float* p, std::int64_t n, std::int64_t channel) const {
    Running r{counter.least, counter.most, vf{}, vf{}};
    const vf width = counter.scale, first = counter.start;
    const std::int64_t left = args.count - channel;
    const bool ragged = C == Channels::block && left < W;
    for (std::int64_t begin = 0; begin < n; begin += kRun * W) {
      const std::int64_t end = opcel::detail::least(n, begin + kRun * W);
      std::int64_t i = begin;
      int slot = 0;
      if (ragged) {
        for (; i < end; i += W) vector<true>(p, static_cast<int>(left), i, slot++, width, first, r);
      } else {
        for (; i + W <= end; i += W) vector<false>(p, W, i, slot++, width, first, r);
        if (i < end) vector<true>(p, static_cast<int>(end - i), i, slot++, width, first, r);
      }
      counter.count(slot);
    }
    counter.least = r.least, counter.most = r.most;
    if constexpr (C == Channels::block) {
      store(largest + channel, max(load(largest + channel), r.peak));
      store(sums + channel, load(sums + channel) + r.sum);
    } else if constexpr (C == Channels::one) {
      const float top = hmax(r.peak);
      largest[channel] = top > largest[channel] ? top : largest[channel];
      sums[channel] += hsum(r.sum);
    }
  }
};

template <Channels C>
void count_part(const ObserveArgs& args, std::int64_t part, std::int64_t first, std::int64_t last, Bins bins) {
  Counter counter(bins);
  const std::int64_t room = channel_room(args);
  float* const largest = args.part_channels + part * (2 * room + 16);
  std::memset(largest, 0, static_cast<std::size_t>(2 * room) * sizeof(float));
  const RowCounter<C> rows{args, counter, largest, largest + room};
  for (std::int64_t r = first; r < last; ++r) {
    const std::int64_t at[3] = {r / args.extents[2] / args.extents[1], r / args.extents[2] % args.extents[1],
                                r % args.extents[2]};
    const float* const p = args.x + at[0] * args.steps[0] + at[1] * args.steps[1] + at[2] * args.steps[2];
    const std::int64_t channel = args.axis < 0 ? 0 : at[args.axis] * (C == Channels::block ? W : 1);
    rows.row(p, least(args.n, args.total - r * args.n), channel);
  }
  std::uint32_t* const counts = args.part_counts + part * kPartCounts;
  for (int b = 0; b < kPartCounts; b += W) {
    vi sum = load_i(reinterpret_cast<const std::int32_t*>(counter.tables[0] + b));
    for (int t = 1; t < kTables; ++t) sum += load_i(reinterpret_cast<const std::int32_t*>(counter.tables[t] + b));
    store_i(reinterpret_cast<std::int32_t*>(counts + b), sum);
  }
  counts[kExponent] = static_cast<std::uint32_t>(bins.exponent);
  counts[kStart] = static_cast<std::uint32_t>(bins.start);
  largest[2 * room] = hmin(counter.least);
  largest[2 * room + 1] = hmax(counter.most);
}

}  // namespace detail

/// Tasks [begin, end) of `parts`.
template <Channels C>
void observe_tasks(const ObserveArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t rows = args.extents[0] * args.extents[1] * args.extents[2];
  const std::int64_t room = detail::channel_room(args);
  for (std::int64_t part = begin; part < end; ++part) {
    const std::int64_t first = rows * part / args.parts, last = rows * (part + 1) / args.parts;
    detail::Bins bins{detail::Bins::kLeastExponent, 0};
    const bool known = detail::Bins::of(args.window, bins);
    detail::count_part<C>(args, part, first, last, bins);
    const float* const seen = args.part_channels + part * (2 * room + 16) + 2 * room;
    if (seen[0] > seen[1] || (known && bins.hold(seen[0], seen[1]))) continue;
    detail::count_part<C>(args, part, first, last,
                          detail::Bins::fitting(seen[0], seen[1], detail::Bins::kLeastExponent));
  }
}

inline void merge_parts(const ObserveArgs& args) {
  const std::int64_t room = detail::channel_room(args), each = 2 * room + 16;
  float low = __builtin_inff(), high = -__builtin_inff();
  for (std::int64_t p = 0; p < args.parts; ++p) {
    const float* const seen = args.part_channels + p * each + 2 * room;
    low = seen[0] < low ? seen[0] : low;
    high = seen[1] > high ? seen[1] : high;
  }
  detail::Bins bins{detail::Bins::kLeastExponent, 0};
  const bool known = detail::Bins::of(args.window, bins);
  if (low <= high && !(known && bins.hold(low, high))) bins = detail::Bins::fitting(low, high, bins.exponent);
  std::memset(args.counts, 0, (kBins + 1) * sizeof(std::uint32_t));
  for (std::int64_t p = 0; p < args.parts; ++p) {
    const std::uint32_t* const counts = args.part_counts + p * kPartCounts;
    args.counts[kBins] += counts[kNotFinite];
    const float* const seen = args.part_channels + p * each + 2 * room;
    if (seen[0] > seen[1]) continue;
    const std::int32_t exponent = static_cast<std::int32_t>(counts[kExponent]);
    const std::int32_t start = static_cast<std::int32_t>(counts[kStart]);
    const std::int32_t shift = bins.exponent - exponent > 31 ? 31 : bins.exponent - exponent;
    if (shift == 0 && start == bins.start) {
      for (int b = 0; b < kBins; ++b) args.counts[b] += counts[b];
    } else {
      for (int b = 0; b < kBins; ++b)
        if (counts[b]) args.counts[((start + b) >> shift) - bins.start] += counts[b];
    }
  }
  args.seen[0] = static_cast<float>(bins.exponent), args.seen[1] = static_cast<float>(bins.start);
  args.seen[2] = low, args.seen[3] = high;
  for (std::int64_t c = 0; c < args.count; ++c) {
    float top = 0, sum = 0;
    for (std::int64_t p = 0; p < args.parts; ++p) {
      const float* const part = args.part_channels + p * each;
      top = part[c] > top ? part[c] : top;
      sum += part[room + c];
    }
    args.channels[c] = top, args.channels[args.count + c] = sum;
  }
}

}  // namespace opcel
