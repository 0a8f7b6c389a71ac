// Counts of a tensor's elements in 2048 bins whose width is a power of two, with its extremes and those of its
// channels.
//
// The tensor is divided into parts, each counted by one task in bins of its own; `merge_parts` then adds them up. Bins
// of powers of two merge exactly, and the division depends on sizes alone, so results depend on no number of threads.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/tiling.h"
#include "base/vec.h"

namespace opcel {

constexpr int kBins = 2048;
constexpr int kPartCounts = kBins + 16;  // the bins, elements that are not finite, the bins' place
constexpr int kNotFinite = kBins, kExponent = kBins + 1, kStart = kBins + 2;
constexpr int kRun = 16;    // vectors whose bins are found before they are counted: stores are slow to read back at once

/// What the elements of a row of contiguous elements are: of all channels, of one, or of a block of W.
enum class Channels { along, one, block };

struct ObserveArgs {
  const float* x;
  const float* window;  // exponent and start of the bins that held what came before; an exponent of -127: none are known
  std::uint32_t* counts;  // [kBins + 1]
  float* seen;            // the window used, the least and the largest finite element, the number of all finite ones
  float* channels;        // [2][count]: the largest magnitudes, the sums
  std::uint32_t* part_counts;  // [parts][kPartCounts]
  float* part_channels;        // [parts][2 * room + 16], room: count in whole blocks of 16
  std::int64_t extents[3], steps[3];  // of the rows, outermost first
  std::int64_t n, total;              // elements of a row, and of all rows, the last of which may be shorter
  std::int64_t axis;                  // which of the extents numbers the channels, or their blocks; -1: none
  std::int64_t count, parts, elements;
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

/// What is kept of a row in registers, by lanes: of all its elements the extremes, the sum, and minus the number of
/// what is not finite; of those that are counted minus the number of zeros.
struct Running {
  vf least = set(__builtin_inff()), most = set(-__builtin_inff()), sum = {};
  vi zeros = {}, odd = {};
};

OPCEL_INLINE std::uint32_t count_of(vi negative) {
  alignas(64) std::int32_t lanes[W];
  store_i(lanes, negative);
  std::uint32_t out = 0;
  for (const std::int32_t lane : lanes) out -= static_cast<std::uint32_t>(lane);
  return out;
}

/// Whether position p of an image is counted: one of every `Every`, in turn at each place.
template <int Every, typename T>
OPCEL_INLINE auto is_counted(T p) {
  static_assert((Every & (Every - 1)) == 0);
  return ((p + p / Every) & (Every - 1)) == 0;
}

/// The first position from p on that is counted.
template <int Every>
OPCEL_INLINE std::int64_t next_counted(std::int64_t p) {
  const auto of = [](std::int64_t group) { return group * Every + (-group & (Every - 1)); };
  return of(p / Every) < p ? of(p / Every + 1) : of(p / Every);
}

/// The counters of one part, on the stack of its task. Increments of one counter wait for each other: there are several
/// tables where much is counted, zeros, which are many, are counted in registers, and what is passed over goes to a
/// counter for each lane, behind the bins.
template <int Every>
struct Counter {
  static constexpr int kTables = Every > 1 ? 1 : 4;
  alignas(64) std::uint32_t tables[kTables][kBins + W];
  alignas(64) std::int32_t bins[kRun * W];  // of vectors whose elements are not counted yet
  vf scale, start, least, most;
  std::uint32_t zeros = 0, odd = 0;

  explicit Counter(Bins b)
      : scale(set(Bins::power(-b.exponent))), start(set(static_cast<float>(b.start))), least(set(__builtin_inff())),
        most(set(-__builtin_inff())) {
    std::memset(tables, 0, sizeof tables);
  }

  /// Note the bins of those lanes of v that are not `passed` over, as vector `slot`.
  OPCEL_INLINE void note(vf v, vi passed, int slot) {
    const vf exact = v * scale;
    const vf at = select((v < vf{}) & (exact == vf{}), set(-1.0f), floor(exact)) - start;
    const vi bin = to_int(max(min(at, set(kBins - 1.0f)), vf{}));
    store_i(bins + slot * W, select_i(passed, lanes() + kBins, bin));
  }

  /// Count what was noted in the first `vectors` slots.
  OPCEL_INLINE void count(int vectors) {
    for (int slot = 0; slot < vectors; ++slot) {
      OPCEL_UNROLL
      for (int i = 0; i < W; ++i) ++tables[i % kTables][bins[slot * W + i]];
    }
  }

