// What calibration does with every sample beside running it. By NumPy's calls, on caches that the run has filled, each of
// these would take a tenth of a small network's run.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/vec.h"
#include "bindings/arrays.h"

namespace opcel::bindings {

template <class T>
using Dense = py::array_t<T, py::array::c_style>;

/// 64 bits that tell one array of bytes from another: in eight lanes, each word is mixed into what came before it, as in
/// FNV-1a (Fowler, Noll, Vo), and the lanes at last into one another.
inline std::uint64_t digest_of(const Dense<std::uint8_t>& given) {
  constexpr std::uint64_t kPrime = 0x100000001b3, kStart = 0xcbf29ce484222325;
  constexpr int kLanes = 8;
  const auto mixed = [](std::uint64_t state, std::uint64_t word) {
    state = (state ^ word) * kPrime;
    return state ^ state >> 29;
  };
  std::uint64_t lanes[kLanes], words[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = kStart + static_cast<std::uint64_t>(i);
  const std::uint8_t* const data = given.data();
  const auto bytes = static_cast<std::size_t>(given.nbytes());
  const auto take = [&](std::size_t at, std::size_t size) {
    std::memcpy(words, data + at, size);
    OPCEL_UNROLL
    for (int i = 0; i < kLanes; ++i) lanes[i] = mixed(lanes[i], words[i]);
  };
  std::size_t at = 0;
  for (; at + sizeof words <= bytes; at += sizeof words) take(at, sizeof words);
  std::memset(words, 0, sizeof words);
  take(at, bytes - at);
  std::uint64_t digest = mixed(kStart, bytes);
  for (const std::uint64_t lane : lanes) digest = mixed(digest, lane);
  return digest;
}

/// Adds what a run tells of n values to what earlier ones told: `counts` [n][bins + 1], the last of each of elements that
/// are not finite; `seen` [n][5], the place of the bins, the extremes and the number of elements; `channels`, largest
/// magnitudes and sums. Gives (-1, the values whose bins lie elsewhere than in `windows` [n][2], which are all added but
/// for their counts), or, having added nothing, (the first value that has elements which are not finite, []).
template <class Count>
py::tuple add_observed(const Dense<std::uint32_t>& counts, const Dense<float>& seen, const Dense<float>& channels,
                       const Dense<float>& windows, Dense<Count>& totals, Dense<double>& extremes, Dense<double>& sums,
                       Dense<float>& largest, Dense<double>& channel_sums) {
  const py::ssize_t n = totals.shape(0), bins = totals.shape(1), each = bins + 1;
  if (counts.size() != n * each || seen.size() != n * 5 || windows.size() != n * 2 || extremes.size() != n * 2 ||
      sums.size() != n * 3 || largest.size() != channels.size() || channel_sums.size() != channels.size())
    throw py::value_error("arrays of other sizes");
  const std::uint32_t* const count = counts.data();
  py::list elsewhere;
  for (py::ssize_t i = 0; i < n; ++i)
    if (count[i * each + bins]) return py::make_tuple(i, elsewhere);
  double *const ends = extremes.mutable_data(), *const sum = sums.mutable_data();
  Count* const total = totals.mutable_data();
  for (py::ssize_t i = 0; i < n; ++i) {
    const float *const s = seen.data() + i * 5, *const window = windows.data() + i * 2;
    if (s[2] <= s[3]) {
      ends[i * 2] = std::min(ends[i * 2], double{s[2]});
      ends[i * 2 + 1] = std::max(ends[i * 2 + 1], double{s[3]});
      for (int j = 0; j < 3; ++j) sum[i * 3 + j] += double{s[2 + j]};
    }
    if (s[0] != window[0] || s[1] != window[1]) {
      elsewhere.append(i);
      continue;
    }
    for (py::ssize_t bin = 0; bin < bins; ++bin) total[i * bins + bin] += count[i * each + bin];
  }
  const float* const channel = channels.data();
  float* const top = largest.mutable_data();
  double* const channel_sum = channel_sums.mutable_data();
  for (py::ssize_t i = 0; i < channels.size(); ++i) {
    top[i] = std::max(top[i], channel[i]);
    channel_sum[i] += double{channel[i]};
  }
  return py::make_tuple(-1, elsewhere);
}

inline void define_samples(py::module_& module) {
  module.def("digest", &digest_of, py::arg("bytes").noconvert(), "64 bits that tell one array of bytes from another.");
  const auto add = [&module](auto added) {
    module.def("add_observed", added, py::arg("counts").noconvert(), py::arg("seen").noconvert(),
               py::arg("channels").noconvert(), py::arg("windows").noconvert(), py::arg("totals").noconvert(),
               py::arg("extremes").noconvert(), py::arg("sums").noconvert(), py::arg("largest").noconvert(),
               py::arg("channel_sums").noconvert(),
               "Adds what a run of an observing model tells to what earlier ones told, in place: (-1, the values whose "
               "bins lie elsewhere, whose counts are not added), or, with nothing added, (the first value with elements "
               "that are not finite, []).");
  };
  add(&add_observed<std::uint32_t>);
  add(&add_observed<std::int64_t>);
}

}  // namespace opcel::bindings
