// The forward passes of what leaves a state.
#pragma once
#include "ahead.h"
#include "depthwise.h"
#include "pool.h"
#include "stage_product.h"

namespace fastdarts::FASTDARTS_ISA {

// d = depthwise(padded) or a gather of pixels, [rows * wo, stage.k].
template <class A, class T>
FD_INLINE void depthwise_forward(const Stage<A, T>& stage, const Geometry& g, const A* padded, const Padded& of, int64_t rows,
                                 A* d) {
  const int64_t shift = of.pad - stage.pad;
  const A* in = padded + shift * of.row + shift * g.cp;
  if (stage.kernel) {
    const auto run = stage.stride == 1 ? depthwise<A, 1, false>(stage.kernel, stage.dilation, g.cp)
                                       : depthwise<A, 2, false>(stage.kernel, stage.dilation, g.cp);
    run(in, of.row, stage.dw, d, g.wo * g.cp, rows, g.wo, g.cp);
    return;
  }
  const int64_t parts = stage.k / g.cp, step = stage.stride * g.cp;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t column = 0; column < g.wo; ++column)
      for (int64_t part = 0; part < parts; ++part, d += g.cp) {
        const A* here = in + (stage.stride * r + part) * of.row + column * step + part * g.cp;
        for (int64_t c = 0; c < g.cp; c += kLanes<A>) store(d + c, load<A>(here + c));
      }
}

// y = pointwise(d) of a strip: stored, and added to the tile's sums. Overwrites d.
template <class A, class T>
FD_INLINE void pointwise_forward(const Stage<A, T>& stage, const Geometry& g, const Tile& strip, bool starts, A* d, A* y, A* sums) {
  const int64_t pixels = (strip.end - strip.begin) * g.wo, at = (strip.image * g.ho + strip.begin) * g.wo * g.cp;
  T *out = stage.y + at, *soon = stage.soon ? stage.soon + at : nullptr;
  to_factors<T>(d, pixels * stage.k);
  if (!starts) return multiply_summed(stage, d, pixels, g.cp, sums, out, soon);
  multiply(stage, d, pixels, g.cp, y);  // the sums' origin is not known before y
  sum_strip<T>(y, pixels, g.cp, sums, [&](int64_t i, Vec<A> v) FD_LAMBDA {
    if (soon) store(soon + i, v);
    stream(out + i, v);
  });
}

// A stage of a tile, strip by strip, and its moments.
template <class A, class T>
FD_INLINE void stage_forward(const Stage<A, T>& stage, const Geometry& g, const Tile& tile, int64_t chunk, int64_t before,
                             const A* padded, const Padded& of, const Scratch<A>& s, Ahead& ahead) {
  over_strips<A>(g, tile, [&](const Tile& strip) FD_LAMBDA {
    const int64_t before_it = strip.begin - tile.begin;
    depthwise_forward(stage, g, padded + before_it * stage.stride * of.row, of, strip.end - strip.begin, s.d);
    ahead.ask();
    pointwise_forward(stage, g, strip, before_it == 0, s.d, s.dy, s.sums);
    ahead.ask();
  });
  join_moments(s.sums, (tile.end - tile.begin) * g.wo, g.cp, before, stage.chunk_mean + chunk * g.cp, stage.chunk_m2 + chunk * g.cp);
}

// First stages of some edges' branches, and the pools of their source with the first edge.
template <class A, bool FULL, class T>
FD_INLINE void first_forward_tiles(const Bank<A, T>& bank, int64_t lo, int64_t hi, int64_t chunk, A* base) {
  const Geometry& g = bank.geo;
  const Scratch<A> s(g, base);
  const Padded source(g, false);
  int64_t before = 0;
  for (int64_t index = lo; index < hi; ++index) {
    const Tile tile = tile_at(g, index);
    if (bank.count) fill_source<A, FULL>(bank, tile, s.source);
    Ahead ahead;
    if (index + 1 < g.n * g.bands) ahead_source(ahead, bank, tile_at(g, index + 1));
    ahead.over(2 * bank.count * strips<A>(g, tile));
    for (int64_t b = 0; b < bank.count; ++b)
      stage_forward(bank.branches[b].first, g, tile, chunk, before, s.source, source, s, ahead);
    if (bank.starts && (bank.pools.max_y || bank.pools.avg_y)) pool_forward<A, FULL>(bank, tile, chunk, before, s);
    before += (tile.end - tile.begin) * g.wo;
  }
}

// Second stages of some edges' separable convolutions.
template <class A, class T>
void second_forward(const Bank<A, T>& bank, int64_t lo, int64_t hi, int64_t chunk, A* base) {
  const ProductUnit unit;
  const Geometry& g = bank.geo;
  const Scratch<A> s(g, base);
  const Padded middle(g, true);
  for (int64_t b = 0; b < bank.count; ++b) {
    const Branch<A, T>& branch = bank.branches[b];
    if (!branch.separable) continue;
    int64_t before = 0;
    for (int64_t index = lo; index < hi; ++index) {
      const Tile tile = tile_at(g, index);
      fill_middle(g, branch.first, branch.first.soon, tile, s.middle);
      Ahead ahead;
      if (index + 1 < g.n * g.bands) ahead_output(ahead, branch.first.soon, g, tile_at(g, index + 1));
      ahead.over(2 * strips<A>(g, tile));
      stage_forward(branch.second, g, tile, chunk, before, s.middle, middle, s, ahead);
      before += (tile.end - tile.begin) * g.wo;
    }
  }
}

template <class A, class T>
void first_forward(const Bank<A, T>& bank, int64_t lo, int64_t hi, int64_t chunk, A* scratch) {
  const ProductUnit unit;
  if (bank.geo.c == bank.geo.cp)
    first_forward_tiles<A, true>(bank, lo, hi, chunk, scratch);
  else
    first_forward_tiles<A, false>(bank, lo, hi, chunk, scratch);
}

}  // namespace fastdarts::FASTDARTS_ISA
