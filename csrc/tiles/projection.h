// A cell's preprocessing, forward and backward.
#pragma once
#include "backward.h"

namespace fastdarts::FASTDARTS_ISA {

// d [pixels, k] = relu(x) of a tile; at stride 2 two pixels side by side.
template <class A, bool FULL, class T>
FD_INLINE void gather_source(const Projection<A, T>& p, const Tile& tile, A* d) {
  const Geometry g = p.geo;
  const T* image = p.x.data + tile.image * p.x.sn;
  const int64_t sh = p.x.sh, sw = p.x.sw, channels = p.in_channels, padded = p.in_padded;
  for (int64_t r = tile.begin; r < tile.end; ++r)
    for (int64_t column = 0; column < g.wo; ++column)
      for (int64_t half = 0; half < g.stride; ++half, d += padded) {
        const int64_t row = r * g.stride + half, col = column * g.stride + half;
        const bool inside = row < g.h && col < g.w;
        for (int64_t c = 0; c < padded; c += kLanes<A>)
          store(d + c, inside ? relu<A>(load_channels<A, FULL>(image + row * sh + col * sw, c, channels)) : Vec<A>{});
      }
}

template <class A, bool FULL, class T>
FD_INLINE void project_forward_tiles(const Projection<A, T>& p, int64_t lo, int64_t hi, int64_t chunk, A* d) {
  const Geometry& g = p.geo;
  A *y = d + g.rows * g.wo * p.stage.k, *sums = y + g.rows * g.wo * g.cp;
  int64_t before = 0;
  for (int64_t index = lo; index < hi; ++index) {
    const Tile tile = tile_at(g, index);
    const int64_t pixels = (tile.end - tile.begin) * g.wo;
    over_strips<A>(g, tile, [&](const Tile& strip) FD_LAMBDA {
      gather_source<A, FULL>(p, strip, d);
      pointwise_forward(p.stage, g, strip, strip.begin == tile.begin, d, y, sums);
    });
    join_moments(sums, pixels, g.cp, before, p.stage.chunk_mean + chunk * g.cp, p.stage.chunk_m2 + chunk * g.cp);
    before += pixels;
  }
}

// FULL_X, FULL: of x and dx, and of g.
template <class A, bool FULL_X, bool FULL, class T>
FD_INLINE void project_backward_tiles(const Projection<A, T>& p, int64_t lo, int64_t hi, A* d, A* grads) {
  const Geometry g = p.geo;
  const Stage<A, T> stage = p.stage;
  const int64_t k = stage.k, sh = p.g.sh, sw = p.g.sw;
  const int64_t widest = k > g.cp ? k : g.cp;
  A *dd = d + g.rows * g.wo * widest, *dy = dd + (g.rows * g.wo + kSparePixels) * widest;
  const auto back = [&](const Tile& tile) FD_LAMBDA {
    const int64_t rows = tile.end - tile.begin, pixels = rows * g.wo;
    const T* y = stage.y + (tile.image * g.ho + tile.begin) * g.wo * g.cp;
    const T* gi = p.g.data + tile.image * p.g.sn + tile.begin * sh;
    for (int64_t c = 0; c < g.cp; c += kLanes<A>) {
      const Vec<A> from_g = load<A>(stage.from_g + c), from_y = load<A>(stage.from_y + c), mean = load<A>(stage.norm.mean + c),
                   offset = load<A>(stage.offset + c);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t column = 0; column < g.wo; ++column) {
          const int64_t at = (r * g.wo + column) * g.cp + c;
          store_factor<T>(dy, at, from_g * load_channels<A, FULL>(gi + r * sh + column * sw, c, g.c) +
                                      (from_y * (load<A>(y + at) - mean) + offset));
        }
    }
    if (p.need_params) {
      gather_source<A, FULL_X>(p, tile, d);
      weight_grad(stage, d, pixels, dy, g.cp, grads + stage.grad, dd);
    }
    if (!p.need_x) return;
    multiply_back(stage, dy, 1, pixels, g.cp, [&](int64_t) FD_LAMBDA { return dd; });
    // Source rows of the tile; at stride 2 only every other pixel of every other row has a gradient, twice shifted.
    const T* x = p.x.data + tile.image * p.x.sn;
    T* dx = p.dx.data + tile.image * p.dx.sn;
    for (int64_t row = tile.begin * g.stride; row < tile.end * g.stride && row < g.h; ++row)
      for (int64_t col = 0; col < g.w; ++col) {
        const int64_t half = row % g.stride;
        const bool reached = col % g.stride == half;
        const A* from = dd + ((row / g.stride - tile.begin) * g.wo + col / g.stride) * k + half * p.in_padded;
        for (int64_t c = 0; c < p.in_channels; c += kLanes<A>) {
          Vec<A> v = {};
          if (reached)
            v = behind_relu<A>(load_channels<A, FULL_X>(x + row * p.x.sh + col * p.x.sw, c, p.in_channels), load<A>(from + c));
          T* out = dx + row * p.dx.sh + col * p.dx.sw;
          if constexpr (FULL_X)
            stream(out + c, v);
          else
            store_channels<A, FULL_X>(out, v, c, p.in_channels);
        }
      }
  };
  for (int64_t index = lo; index < hi; ++index) over_strips<A>(g, tile_at(g, index), back);
}

template <class A, class T>
void project_forward(const Projection<A, T>& p, int64_t lo, int64_t hi, int64_t chunk, A* scratch) {
  const ProductUnit unit;
  if (p.in_channels == p.in_padded)
    project_forward_tiles<A, true>(p, lo, hi, chunk, scratch);
  else
    project_forward_tiles<A, false>(p, lo, hi, chunk, scratch);
}

template <class A, class T>
void project_backward(const Projection<A, T>& p, int64_t lo, int64_t hi, int64_t, A* scratch, A* grads) {
  const ProductUnit unit;
  const bool full_x = p.in_channels == p.in_padded;
  if (full_x && p.geo.c == p.geo.cp)
    project_backward_tiles<A, true, true>(p, lo, hi, scratch, grads);
  else if (full_x)
    project_backward_tiles<A, true, false>(p, lo, hi, scratch, grads);
  else
    project_backward_tiles<A, false, false>(p, lo, hi, scratch, grads);
}

}  // namespace fastdarts::FASTDARTS_ISA