  /// The counts of a part.
  void write(std::uint32_t* counts, Bins b) const {
    for (int bin = 0; bin < kBins; bin += W) {
      vi sum = load_i(reinterpret_cast<const std::int32_t*>(tables[0] + bin));
      for (int t = 1; t < kTables; ++t) sum += load_i(reinterpret_cast<const std::int32_t*>(tables[t] + bin));
      store_i(reinterpret_cast<std::int32_t*>(counts + bin), sum);
    }
    counts[opcel::detail::least(std::int64_t{kBins} - 1, -std::int64_t{b.start})] += zeros;
    counts[kNotFinite] = odd;
    counts[kExponent] = static_cast<std::uint32_t>(b.exponent);
    counts[kStart] = static_cast<std::uint32_t>(b.start);
  }
};

template <Channels C, int Every>
struct RowCounter {
  const ObserveArgs& args;
  Counter<Every>& counter;
  float* largest;  // of the part, by channel
  float* sums;

  static constexpr int kStep = C == Channels::block ? W : 1;  // elements of a position

  /// Note a vector of the row p, or of it the first `given` lanes, whose first element has column i and the image's
  /// `position`. Where some elements may not be finite, what is kept of all is seen to as well.
  template <bool Odd, bool Tail>
  OPCEL_INLINE void note(const float* p, int given, std::int64_t i, std::int64_t position, int slot, Running& r) const {
    vf v = load_t<Tail>(p + i, given);
    vi passed = {};
    if constexpr (Tail) passed = ~first_lanes(given);
    if constexpr (Odd) {
      const vi odd = ~(abs(v) < set(__builtin_inff())) & ~passed;
      r.odd += odd;
      passed |= odd;
      v = select(passed, vf{}, v);
      r.least = select(passed, r.least, min(v, r.least));
      r.most = select(passed, r.most, max(v, r.most));
      if constexpr (C != Channels::along) r.sum += v;
    }
    if constexpr (C == Channels::along) {
      store(largest + i, max(load(largest + i), abs(v)));
      store(sums + i, load(sums + i) + v);
    } else if constexpr (Every > 1 && C == Channels::block) {
      if (Odd && !is_counted<Every>(position)) passed = ~vi{};
    } else if constexpr (Every > 1) {
      passed |= ~is_counted<Every>(set_i(static_cast<std::int32_t>(position % (Every * Every))) + lanes());
    }
    const vi zeros = (v == vf{}) & ~passed;
    r.zeros += zeros;
    counter.note(v, passed | zeros, slot);
  }

  /// Count columns [begin, end) of a row: at most kRun vectors, or, of images in blocks that are finite, that times
  /// Every.
  template <bool Odd>
  OPCEL_INLINE void run(const float* p, std::int64_t begin, std::int64_t end, int ragged, std::int64_t position,
                        Running& r) const {
    const auto from = [position](std::int64_t i) {
      return !Odd && C == Channels::block ? (next_counted<Every>(position + i / W) - position) * W : i;
    };
    int slot = 0;
    for (std::int64_t i = from(begin); i < end; i = from(i + W), ++slot) {
      const std::int64_t at = position + i / kStep;
      if (ragged)
        note<Odd, true>(p, ragged, i, at, slot, r);
      else if (i + W <= end)
        note<Odd, false>(p, W, i, at, slot, r);
      else
        note<Odd, true>(p, static_cast<int>(end - i), i, at, slot, r);
    }
    counter.count(slot);
  }

  /// The extremes and the sum of columns [begin, end), unless the sum, of lanes of no channel too, is not finite: then
  /// false.
  static OPCEL_INLINE bool look(const float* p, std::int64_t begin, std::int64_t end, int ragged, Running& r) {
    vf low = r.least, high = r.most, sum{};
    std::int64_t i = begin;
    for (; i + W <= end; i += W) {
      const vf v = load(p + i);
      low = min(v, low), high = max(v, high), sum += v;
    }
    if (i < end) {
      const int given = static_cast<int>(end - i);
      const vf v = load_t<true>(p + i, given);
      low = select(first_lanes(given), min(v, low), low), high = select(first_lanes(given), max(v, high), high);
      sum += v;
    }
    if (!(__builtin_fabsf(hsum(sum)) < __builtin_inff())) return false;
    const vi given = first_lanes(ragged ? ragged : W);
    r.least = select(given, low, r.least), r.most = select(given, high, r.most), r.sum += select(given, sum, vf{});
    return true;
  }

