// Winograd convolution F(m x m, 3 x 3), m = 2 or 4, stride 1, f32, on the blocked layout [n][channel block][h][w][W].
//
// An output tile of m x m pixels comes from an input tile of A x A pixels, A = m + 2: both, and the filters, are
// transformed (V = B' d B, U = G g G', Y = A' M A), and in between there are A^2 products M = V U of matrices tiles x
// channels and channels x filters. Tiles of all images are numbered through and cut into groups; a group's V and the M
// of one panel of NV output blocks are what a core works on. Every sum runs in the order of the input channels,
// whichever register tile computes it, so results don't depend on how tiles are grouped or spread over threads. Images
// may be stored as bf16; transforms, products and sums are f32.
//
// F(4 x 4, 3 x 3) interpolates at 0, +-5/8, +-3/2 and infinity: the coefficients are exact in f32, and the error is
// half of that at the usual 0, +-1, +-2.
#pragma once

#include "base/bf16.h"
#include "base/tiling.h"

namespace opcel {

template <class T = float, class U = T>
struct WinogradArgs {
  const T* x;      // the first padded pixel; adjacent pixels are W elements apart
  std::int64_t x_n, x_cb, x_row;
  const float* u;  // [ocb / NV][A * A][icb * W][NV * W]
  U* y;            // the first output pixel; adjacent pixels are W elements apart
  std::int64_t y_n, y_cb, y_row;
  std::int64_t n, ocb, icb;  // ocb is a multiple of NV
  std::int64_t oh, ow;       // the padded input has oh + 2 rows of ow + 2 pixels
  std::int64_t groups;       // into which the tiles are cut evenly, winograd_group tiles at most
  std::int64_t parts;        // among which tasks share out the panels of a group
  float* v = nullptr;        // V of all groups, winograd_group_elements each
};

template <int M, class Args>
OPCEL_INLINE std::int64_t winograd_tiles(const Args& args) {
  return args.n * detail::ceil_div(args.oh, M) * detail::ceil_div(args.ow, M);
}
template <int M, class Args>
OPCEL_INLINE std::int64_t winograd_group(const Args& args) {
  return detail::ceil_div(winograd_tiles<M>(args), args.groups);
}

namespace detail {

struct WinogradGroup {
  std::int64_t first, count;
};
template <int M, class Args>
OPCEL_INLINE WinogradGroup winograd_cut(const Args& args, std::int64_t group) {
  const std::int64_t tiles = winograd_tiles<M>(args), first = tiles * group / args.groups;
  return {first, tiles * (group + 1) / args.groups - first};
}

// Planes of V and M are a vector apart from a multiple of the page size, or they would fall into the same cache sets.
OPCEL_INLINE constexpr std::int64_t winograd_plane(std::int64_t elements) { return elements + W; }

// One-dimensional: t = B' d in two halves, which take turns so that a tile's intermediate rows stay in registers, and y
// = A' m.
template <int M>
struct WinogradTransform;

template <>
struct WinogradTransform<2> {
  template <int Half>
  static OPCEL_INLINE void input(const vf (&d)[4], vf (&t)[2]) {
    t[0] = Half == 0 ? d[0] - d[2] : d[2] - d[1];
    t[1] = Half == 0 ? d[1] + d[2] : d[3] - d[1];
  }
  static OPCEL_INLINE void output(const vf (&m)[4], vf (&y)[2]) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = m[3] + (m[1] - m[2]);
  }
};

template <>
struct WinogradTransform<4> {
  static constexpr float P = 0.625f, Q = 1.5f;

