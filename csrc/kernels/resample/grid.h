// Images sampled at the positions of a grid: f32, one to three spatial axes.
#pragma once

#include <cmath>
#include <cstring>

#include "base/gather.h"
#include "base/tiling.h"

namespace opcel {

enum class GridMode { nearest, linear, cubic };
enum class GridPadding { zeros, border, reflection };

struct GridArgs {
  const float* x;     // [n][c][spatial]
  const float* grid;  // [n][places][Rank], the last axis first
  float* y;           // [n][c][places]
  std::int64_t n, c, places;
  std::int64_t size[3];  // of the spatial axes; Rank of them
  bool align_corners;
};

// Places that a task samples for all channels: what it knows of them stays in its stack.
constexpr std::int64_t kGridPlaces = 32;

inline std::int64_t grid_task_count(const GridArgs& args) { return args.n * detail::ceil_div(args.places, kGridPlaces); }

namespace detail {

inline float reflect_at(float at, float low, float high) {
  if (!(at < low || at > high)) return at;
  const float span = high - low > 0 ? high - low : 1e-30f, beyond = at < low ? low - at : at - high;
  const float times = std::trunc(beyond / span), rest = beyond - times * span;
  const bool even = std::fmod(times, 2.0f) == 0;
  return (at < low) == even ? low + rest : high - rest;
}

struct GridTaps {
  std::int64_t at[4];
  float weight[4];  // 0 where the place lies outside of a zero border
};

template <GridMode Mode, GridPadding Padding>
inline GridTaps grid_taps(float position, std::int64_t size, bool align_corners) {
  const float extent = static_cast<float>(size), last = extent - 1;
  const float low = align_corners ? 0.0f : -0.5f, high = align_corners ? last : extent - 0.5f;
  float at = align_corners ? (position + 1) / 2 * last : ((position + 1) * extent - 1) / 2;
  if (Mode == GridMode::nearest) at = std::nearbyint(at);
  if (Padding == GridPadding::border && Mode != GridMode::cubic) at = at < 0 ? 0 : at > last ? last : at;
  if (Padding == GridPadding::reflection) at = reflect_at(at, low, high);
  const float floor = Mode == GridMode::nearest ? std::trunc(at) : std::floor(at), t = at - floor;
  constexpr int count = Mode == GridMode::nearest ? 1 : Mode == GridMode::linear ? 2 : 4;
  GridTaps taps;
  if constexpr (Mode == GridMode::nearest) {
    taps.weight[0] = 1;
  } else if constexpr (Mode == GridMode::linear) {
    taps.weight[0] = 1 - t;
    taps.weight[1] = t;
  } else {
    constexpr float a = -0.75f;
    const auto far = [](float d) { return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a; };
    const auto near = [](float d) { return ((a + 2) * d - (a + 3)) * d * d + 1; };
    taps.weight[0] = far(t + 1);
    taps.weight[1] = near(t);
    taps.weight[2] = near(1 - t);
    taps.weight[3] = far(2 - t);
  }
  for (int i = 0; i < count; ++i) {
    float place = floor + static_cast<float>(i - (count == 4 ? 1 : 0));
    if (Padding == GridPadding::zeros && !(place >= 0 && place < extent)) taps.weight[i] = 0;
    if (Padding == GridPadding::reflection) place = std::trunc(reflect_at(place, low, high));
    taps.at[i] = place > 0 ? (place < last ? static_cast<std::int64_t>(place) : size - 1) : 0;
  }
  return taps;
}

}  // namespace detail

// Tasks [begin, end) of grid_task_count(args). A neighbour of weight 0 is not read into the sum, whatever it holds.
template <int Rank, GridMode Mode, GridPadding Padding>
void grid_tasks(const GridArgs& args, std::int64_t begin, std::int64_t end) {
  constexpr int per_axis = Mode == GridMode::nearest ? 1 : Mode == GridMode::linear ? 2 : 4;
  constexpr int count = Rank == 1 ? per_axis : Rank == 2 ? per_axis * per_axis : per_axis * per_axis * per_axis;
  const std::int64_t groups = detail::ceil_div(args.places, kGridPlaces);
  std::int64_t plane = 1;
  for (int axis = 0; axis < Rank; ++axis) plane *= args.size[axis];
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t n = task / groups, first = task % groups * kGridPlaces;
    const std::int64_t many = detail::least(kGridPlaces, args.places - first);
    std::int64_t at[count][kGridPlaces];
    std::int32_t near[count][kGridPlaces];  // the same where a plane has no more elements than this can count
    float weight[count][kGridPlaces];
    for (int tap = 0; tap < count; ++tap)
      for (std::int64_t i = many; i < kGridPlaces; ++i) at[tap][i] = near[tap][i] = 0, weight[tap][i] = 0;
    for (std::int64_t i = 0; i < many; ++i) {
      const float* position = args.grid + (n * args.places + first + i) * Rank;
      detail::GridTaps axes[Rank];
      for (int axis = 0; axis < Rank; ++axis)
        axes[axis] = detail::grid_taps<Mode, Padding>(position[Rank - 1 - axis], args.size[axis], args.align_corners);
      for (int tap = 0; tap < count; ++tap) {
        std::int64_t place = 0;
        float factor = 1;
        for (int axis = 0, rest = tap, step = count; axis < Rank; ++axis) {
          step /= per_axis;
          place = place * args.size[axis] + axes[axis].at[rest / step];
          factor *= axes[axis].weight[rest / step];
          rest %= step;
        }
        at[tap][i] = place;
        near[tap][i] = static_cast<std::int32_t>(place);
        weight[tap][i] = factor;
      }
    }
    for (std::int64_t c = 0; c < args.c; ++c) {
      const float* x = args.x + (n * args.c + c) * plane;
      float* y = args.y + (n * args.c + c) * args.places + first;
      float sum[kGridPlaces] = {};
      for (std::int64_t i = 0; i < kGridPlaces && plane <= INT32_MAX; i += W) {
        vf total{};
        for (int tap = 0; tap < count; ++tap) {
          const vf factor = load(&weight[tap][i]), value = gather(x, load_i(&near[tap][i]));
          total = fma(select(factor == 0.0f, vf{}, value), factor, total);
        }
        store(sum + i, total);
      }
      for (int tap = 0; tap < count && plane > INT32_MAX; ++tap)
        for (std::int64_t i = 0; i < many; ++i)
          if (weight[tap][i] != 0) sum[i] += x[at[tap][i]] * weight[tap][i];
      std::memcpy(y, sum, static_cast<std::size_t>(many) * sizeof(float));
    }
  }
}

}  // namespace opcel
