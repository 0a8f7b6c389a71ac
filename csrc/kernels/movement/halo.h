// The border of a buffer whose interior another kernel writes.
#pragma once

#include <cstring>

#include "base/tiling.h"

namespace opcel {

struct HaloArgs {
  char* y;                   // first element of the border
  std::int64_t slabs;        // images times channels (or blocks), dense
  std::int64_t h, w, pixel;  // the interior, and the bytes of a pixel
  std::int64_t top, left, bottom, right;
  int value = 0;  // of each byte
};

// Tasks [begin, end) of `slabs`.
inline void halo_tasks(const HaloArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t row = (args.left + args.w + args.right) * args.pixel;
  for (std::int64_t slab = begin; slab < end; ++slab) {
    char* y = args.y + slab * (args.top + args.h + args.bottom) * row;
    std::memset(y, args.value, static_cast<std::size_t>(args.top * row));
    for (std::int64_t i = args.top; i < args.top + args.h; ++i) {
      std::memset(y + i * row, args.value, static_cast<std::size_t>(args.left * args.pixel));
      std::memset(y + i * row + (args.left + args.w) * args.pixel, args.value, static_cast<std::size_t>(args.right * args.pixel));
    }
    std::memset(y + (args.top + args.h) * row, args.value, static_cast<std::size_t>(args.bottom * row));
  }
}

}  // namespace opcel