  /// A row of n elements that belong to `channel`, the first of them, or all, from `position` of their image on.
  void row(const float* p, std::int64_t n, std::int64_t channel, std::int64_t position) const {
    constexpr std::int64_t kColumns = kRun * W;
    const std::int64_t left = args.count - channel;
    const int ragged = C == Channels::block && left < W ? static_cast<int>(left) : 0;
    Running r;
    constexpr std::int64_t kTogether = kColumns * (C == Channels::block ? Every : 1);
    for (std::int64_t begin = 0; begin < n; begin += kTogether) {
      const std::int64_t end = opcel::detail::least(n, begin + kTogether);
      if (look(p, begin, end, ragged, r)) {
        run<false>(p, begin, end, ragged, position, r);
      } else {
        for (std::int64_t i = begin; i < end; i += kColumns)
          run<true>(p, i, opcel::detail::least(end, i + kColumns), ragged, position, r);
      }
    }
    counter.least = min(r.least, counter.least), counter.most = max(r.most, counter.most);
    counter.zeros += count_of(r.zeros), counter.odd += count_of(r.odd);
    const vf peak = max(max(r.most, vf{}), -min(r.least, vf{}));
    if constexpr (C == Channels::block) {
      store(largest + channel, max(load(largest + channel), peak));
      store(sums + channel, load(sums + channel) + r.sum);
    } else if constexpr (C == Channels::one) {
      const float top = hmax(peak);
      largest[channel] = top > largest[channel] ? top : largest[channel];
      sums[channel] += hsum(r.sum);
    }
  }
};

template <Channels C, int Every>
void count_part(const ObserveArgs& args, std::int64_t part, std::int64_t first, std::int64_t last, Bins bins) {
  Counter<Every> counter(bins);
  const std::int64_t room = channel_room(args);
  float* const largest = args.part_channels + part * (2 * room + 16);
  std::memset(largest, 0, static_cast<std::size_t>(2 * room) * sizeof(float));
  const RowCounter<C, Every> rows{args, counter, largest, largest + room};
  for (std::int64_t r = first; r < last; ++r) {
    const std::int64_t at[3] = {r / args.extents[2] / args.extents[1], r / args.extents[2] % args.extents[1],
                                r % args.extents[2]};
    const float* const p = args.x + at[0] * args.steps[0] + at[1] * args.steps[1] + at[2] * args.steps[2];
    const std::int64_t channel = args.axis < 0 ? 0 : at[args.axis] * (C == Channels::block ? W : 1);
    std::int64_t before = 0;  // rows of the same image and channel
    for (std::int64_t a = args.axis < 0 ? 3 : args.axis + 1; a < 3; ++a) before = before * args.extents[a] + at[a];
    const std::int64_t position = before * (C == Channels::block ? args.n / W : args.n);
    rows.row(p, least(args.n, args.total - r * args.n), channel, position);
  }
  counter.write(args.part_counts + part * kPartCounts, bins);
  largest[2 * room] = hmin(counter.least);
  largest[2 * room + 1] = hmax(counter.most);
}

}  // namespace detail

/// Tasks [begin, end) of `parts`. Of images, whose positions are those of the axes after the channels', one in `Every`
/// is counted; the rest is of all elements.
template <Channels C, int Every>
void observe_tasks(const ObserveArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t rows = args.extents[0] * args.extents[1] * args.extents[2];
  const std::int64_t room = detail::channel_room(args);
  for (std::int64_t part = begin; part < end; ++part) {
    const std::int64_t first = rows * part / args.parts, last = rows * (part + 1) / args.parts;
    detail::Bins bins{detail::Bins::kLeastExponent, 0};
    const bool known = detail::Bins::of(args.window, bins);
    detail::count_part<C, Every>(args, part, first, last, bins);
    const float* const seen = args.part_channels + part * (2 * room + 16) + 2 * room;
    if (seen[0] > seen[1] || (known && bins.hold(seen[0], seen[1]))) continue;
    detail::count_part<C, Every>(args, part, first, last,
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
  const auto at = [](std::uint32_t* counts, int bin) { return reinterpret_cast<std::int32_t*>(counts + bin); };
  for (std::int64_t p = 0; p < args.parts; ++p) {
    std::uint32_t* const counts = args.part_counts + p * kPartCounts;
    args.counts[kBins] += counts[kNotFinite];
    const float* const seen = args.part_channels + p * each + 2 * room;
    if (seen[0] > seen[1]) continue;
    const std::int32_t exponent = static_cast<std::int32_t>(counts[kExponent]);
    const std::int32_t start = static_cast<std::int32_t>(counts[kStart]);
    const std::int32_t shift = bins.exponent - exponent > 31 ? 31 : bins.exponent - exponent;
    if (shift == 0 && start == bins.start) {
      for (int b = 0; b < kBins; b += W)
        store_i(at(args.counts, b), load_i(at(args.counts, b)) + load_i(at(counts, b)));
    } else {
      for (int b = 0; b < kBins; ++b)
        if (counts[b]) args.counts[((start + b) >> shift) - bins.start] += counts[b];
    }
  }
  args.seen[0] = static_cast<float>(bins.exponent), args.seen[1] = static_cast<float>(bins.start);
  args.seen[2] = low, args.seen[3] = high, args.seen[4] = static_cast<float>(args.elements - args.counts[kBins]);
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