  template <int Half>
  static OPCEL_INLINE void input(const vf (&d)[6], vf (&t)[3]) {
    constexpr float Own = Half == 0 ? P : Q, Other = Half == 0 ? Q : P;
    constexpr int Ends = Half == 0 ? 0 : 2, Pair = 1 - Half;
    const vf square = set(-Other * Other);
    const vf even = fma(square, d[2], d[4]), odd = fma(square, d[1], d[3]);
    t[Pair] = fma(set(Own), odd, even);
    t[Pair + 1] = fma(set(-Own), odd, even);
    t[Ends] = fma(set(P * P * Q * Q), d[Half], fma(set(-(P * P + Q * Q)), d[2 + Half], d[4 + Half]));
  }
  static OPCEL_INLINE void output(const vf (&m)[6], vf (&y)[4]) {
    const vf even_p = m[1] + m[2], odd_p = m[1] - m[2], even_q = m[3] + m[4], odd_q = m[3] - m[4];
    y[0] = m[0] + (even_p + even_q);
    y[1] = fma(set(P), odd_p, set(Q) * odd_q);
    y[2] = fma(set(P * P), even_p, set(Q * Q) * even_q);
    y[3] = m[5] + fma(set(P * P * P), odd_p, set(Q * Q * Q) * odd_q);
  }
};

// Where tile number `tile` lies.
template <int M>
struct WinogradPlace {
  std::int64_t across, down, n, y, x;  // y and x: the tile's first output pixel

  template <class Args>
  OPCEL_INLINE WinogradPlace(const Args& args, std::int64_t tile)
      : across(ceil_div(args.ow, M)), down(ceil_div(args.oh, M)) {
    n = tile / (across * down);
    y = tile / across % down * M;
    x = tile % across * M;
  }
  OPCEL_INLINE void next() {
    x += M;
    if (x < across * M) return;
    x = 0;
    y += M;
    if (y < down * M) return;
    y = 0;
    ++n;
  }
};

template <int M, int NV>
struct Winograd {
  static constexpr int A = M + 2;
  static constexpr int NR = NV * W;
  static constexpr int Steps = W < 8 ? W : 8;
  using Transform = WinogradTransform<M>;
  using Place = WinogradPlace<M>;

  // V of one channel block of one tile: element xi at v[xi * plane]. Edge: only `rows` x `cols` pixels exist.
  template <bool Edge, class T>
  static OPCEL_INLINE void input_tile(const T* x, std::int64_t x_row, int rows, int cols, float* v,
                                      std::int64_t plane) {
    input_half<0, Edge>(x, x_row, rows, cols, v, plane);
    input_half<1, Edge>(x, x_row, rows, cols, v + A * A / 2 * plane, plane);
  }

  template <int Half, bool Edge, class T>
  static OPCEL_INLINE void input_half(const T* x, std::int64_t x_row, int rows, int cols, float* v,
                                      std::int64_t plane) {
    vf t[A / 2][A];
    OPCEL_UNROLL
    for (int c = 0; c < A; ++c) {
      vf d[A], column[A / 2];
      OPCEL_UNROLL
      for (int r = 0; r < A; ++r) d[r] = !Edge || (r < rows && c < cols) ? load(x + r * x_row + c * W) : vf{};
      Transform::template input<Half>(d, column);
      OPCEL_UNROLL
      for (int r = 0; r < A / 2; ++r) t[r][c] = column[r];
    }
    OPCEL_UNROLL
    for (int r = 0; r < A / 2; ++r) {
      vf low[A / 2], high[A / 2];
      Transform::template input<0>(t[r], low);
      Transform::template input<1>(t[r], high);
      OPCEL_UNROLL
      for (int c = 0; c < A / 2; ++c) {
        store(v + (r * A + c) * plane, low[c]);
        store(v + (r * A + A / 2 + c) * plane, high[c]);
      }
    }
  }

