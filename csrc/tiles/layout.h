// Tiles, a thread's scratch, and how padded images are filled.
#pragma once
#include "vectors.h"

namespace fastdarts::FASTDARTS_ISA {

struct Tile {
  int64_t image, begin, end;  // output rows
};

FD_INLINE Tile tile_at(const Geometry& geo, int64_t index) {
  const int64_t begin = index % geo.bands * geo.rows;
  return {index / geo.bands, begin, begin + geo.rows < geo.ho ? begin + geo.rows : geo.ho};
}

// A thread's scratch; its sizes stand in ScratchLayout.
template <class A>
struct Scratch {
  A *source, *d_padded, *middle, *d, *dy, *dd, *sums, *windows, *dx;
  Scratch(const Geometry& geo, A* base) {
    const ScratchLayout layout(geo);
    source = base;
    d_padded = source + layout.source;
    middle = d_padded + layout.middle;
    d = middle + layout.middle;
    dy = d + layout.d;
    dd = dy + layout.dy;
    sums = dd + layout.d;
    windows = sums + layout.sums;
    dx = windows + layout.windows;
  }
};

// A padded image: of a state, or of what stands between a separable convolution's stages.
struct Padded {
  int64_t h, w, pad, row;  // of the image; elements from row to row
  FD_INLINE Padded(const Geometry& g, bool middle) {
    h = middle ? g.ho : g.h;
    w = middle ? g.wo : g.w;
    pad = g.pad;
    row = (w + 2 * pad) * g.cp;
  }
};

// Rows [begin, end) of an image into dst: value(row, column, c) inside the borders, zeros in rows outside the image.
template <class A, class F>
FD_INLINE void fill_padded(A* dst, int64_t begin, int64_t end, const Padded& of, const Geometry& g, const F& value) {
  for (int64_t row = begin; row < end; ++row, dst += of.row) {
    if (row < 0 || row >= of.h) {
      if (g.bands > 1) clear(dst, of.row);  // else nobody ever wrote there
      continue;
    }
    A* inside = dst + of.pad * g.cp;
    for (int64_t column = 0; column < of.w; ++column)
      for (int64_t c = 0; c < g.cp; c += kLanes<A>) store(inside + column * g.cp + c, value(row, column, c));
  }
}

constexpr int64_t kStripBytes = 8 << 10;
constexpr int64_t kStripPixels = 32;  // a product reads all of its weights once a strip

// Rows of a strip: what passes from one step of a stage to the next stays in the first-level cache, where channels are many in the
// second.
template <class A>
FD_INLINE int64_t strip_rows(const Geometry& g) {
  const int64_t small = kStripBytes / (g.wo * g.cp * int64_t(sizeof(A))), least = (kStripPixels + g.wo - 1) / g.wo;
  return small < least ? least : small;
}

template <class A, class F>
FD_INLINE void over_strips(const Geometry& g, const Tile& tile, const F& f) {
  const int64_t rows = strip_rows<A>(g);
  for (int64_t r = tile.begin; r < tile.end; r += rows) f(Tile{tile.image, r, r + rows < tile.end ? r + rows : tile.end});
}

template <class A>
FD_INLINE int64_t strips(const Geometry& g, const Tile& tile) {
  return (tile.end - tile.begin + strip_rows<A>(g) - 1) / strip_rows<A>(g);
}

// The rows of relu(x) that output rows [begin, end) of a bank read.
template <class A, bool FULL, class T>
FD_INLINE void fill_source(const Bank<A, T>& bank, const Tile& tile, A* padded) {
  const Geometry& g = bank.geo;
  const T* image = bank.x.data + tile.image * bank.x.sn;
  const int64_t sh = bank.x.sh, sw = bank.x.sw, channels = g.c;
  fill_padded(padded, tile.begin * g.stride - g.pad, (tile.end - 1) * g.stride + g.pad + 1, Padded(g, false), g,
              [&](int64_t row, int64_t column, int64_t c) FD_LAMBDA {
                return relu<A>(load_channels<A, FULL>(image + row * sh + column * sw, c, channels));
              });
}

template <class A>
FD_INLINE Vec<A> normalised(const Norm<A>& norm, Vec<A> y, int64_t c) {
  return (y - load<A>(norm.mean + c)) * load<A>(norm.scale + c) + load<A>(norm.shift + c);
}

// The rows of relu(batch norm(y)) that output rows [begin, end) of a second stage read.
template <class A, class T>
FD_INLINE void fill_middle(const Geometry& g, const Stage<A, T>& first, const T* y, const Tile& tile, A* padded) {
  const int64_t wo = g.wo, cp = g.cp;
  const T* image = y + tile.image * g.ho * wo * cp;
  const Norm<A> norm = first.norm;
  fill_padded(padded, tile.begin - g.pad, tile.end + g.pad, Padded(g, true), g, [&](int64_t row, int64_t column, int64_t c) FD_LAMBDA {
    const Vec<A> y = load<A>(image + (row * wo + column) * cp + c);
    return relu<A>(normalised(norm, y, c));
  });
}

}  // namespace fastdarts::FASTDARTS_ISA
