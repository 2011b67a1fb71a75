// Means and variances of what batch norms see, tile by tile.
#pragma once
#include "vectors.h"

namespace fastdarts::FASTDARTS_ISA {

// The mean of eight pixels: near that of all, and exact for constants.
template <class A>
FD_INLINE Vec<A> origin_of(const A* y, int64_t pixels, int64_t cp) {
  const auto at = [&](int64_t i) FD_LAMBDA { return load<A>(y + i * pixels / 8 * cp); };
  return (((at(0) + at(1)) + (at(2) + at(3))) + ((at(4) + at(5)) + (at(6) + at(7)))) * A(0.125);
}

// Sums of y and its square about an origin (exact for constants, no cancellation for a large mean) of a tile or of its first
// strip: `sums` [3 (origin, sum, sum of squares), cp]. keep(i, y[i...]) stores what was read, as T. The sums are those of the
// stored numbers, which are what is normalised: of a channel that is nearly constant, a batch norm multiplies the difference
// between them and y by up to 316.
template <class T, class A, class F>
FD_INLINE void sum_strip(const A* y, int64_t pixels, int64_t cp, A* sums, const F& keep) {
  for (int64_t c = 0; c < cp; c += kLanes<A>) {
    const Vec<A> origin = as_stored<T, A>(origin_of(y + c, pixels, cp));
    Vec<A> sum[4] = {}, square[4] = {};
    exact_blocks<4>(pixels, [&](auto size, int64_t p) FD_LAMBDA {
      FD_UNROLL
      for (int i = 0; i < size.value; ++i) {
        const int64_t at = (p + i) * cp + c;
        const Vec<A> value = load<A>(y + at), v = as_stored<T, A>(value) - origin;
        keep(at, value);
        sum[i] += v;
        square[i] += v * v;
      }
    });
    store(sums + c, origin);
    store(sums + cp + c, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    store(sums + 2 * cp + c, (square[0] + square[1]) + (square[2] + square[3]));
  }
}

// Joins a tile's sums to the moments of the `before` values already seen (Chan et al.), in double.
template <class A>
FD_INLINE void join_moments(const A* sums, int64_t pixels, int64_t cp, int64_t before, double* mean, double* m2) {
  const double per_pixel = 1.0 / pixels, share = double(pixels) / (before + pixels), joint = double(before) * share;
  for (int64_t c = 0; c < cp; ++c) {
    const double sum = sums[cp + c], shift = sum * per_pixel, tile_m2 = double(sums[2 * cp + c]) - sum * shift;
    const double delta = double(sums[c]) + shift - mean[c];
    mean[c] += delta * share;
    m2[c] += (tile_m2 > 0 ? tile_m2 : 0) + delta * delta * joint;
  }
}

template <class A>
FD_INLINE void add_lanes(double* into, Vec<A> v) {
  A lanes[kLanes<A>];
  store(lanes, v);
  for (int lane = 0; lane < kLanes<A>; ++lane) into[lane] += double(lanes[lane]);
}

}  // namespace fastdarts::FASTDARTS_ISA