  // V of channel block `icb` of some tiles.
  template <class Args>
  static __attribute__((noinline)) void input(const Args& args, WinogradGroup tiles, std::int64_t icb, float* v) {
    const std::int64_t group = winograd_group<M>(args), plane = winograd_plane(args.icb * group * W);
    Place at(args, tiles.first);
    v += icb * group * W;
    for (std::int64_t i = 0; i < tiles.count; ++i, at.next(), v += W) {
      const auto* x = args.x + at.n * args.x_n + icb * args.x_cb + at.y * args.x_row + at.x * W;
      const std::int64_t rows = args.oh + 2 - at.y, cols = args.ow + 2 - at.x;
      if (rows >= A && cols >= A)
        input_tile<false>(x, args.x_row, A, A, v, plane);
      else
        input_tile<true>(x, args.x_row, static_cast<int>(least(A, rows)), static_cast<int>(least(A, cols)), v, plane);
    }
  }

  // R tiles times one panel for one xi.
  template <int R>
  static __attribute__((noinline)) void multiply(const float* v, std::int64_t v_icb, const float* u, std::int64_t icb,
                                                 float* m) {
    constexpr int Chunk = kChunk / W;
    vf acc[R][NV] = {}, total[R][NV];
    bool carried = false;
    for (std::int64_t rest = icb;;) {
      for (const std::int64_t stop = rest > Chunk ? rest - Chunk : 0; rest > stop; --rest, v += v_icb) {
        const float* row = v;
        for (int c = 0; c < W; c += Steps) {
          OPCEL_UNROLL
          for (int s = 0; s < Steps; ++s) {
            vf panel[NV];
            OPCEL_UNROLL
            for (int j = 0; j < NV; ++j) panel[j] = load(u + (s * NV + j) * W);
            OPCEL_UNROLL
            for (int r = 0; r < R; ++r) {
              const vf value = set(row[r * W + s]);
              OPCEL_UNROLL
              for (int j = 0; j < NV; ++j) accumulate(acc[r][j], value, panel[j]);
            }
          }
          row += Steps;
          keep(row);
          u += Steps * NR;
          keep(u);
        }
      }
      if (rest == 0) break;
      carry(total, acc, !carried);
      carried = true;
    }
    if (carried) add_total(acc, total);
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) store(m + r * NR + j * W, acc[r][j]);
    }
  }

  // The products of `count` tiles with one panel, for every xi.
  template <int... R, class Args>
  static OPCEL_INLINE void products(const Args& args, const float* v, const float* u, std::int64_t count,
                                    float* m) {
    const std::int64_t group = winograd_group<M>(args), v_icb = group * W, plane = winograd_plane(args.icb * v_icb);
    for (int xi = 0; xi < A * A; ++xi, v += plane, u += args.icb * W * NR, m += winograd_plane(group * NR)) {
      for (std::int64_t i = 0; i < count;) {
        const std::int64_t height = Cut<R...>::next(count - i);
        if (height == 0) break;
        ((height == R ? multiply<R>(v + i * W, v_icb, u, args.icb, m + i * NR) : void()), ...);
        i += height;
      }
    }
  }

  // The output pixels of some tiles, for the NV output blocks from cb on.
  template <class Args, class Epi>
  static __attribute__((noinline)) void output(const Args& args, WinogradGroup tiles, std::int64_t cb,
                                               const float* m, const Epi& epi) {
    const std::int64_t plane = winograd_plane(winograd_group<M>(args) * NR);
    Place at(args, tiles.first);
    for (std::int64_t i = 0; i < tiles.count; ++i, at.next(), m += NR) {
      const int rows = static_cast<int>(least(M, args.oh - at.y)), cols = static_cast<int>(least(M, args.ow - at.x));
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < cols; ++c)
          for (int j = 0; j < NV; ++j) prefetch_epilogue(0, epi, at.n, cb + j, at.y + r, at.x + c);
      for (int j = 0; j < NV; ++j) {
        vf t[M][A];
        OPCEL_UNROLL
        for (int c = 0; c < A; ++c) {
          vf column[A], part[M];
          OPCEL_UNROLL
          for (int r = 0; r < A; ++r) column[r] = load(m + (r * A + c) * plane + j * W);
          Transform::output(column, part);
          OPCEL_UNROLL
          for (int r = 0; r < M; ++r) t[r][c] = part[r];
        }
        auto* y = args.y + at.n * args.y_n + (cb + j) * args.y_cb + at.y * args.y_row + at.x * W;
        OPCEL_UNROLL
        for (int r = 0; r < M; ++r) {
          vf part[M];
          Transform::output(t[r], part);
          OPCEL_UNROLL
          for (int c = 0; c < M; ++c)
            if (r < rows && c < cols)
              store(y + r * args.y_row + c * W, epi.template apply<false>(part[c], at.n, cb + j, at.y + r, at.x + c, W));
        }
      }
    }
  }

  // Products and output of some tiles for the panels [panel, last).
  template <int... R, class Args, class Epi>
  static OPCEL_INLINE void panels(const Args& args, const Epi& epi, WinogradGroup tiles, std::int64_t panel,
                                  std::int64_t last, const float* v, float* m) {
    for (; panel < last; ++panel) {
      products<R...>(args, v, args.u + panel * A * A * args.icb * W * NR, tiles.count, m);
      output(args, tiles, panel * NV, m, epi);
    }
  }
};

}  // namespace detail

