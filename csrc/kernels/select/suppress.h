// Non-maximum suppression: boxes by descending score, without those that overlap a better one.
#pragma once

#include <cstdint>

namespace opcel {

struct SuppressArgs {
  std::int64_t n, classes, room;
  std::int64_t most;      // boxes of a class, at most
  float overlap, least;   // of the union that a box may share; a score is above `least`
};

struct Corners {
  float y0, x0, y1, x1;

  float area() const { return (y1 - y0) * (x1 - x0); }
};

template <bool Center>
inline Corners corners_of(const float* box) {
  if (Center) {  // x, y of the middle, width, height
    const float dx = box[2] / 2, dy = box[3] / 2;
    return {box[1] - dy, box[0] - dx, box[1] + dy, box[0] + dx};
  }
  const bool down = box[0] <= box[2], right = box[1] <= box[3];  // any two opposite corners
  return {box[down ? 0 : 2], box[right ? 1 : 3], box[down ? 2 : 0], box[right ? 3 : 1]};
}

inline bool overlaps(const Corners& a, const Corners& b, float limit) {
  const float y0 = a.y0 > b.y0 ? a.y0 : b.y0, y1 = a.y1 < b.y1 ? a.y1 : b.y1;
  const float x0 = a.x0 > b.x0 ? a.x0 : b.x0, x1 = a.x1 < b.x1 ? a.x1 : b.x1;
  if (!(y1 > y0 && x1 > x0)) return false;
  const float inner = (y1 - y0) * (x1 - x0), joined = a.area() + b.area() - inner;
  return a.area() > 0 && b.area() > 0 && joined > 0 && inner / joined > limit;
}

/// Restores the heap below place i: the number of the highest score is at its top, of equal scores the lowest.
inline void sink_score(const float* score, std::int32_t* heap, std::int64_t i, std::int64_t size) {
  const std::int32_t item = heap[i];
  const auto before = [score](std::int32_t a, std::int32_t b) {
    return score[a] > score[b] || (score[a] == score[b] && a < b);
  };
  for (std::int64_t child = 2 * i + 1; child < size; child = 2 * i + 1) {
    if (child + 1 < size && before(heap[child + 1], heap[child])) ++child;
    if (!before(heap[child], item)) break;
    heap[i] = heap[child];
    i = child;
  }
  heap[i] = item;
}

/// Task t is class t % classes of batch t / classes. kept: [tasks, room], filled up with -1; heap: [tasks, n], scratch.
template <bool Center>
void suppress_tasks(const SuppressArgs& args, const float* boxes, const float* scores, std::int64_t* kept,
                    std::int32_t* heap, std::int64_t begin, std::int64_t end) {
  for (std::int64_t task = begin; task < end; ++task) {
    const float* const box = boxes + task / args.classes * args.n * 4;
    const float* const score = scores + task * args.n;
    std::int64_t* const out = kept + task * args.room;
    std::int32_t* const queue = heap + task * args.n;
    std::int64_t size = 0, found = 0;
    const std::int64_t limit = args.most < args.room ? args.most : args.room;
    for (std::int64_t i = 0; i < args.n && limit > 0; ++i)
      if (score[i] > args.least) queue[size++] = static_cast<std::int32_t>(i);
    for (std::int64_t i = size / 2; i-- > 0;) sink_score(score, queue, i, size);
    while (size > 0 && found < limit) {
      const std::int32_t best = queue[0];
      queue[0] = queue[--size];
      if (size > 0) sink_score(score, queue, 0, size);
      const Corners own = corners_of<Center>(box + 4 * best);
      bool free = true;
      for (std::int64_t j = 0; j < found && free; ++j)
        free = !overlaps(own, corners_of<Center>(box + 4 * out[j]), args.overlap);
      if (free) out[found++] = best;
    }
    for (; found < args.room; ++found) out[found] = -1;
  }
}

}  // namespace opcel
