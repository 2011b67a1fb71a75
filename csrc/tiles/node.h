// A node: its terms mixed, and in the backward their sums against its gradient.
#pragma once
#include "layout.h"
#include "moments.h"

namespace fastdarts::FASTDARTS_ISA {

// sum += scale_t * t over COUNT terms and a tile's rows, one vector of channels.
template <class A, bool FULL, int COUNT, class T>
FD_INLINE void mix_terms(const Term<A, T>* terms, const Tile& tile, int64_t c, int64_t columns, int64_t cp, A* sum) {
  const T* data[COUNT];
  int64_t sh[COUNT], sw[COUNT], channels[COUNT];
  Vec<A> scale[COUNT];
  FD_UNROLL
  for (int t = 0; t < COUNT; ++t) {
    const Term<A, T>& term = terms[t];
    data[t] = term.t.data + tile.image * term.t.sn;
    sh[t] = term.t.sh;
    sw[t] = term.t.sw;
    channels[t] = term.channels;
    scale[t] = load<A>(term.scale + c);
    if (term.factors) scale[t] *= load<A>(term.factors + tile.image * cp + c);
  }
  for (int64_t r = tile.begin; r < tile.end; ++r)
    for (int64_t column = 0; column < columns; ++column, sum += cp) {
      Vec<A> v = load<A>(sum + c);
      FD_UNROLL
      for (int t = 0; t < COUNT; ++t) {
        const T* pixel = data[t] + r * sh[t] + column * sw[t];
        v += scale[t] * load_channels<A, FULL>(pixel, c, channels[t]);
      }
      store(sum + c, v);
    }
}

// node = sum_t scale_t * t + shift; `sum` holds a tile.
template <class A, bool FULL, class T>
FD_INLINE void mix_tiles(const Mix<A, T>& m, int64_t lo, int64_t hi, A* sum) {
  const Geometry g = m.geo;
  const View<T> node = m.node;
  for (int64_t index = lo; index < hi; ++index) {
    const Tile tile = tile_at(g, index);
    const int64_t pixels = (tile.end - tile.begin) * g.wo;
    for (int64_t c = 0; c < g.cp; c += kLanes<A>) {
      const Vec<A> shift = load<A>(m.shift + tile.image * m.shift_step + c);
      for (int64_t i = 0; i < pixels; ++i) store(sum + i * g.cp + c, shift);
      exact_blocks<8>(m.count, [&](auto size, int64_t t) FD_LAMBDA {
        mix_terms<A, FULL, size.value>(m.terms + t, tile, c, g.wo, g.cp, sum);
      });
    }
    const A* from = sum;
    for (int64_t r = tile.begin; r < tile.end; ++r)
      for (int64_t column = 0; column < g.wo; ++column, from += g.cp) {
        T* out = node.data + tile.image * node.sn + r * node.sh + column * node.sw;
        for (int64_t c = 0; c < g.c; c += kLanes<A>) store_channels<A, FULL>(out, load<A>(from + c), c, g.c);
      }
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