// Elements of V of one group, and of its M for one panel.
template <int M>
constexpr std::int64_t winograd_group_elements(std::int64_t group, std::int64_t icb) {
  return (M + 2) * (M + 2) * detail::winograd_plane(icb * group * W);
}
template <int M, int NV>
constexpr std::int64_t winograd_panel_elements(std::int64_t group) {
  return (M + 2) * (M + 2) * detail::winograd_plane(group * NV * W);
}

// The transformed input, args.v. Tasks [begin, end): groups, then input blocks, the last varying fastest.
template <int M, class Args>
void winograd_input_tasks(const Args& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t elements = winograd_group_elements<M>(winograd_group<M>(args), args.icb);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t group = task / args.icb;
    detail::Winograd<M, 1>::input(args, detail::winograd_cut<M>(args, group), task % args.icb, args.v + group * elements);
  }
}

// Products and output from args.v. Tasks [begin, end): panels, then groups of tiles, the last varying fastest.
// R: the register tiles' heights, descending; every group must be a sum of them that a fewest-tiles even split finds.
// Group: winograd_group of the arguments, or more. Scratch is on the stack.
template <int M, int NV, int Group, int... R, class Args, class Epi>
void winograd_product_tasks(const Args& args, const Epi& epi, std::int64_t begin, std::int64_t end) {
  alignas(64) float m[winograd_panel_elements<M, NV>(Group)];
  const std::int64_t elements = winograd_group_elements<M>(winograd_group<M>(args), args.icb);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t group = task % args.groups, panel = task / args.groups;
    detail::Winograd<M, NV>::template panels<R...>(args, epi, detail::winograd_cut<M>(args, group), panel, panel + 1,
                                                   args.v + group * elements, m);
  }
}

// All in one. Each task transforms the tiles of its group for itself, into `Elements` on the stack (at least
// winograd_group_elements): that is cheaper than to read what another core has written. Tasks [begin, end): groups,
// then parts of the panels.
template <int M, int NV, int Group, int Elements, int... R, class Args, class Epi>
void winograd_tasks(const Args& args, const Epi& epi, std::int64_t begin, std::int64_t end) {
  using Winograd = detail::Winograd<M, NV>;
  alignas(64) float v[Elements];
  alignas(64) float m[winograd_panel_elements<M, NV>(Group)];
  const std::int64_t panels = args.ocb / NV;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t group = task / args.parts, part = task % args.parts;
    const detail::WinogradGroup tiles = detail::winograd_cut<M>(args, group);
    if (part == 0 || task == begin)
      for (std::int64_t icb = 0; icb < args.icb; ++icb) Winograd::input(args, tiles, icb, v);
    Winograd::template panels<R...>(args, epi, tiles, panels * part / args.parts, panels * (part + 1) / args.parts, v, m);
  }
}

}  // namespace opcel
