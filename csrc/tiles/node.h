// A node: its terms mixed, and in the backward their sums against its gradient.
#pragma once
#include "layout.h"
#include "moments.h"

namespace fastdarts::FASTDARTS_ISA {

// from + sum of scale_t * (t - mean_t) over COUNT terms and a tile's rows, one vector of channels: the tile's `sum`, or with LAST the node.
// `from`: [pixels, cp] numbers, `step` from one pixel to the next.
template <class A, bool FULL, int COUNT, bool LAST, class T>
FD_INLINE void mix_terms(const Mix<A, T>& m, int64_t t, const Tile& tile, int64_t c, const A* from, int64_t step, A* sum) {
  const Geometry& g = m.geo;
  const View<T> node = m.node;
  const T* data[COUNT];
  int64_t sh[COUNT], sw[COUNT], channels[COUNT];
  Vec<A> scale[COUNT], mean[COUNT];
  FD_UNROLL
  for (int i = 0; i < COUNT; ++i) {
    const Term<A, T>& term = m.terms[t + i];
    data[i] = term.t.data + tile.image * term.t.sn;
    sh[i] = term.t.sh;
    sw[i] = term.t.sw;
    channels[i] = term.channels;
    scale[i] = load<A>(term.scale + c);
    mean[i] = load<A>(term.mean + c);
    if (term.factors) scale[i] *= load<A>(term.factors + tile.image * g.cp + c);
  }
  for (int64_t r = tile.begin; r < tile.end; ++r) {
    T* out = node.data + tile.image * node.sn + r * node.sh;
    for (int64_t column = 0; column < g.wo; ++column, from += step, sum += g.cp, out += node.sw) {
      Vec<A> v = load<A>(from + c);
      FD_UNROLL
      for (int i = 0; i < COUNT; ++i)
        v += scale[i] * (load_channels<A, FULL>(data[i] + r * sh[i] + column * sw[i], c, channels[i]) - mean[i]);
      if constexpr (LAST)
        store_channels<A, FULL>(out, v, c, g.c);
      else
        store(sum + c, v);
    }
  }
}

// node = sum_t scale_t * (t - mean_t) + shift, of at least one term; `sum` holds a tile.
template <class A, bool FULL, class T>
FD_INLINE void mix_tiles(const Mix<A, T>& m, int64_t lo, int64_t hi, A* sum) {
  const Geometry& g = m.geo;
  for (int64_t index = lo; index < hi; ++index) {
    const Tile tile = tile_at(g, index);
    const A* shift = m.shift + tile.image * m.shift_step;
    for (int64_t c = 0; c < g.c; c += kLanes<A>)
      exact_blocks<8>(m.count, [&](auto size, int64_t t) FD_LAMBDA {
        const A* from = t ? sum : shift;
        const int64_t step = t ? g.cp : 0;
        if (t + size.value == m.count)
          mix_terms<A, FULL, size.value, true>(m, t, tile, c, from, step, sum);
        else
          mix_terms<A, FULL, size.value, false>(m, t, tile, c, from, step, sum);
      });
  }
}

// chunk_sum += sum g * (t - mean) for COUNT terms and a tile, and sum g with the first: several streams at once keep the memory
// busy.
template <class A, bool FULL, int COUNT, class T>
FD_INLINE void sum_terms(const Mix<A, T>& m, int64_t t, const Tile& tile, int64_t chunk) {
  const Geometry& g = m.geo;
  for (int64_t c = 0; c < g.cp; c += kLanes<A>) {
    const T *image[COUNT], *from = m.node.data + tile.image * m.node.sn;
    int64_t sh[COUNT], sw[COUNT], channels[COUNT];
    const A* factors = m.terms[0].factors;
    const Vec<A> factor = factors ? load<A>(factors + tile.image * g.cp + c) : Vec<A>{} + A(1);
    Vec<A> mean[COUNT], sum[COUNT][4], total[4] = {};  // four partial sums: less rounding, no waiting for the one before
    FD_UNROLL
    for (int i = 0; i < COUNT; ++i) {
      const Term<A, T>& term = m.terms[t + i];
      image[i] = term.t.data + tile.image * term.t.sn;
      sh[i] = term.t.sh;
      sw[i] = term.t.sw;
      channels[i] = term.channels;
      mean[i] = load<A>(term.mean + c);
      sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = Vec<A>{};
    }
    const auto joined = [&](const Vec<A>(&v)[4]) FD_LAMBDA { return (v[0] + v[1]) + (v[2] + v[3]); };
    for (int64_t r = tile.begin; r < tile.end; ++r)
      exact_blocks<4>(g.wo, [&](auto size, int64_t column) FD_LAMBDA {
        FD_UNROLL
        for (int j = 0; j < size.value; ++j) {
          const T* here = from + r * m.node.sh + (column + j) * m.node.sw;
          const Vec<A> v = factor * load_channels<A, FULL>(here, c, g.c);
          total[j] += v;
          FD_UNROLL
          for (int i = 0; i < COUNT; ++i) {
            const T* pixel = image[i] + r * sh[i] + (column + j) * sw[i];
            sum[i][j] += v * (load_channels<A, FULL>(pixel, c, channels[i]) - mean[i]);
          }
        }
      });
    FD_UNROLL
    for (int i = 0; i < COUNT; ++i) add_lanes<A>(m.terms[t + i].chunk_sum + chunk * g.cp + c, joined(sum[i]));
    if (t == 0) add_lanes<A>(m.chunk_g + chunk * g.cp + c, joined(total));
  }
}

template <class A, bool FULL, class T>
FD_INLINE void term_sum_tiles(const Mix<A, T>& m, int64_t lo, int64_t hi, int64_t chunk) {
  for (int64_t index = lo; index < hi; ++index)
    exact_blocks<4>(m.count, [&](auto size, int64_t t) FD_LAMBDA {
      sum_terms<A, FULL, size.value>(m, t, tile_at(m.geo, index), chunk);
    });
}

template <class A, class T>
void mix(const Mix<A, T>& m, int64_t lo, int64_t hi, int64_t, A* scratch) {
  if (m.geo.c == m.geo.cp)
    mix_tiles<A, true>(m, lo, hi, scratch);
  else
    mix_tiles<A, false>(m, lo, hi, scratch);
}

template <class A, class T>
void term_sums(const Mix<A, T>& m, int64_t lo, int64_t hi, int64_t chunk) {
  if (m.geo.c == m.geo.cp)
    term_sum_tiles<A, true>(m, lo, hi, chunk);
  else
    term_sum_tiles<A, false>(m, lo, hi, chunk);
}

}  // namespace fastdarts::FASTDARTS_ISA
