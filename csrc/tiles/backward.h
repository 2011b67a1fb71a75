// The backward passes of what leaves a state.
#pragma once
#include "forward.h"

namespace fastdarts::FASTDARTS_ISA {

constexpr int64_t kAsks = 6;

// From the gradient dn of a stage's normalised output to everything before it. `dn(row, column, c)` gives it for one image,
// `factors` [cp] multiply it unless null, `padded` is the stage's input for the tile's rows; dx [stride * rows, w, cp] is added to, or written
// where not ADD. Asks up to kAsks times a strip for what lies ahead.
template <bool ADD, class A, class T, class F>
FD_INLINE void stage_backward(const Stage<A, T>& stage, const Geometry& g, const Tile& tile, const A* padded,
                              const Padded& of, bool need_params, bool need_x, A* grads, const Scratch<A>& s, Ahead& ahead,
                              const A* factors, const F& dn, A* dx) {
  const int64_t cp = g.cp, wo = g.wo, S = stage.stride, strip = strip_rows<A>(g);
  // Input rows of this tile also see outputs of its neighbours; their dd is computed here once more.
  const int64_t reach = stage.kernel && need_x ? (stage.pad + S - 1) / S : 0;
  const int64_t first = tile.begin - reach < 0 ? 0 : tile.begin - reach;
  const int64_t last = tile.end + reach < g.ho ? tile.end + reach : g.ho;
  const T* y = stage.y + tile.image * g.ho * g.wo * cp;

  // The gradient dd of the depthwise convolution, with zeros around.
  const Padded out(g, true);
  const auto dd_row = [&](int64_t r) FD_LAMBDA { return s.d_padded + (r - tile.begin + out.pad) * out.row + out.pad * cp; };
  if (stage.kernel && g.bands > 1) {
    for (int64_t r = tile.begin - reach; r < first; ++r) clear(dd_row(r) - out.pad * cp, out.row);
    for (int64_t r = last; r < tile.end + reach; ++r) clear(dd_row(r) - out.pad * cp, out.row);
  }

  const auto back = [&](int64_t begin, int64_t end, bool own) FD_LAMBDA {
    const int64_t rows = end - begin, pixels = rows * wo;
    for (int64_t c = 0; c < cp; c += kLanes<A>) {
      Vec<A> from_g = load<A>(stage.from_g + c);
      if (factors) from_g *= load<A>(factors + c);
      const Vec<A> from_y = load<A>(stage.from_y + c), mean = load<A>(stage.norm.mean + c), offset = load<A>(stage.offset + c);
      int64_t at = c;
      for (int64_t r = begin; r < end; ++r)
        for (int64_t column = 0; column < wo; ++column, at += cp) {
          const Vec<A> of_y = from_y * (load<A>(y + begin * wo * cp + at) - mean) + offset;
          store_factor<T>(s.dy, at, from_g * dn(r, column, c) + of_y);
        }
    }
    if (own) ahead.ask();
    if (need_params && own) {
      depthwise_forward(stage, g, padded + (begin - tile.begin) * S * of.row, of, rows, s.d);
      ahead.ask();
      weight_grad(stage, s.d, pixels, s.dy, cp, grads + stage.grad, s.dd);
      ahead.ask();
    }
    // From here on dy is only multiplied by the pointwise weights.
    if (!need_x && !(need_params && stage.kernel)) return;
    if (stage.kernel) return multiply_back(stage, s.dy, rows, wo, cp, [&](int64_t r) FD_LAMBDA { return dd_row(begin + r); });
    multiply_back(stage, s.dy, 1, pixels, cp, [&](int64_t) FD_LAMBDA { return s.dd; });
    const A* dd = s.dd;
    const int64_t parts = stage.k / cp;
    for (int64_t r = begin - tile.begin; r < end - tile.begin; ++r)
      for (int64_t column = 0; column < wo; ++column)
        for (int64_t part = 0; part < parts; ++part, dd += cp) {
          if (S * (tile.begin + r) + part >= of.h || S * column + part >= of.w) continue;
          A* o = dx + ((S * r + part) * of.w + S * column + part) * cp;
          for (int64_t c = 0; c < cp; c += kLanes<A>) store(o + c, load<A>(o + c) + load<A>(dd + c));
        }
  };
  for (int64_t begin = first, end; begin < last; begin = end) {
    const bool own = begin >= tile.begin && begin < tile.end;
    const int64_t limit = begin < tile.begin ? tile.begin : own ? tile.end : last;
    end = begin + strip < limit ? begin + strip : limit;
    back(begin, end, own);
    if (own) ahead.ask();
  }
  if (!stage.kernel) return;

  // Both read the same rows of dd: strip by strip they do so from the first-level cache.
  const int64_t shift = of.pad - stage.pad, end_row = S * tile.end < of.h ? S * tile.end : of.h;
  const A* in = padded + shift * of.row + shift * cp;
  A* dw = grads + stage.grad + stage.k * cp;
  for (int64_t begin = tile.begin; begin < tile.end; begin += strip) {
    const int64_t end = begin + strip < tile.end ? begin + strip : tile.end, row = S * (begin - tile.begin);
    if (need_params) {
      const auto run = S == 1 ? depthwise_weight<A, 1>(stage.kernel, stage.dilation, cp)
                              : depthwise_weight<A, 2>(stage.kernel, stage.dilation, cp);
      run(in + row * of.row, of.row, dd_row(begin), out.row, dw, end - begin, wo, cp);
    }
    ahead.ask();
    if (need_x && S == 1) {
      depthwise<A, 1, ADD>(stage.kernel, stage.dilation, cp)(dd_row(begin) - stage.pad * (out.row + cp), out.row, stage.dw_flipped,
                                                             dx + row * of.w * cp, of.w * cp, end - begin, of.w, cp);
    } else if (need_x) {
      const A* taps = stage.dw_flipped;
      for (int64_t part = 0; part < 4; ++part) {
        const int64_t odd_row = part / 2, odd_column = part % 2;
        const Phase down(stage.kernel, stage.dilation, stage.pad, odd_row), across(stage.kernel, stage.dilation, stage.pad, odd_column);
        if (down.taps * across.taps == 0) continue;
        const int64_t limit = 2 * end < end_row ? 2 * end : end_row;
        depthwise_phase<A>(down.taps, across.taps)(dd_row(begin) + down.first * out.row + across.first * cp, out.row, taps,
                                                   dx + ((row + odd_row) * of.w + odd_column) * cp, 2 * of.w * cp,
                                                   (limit - 2 * begin - odd_row + 1) / 2, (of.w - odd_column + 1) / 2, cp);
        taps += down.taps * across.taps * cp;
      }
    }
    ahead.ask();
  }
}

// A branch's factors [cp] for a tile's image, or null.
template <class A, class T>
FD_INLINE const A* factors_of(const Branch<A, T>& branch, const Geometry& g, const Tile& tile) {
  return branch.factors ? branch.factors + tile.image * g.cp : nullptr;
}

// The second stages of some edges' separable convolutions: weight gradients, and the gradient of the middle with the sums that
// its batch norm needs.
template <class A, bool FULL, class T>
FD_INLINE void second_backward_tiles(const Bank<A, T>& bank, int64_t lo, int64_t hi, int64_t chunk, A* base, A* grads) {
  const Geometry g = bank.geo;
  const Scratch<A> s(g, base);
  const Padded middle(g, true);
  const auto separable_from = [&](int64_t b) FD_LAMBDA {
    while (b < bank.count && !bank.branches[b].separable) ++b;
    return b;
  };
  for (int64_t index = lo; index < hi; ++index) {
    const Tile tile = tile_at(g, index);
    for (int64_t b = separable_from(0); b < bank.count; b = separable_from(b + 1)) {
      const Branch<A, T>& branch = bank.branches[b];
      const T* gi = branch.g.data + tile.image * branch.g.sn;
      const int64_t sh = branch.g.sh, sw = branch.g.sw, channels = g.c;
      Ahead ahead;
      if (const int64_t next = separable_from(b + 1); next < bank.count)
        ahead_second(ahead, bank.branches[next], g, tile, bank.branches[next].g.data != branch.g.data);
      else if (index + 1 < g.n * g.bands)
        ahead_second(ahead, bank.branches[separable_from(0)], g, tile_at(g, index + 1), true);
      ahead.over(kAsks * strips<A>(g, tile));
      T* dz = branch.dz + (tile.image * g.ho + tile.begin) * g.wo * g.cp;
      A* of_relu = s.d + g.rows * g.wo * g.cp;  // behind this stage's d, as inner products are of cp
      if (bank.need_params) fill_middle(g, branch.first, branch.first.y, tile, s.middle);
      stage_backward<false>(branch.second, g, tile, s.middle, middle, bank.need_params, true, grads, s, ahead,
                            factors_of(branch, g, tile),
                            [&](int64_t row, int64_t column, int64_t c) FD_LAMBDA {
                              return load_channels<A, FULL>(gi + row * sh + column * sw, c, channels);
                            },
                            of_relu);
      const T* y = branch.first.y + (tile.image * g.ho + tile.begin) * g.wo * g.cp;
      const int64_t pixels = (tile.end - tile.begin) * g.wo;
      for (int64_t c = 0; c < g.cp; c += kLanes<A>) {
        const Norm<A>& norm = branch.first.norm;
        const Vec<A> mean = load<A>(norm.mean + c), scale = load<A>(norm.scale + c), shift = load<A>(norm.shift + c);
        Vec<A> sum[2] = {}, sum_y[2] = {};
        const auto one = [&](int64_t i, int lane) FD_LAMBDA {
          const Vec<A> centred = load<A>(y + i * g.cp + c) - mean;
          const Vec<A> v = as_stored<T, A>(behind_relu<A>(centred * scale + shift, load<A>(of_relu + i * g.cp + c)));
          store(dz + i * g.cp + c, v);
          sum[lane] += v;
          sum_y[lane] += v * centred;
        };
        int64_t i = 0;
        for (; i + 2 <= pixels; i += 2) {
          one(i, 0);
          one(i + 1, 1);
        }
        if (i < pixels) one(i, 0);
        add_lanes<A>(branch.chunk_dz + chunk * g.cp + c, sum[0] + sum[1]);
        add_lanes<A>(branch.chunk_dzy + chunk * g.cp + c, sum_y[0] + sum_y[1]);
      }
    }
  }
}

// The first stages of some edges' branches; with the bank's last edge the state's whole gradient.
template <class A, bool FULL, class T>
FD_INLINE void first_backward_tiles(const Bank<A, T>& bank, int64_t lo, int64_t hi, A* base, A* grads) {
  const Geometry g = bank.geo;
  const Scratch<A> s(g, base);
  const Padded source(g, false);
  for (int64_t index = lo; index < hi; ++index) {
    const Tile tile = tile_at(g, index);
    const int64_t x_begin = tile.begin * g.stride, x_end = tile.end * g.stride < g.h ? tile.end * g.stride : g.h;
    A* dx = nullptr;
    if (bank.need_x) dx = bank.starts && bank.finishes ? s.dx : bank.dx_partial + (tile.image * g.h + x_begin) * g.w * g.cp;
    if (bank.need_x && bank.starts) clear(dx, (x_end - x_begin) * g.w * g.cp);
    if (bank.count && bank.need_params) fill_source<A, FULL>(bank, tile, s.source);
    for (int64_t b = 0; b < bank.count; ++b) {
      const Branch<A, T>& branch = bank.branches[b];
      Ahead ahead;
      if (b + 1 == bank.count && bank.need_x && bank.finishes) ahead_finish(ahead, bank, tile);
      if (b + 1 < bank.count)
        ahead_first(ahead, bank, bank.branches[b + 1], tile, false);
      else if (index + 1 < g.n * g.bands)
        ahead_first(ahead, bank, bank.branches[0], tile_at(g, index + 1), true);
      ahead.over(kAsks * strips<A>(g, tile));
      const auto back = [&](const A* factors, const auto& dn) FD_LAMBDA {
        stage_backward<true>(branch.first, g, tile, s.source, source, bank.need_params, bank.need_x, grads, s, ahead,
                             factors, dn, dx);
      };
      if (branch.separable) {
        const T* dz = branch.dz + tile.image * g.ho * g.wo * g.cp;
        back(nullptr, [&](int64_t row, int64_t column, int64_t c) FD_LAMBDA { return load<A>(dz + (row * g.wo + column) * g.cp + c); });
      } else {
        const T* gi = branch.g.data + tile.image * branch.g.sn;
        const int64_t sh = branch.g.sh, sw = branch.g.sw, channels = g.c;
        back(factors_of(branch, g, tile), [&](int64_t row, int64_t column, int64_t c) FD_LAMBDA {
          return load_channels<A, FULL>(gi + row * sh + column * sw, c, channels);
        });
      }
    }
    if (!bank.need_x || !bank.finishes) continue;
    const T* x = bank.x.data + tile.image * bank.x.sn;
    for (int64_t row = x_begin; row < x_end; ++row)
      for (int64_t column = 0; column < g.w; ++column) {
        A* o = dx + ((row - x_begin) * g.w + column) * g.cp;
        for (int64_t c = 0; c < g.cp; c += kLanes<A>) {
          Vec<A> v = behind_relu<A>(load_channels<A, FULL>(x + row * bank.x.sh + column * bank.x.sw, c, g.c), load<A>(o + c));
          for (int64_t k = 0; k < bank.skips; ++k) {
            const View<T>& gv = bank.skip_g[k];
            Vec<A> more = load_channels<A, FULL>(gv.data + tile.image * gv.sn + row * gv.sh + column * gv.sw, c, g.c);
            if (bank.skip_factors[k]) more *= load<A>(bank.skip_factors[k] + tile.image * g.cp + c);
            v += bank.skip_weight[k] * more;
          }
          if (bank.g_before.data) {
            const View<const T>& gv = bank.g_before;
            v += load_channels<A, FULL>(gv.data + tile.image * gv.sn + row * gv.sh + column * gv.sw, c, g.c);
          }
          store(o + c, v);
        }
      }
    if (bank.pools.max_y || bank.pools.avg_y) pool_backward<A, FULL>(bank, tile.image, x_begin, x_end, s.d, dx);
    for (int64_t row = x_begin; row < x_end; ++row)
      for (int64_t column = 0; column < g.w; ++column) {
        const A* o = dx + ((row - x_begin) * g.w + column) * g.cp;
        T* out = bank.dx.data + tile.image * bank.dx.sn + row * bank.dx.sh + column * bank.dx.sw;
        for (int64_t c = 0; c < bank.dx_channels; c += kLanes<A>) store_channels<A, FULL>(out, load<A>(o + c), c, bank.dx_channels);
      }
  }
}

template <class A, class T>
void second_backward(const Bank<A, T>& bank, int64_t lo, int64_t hi, int64_t chunk, A* scratch, A* grads) {
  const ProductUnit unit;
  if (bank.geo.c == bank.geo.cp)
    second_backward_tiles<A, true>(bank, lo, hi, chunk, scratch, grads);
  else
    second_backward_tiles<A, false>(bank, lo, hi, chunk, scratch, grads);
}

template <class A, class T>
void first_backward(const Bank<A, T>& bank, int64_t lo, int64_t hi, int64_t, A* scratch, A* grads) {
  const ProductUnit unit;
  if (bank.geo.c == bank.geo.cp)
    first_backward_tiles<A, true>(bank, lo, hi, scratch, grads);
  else
    first_backward_tiles<A, false>(bank, lo, hi, scratch, grads);
}

}  // namespace fastdarts::FASTDARTS_ISA
