// The products of a stage: its output, the gradient of its input and that of its weights. In bfloat16 where the instruction set
// multiplies it: as pairs, or in AMX's tiles.
#pragma once
#include "moments.h"
#include "product.h"
#if FASTDARTS_AMX
#include "amx.h"
#endif

namespace fastdarts::FASTDARTS_ISA {

#if !FASTDARTS_AMX
struct ProductUnit {
  ProductUnit() {}  // nothing to configure
};
#endif

template <class T>
constexpr bool kDots = FASTDARTS_BF16_DOT && sizeof(T) == 2;

// ---- factors: numbers of A, or bfloat16 in the memory of as many A ----

typedef uint16_t FactorHalves __attribute__((vector_size(kBytes / 2), aligned(2), may_alias));

FD_INLINE FactorHalves* halves_at(float* factors, int64_t i) {
  return reinterpret_cast<FactorHalves*>(reinterpret_cast<char*>(factors) + 2 * i);
}
FD_INLINE const FactorHalves* halves_at(const float* factors, int64_t i) {
  return reinterpret_cast<const FactorHalves*>(reinterpret_cast<const char*>(factors) + 2 * i);
}

// Numbers from i on.
template <class T, class A>
FD_INLINE void store_factor(A* factors, int64_t i, Vec<A> v) {
  if constexpr (kDots<T>)
    *halves_at(factors, i) = (FactorHalves)narrow(v);
  else
    store(factors + i, v);
}

// Makes numbers of A factors, in place.
template <class T, class A>
FD_INLINE void to_factors(A* numbers, int64_t count) {
#if FASTDARTS_BF16_DOT
  constexpr int64_t kTwo = 2 * kLanes<A>;
  int64_t i = 0;
  for (; i + kTwo <= count; i += kTwo)
    _mm512_storeu_si512(halves_at(numbers, i), narrow_two(load<A>(numbers + i), load<A>(numbers + i + kLanes<A>)));
  if (i < count) store_factor<T>(numbers, i, load<A>(numbers + i));
#endif
}

// Factors as pairs along channels.
FD_INLINE const Pair* pairs_of(const float* factors, int64_t i) { return reinterpret_cast<const Pair*>(factors) + i / 2; }
FD_INLINE const Pair* pairs(const uint32_t* packed) { return reinterpret_cast<const Pair*>(packed); }
FD_INLINE int64_t pairs_with(int64_t channels) { return (channels + 1) / 2; }

// Pairs along pixels, [count, k], of pixels 2 i and 2 i + 1 of [pixels, k], zeros behind the last. numbers(i): vector i of what
// is paired; may be in place.
template <class F>
FD_INLINE void pair_along_pixels(int64_t pixels, int64_t k, int64_t count, float* to, const F& numbers) {
  for (int64_t p = 0; p < 2 * count; p += 2)
    for (int64_t c = 0; c < k; c += kLanes<float>) {
      const auto pixel = [&](int64_t i) FD_LAMBDA { return i < pixels ? widen(numbers(i * k + c)) : Words{}; };
      const Words low = pixel(p), high = pixel(p + 1);
      *reinterpret_cast<Vectors<uint32_t>::Loose*>(to + p / 2 * k + c) = low | (high << 16);
    }
}

// The same of factors.
FD_INLINE void pair_factors(const float* factors, int64_t pixels, int64_t k, int64_t count, float* to) {
  pair_along_pixels(pixels, k, count, to, [&](int64_t i) FD_LAMBDA { return (Halves)*halves_at(factors, i); });
}

// ---- products ----

// y [pixels, cp] = d * weights, d factors [pixels, stage.k].
template <class A, class T>
FD_INLINE void multiply(const Stage<A, T>& stage, const A* d, int64_t pixels, int64_t cp, A* y) {
#if FASTDARTS_AMX
  product_in_tiles(d, pixels, stage.k, stage.pw_pairs, cp, [&](int64_t p, int64_t count, int64_t c, auto tiles, const A* from) FD_LAMBDA {
    each<tiles.value>([&](auto tile) FD_LAMBDA {
      for (int64_t i = 0; i < count; ++i)
        store(y + (p + i) * cp + c + tile.value * kTileRows, load<A>(from + tile.value * kTileSize + i * kTileRows));
    });
  });
#else
  if constexpr (kDots<T>)
    pointwise(pairs_of(d, 0), pixels, pairs(stage.pw_pairs), stage.k / 2, pairs_with(stage.used_k), cp, y, cp);
  else
    pointwise(d, pixels, stage.pw, stage.k, stage.used_k, cp, y, cp);
#endif
}

// The same, stored to `out` past the caches, to `soon` as well unless null, and added to the sums of `sum_strip`.
template <class A, class T>
FD_INLINE void multiply_summed(const Stage<A, T>& stage, const A* d, int64_t pixels, int64_t cp, A* sums, T* out, T* soon) {
#if FASTDARTS_AMX
  const bool lines = (cp == kTileRows || cp % kTileDepth == 0) && reinterpret_cast<uintptr_t>(out) % 64 == 0;
  product_in_tiles(d, pixels, stage.k, stage.pw_pairs, cp, [&](int64_t p, int64_t count, int64_t c, auto tiles, const A* y) FD_LAMBDA {
    constexpr bool TWO = tiles.value % 2 == 0;
    for (int64_t tile = 0; tile < tiles.value; tile += TWO ? 2 : 1) {
      const int64_t channel = c + tile * kTileRows, at = p * cp + channel;
      T* soon_at = soon ? soon + at : nullptr;
      if (lines)
        store_summed<TWO, true>(y + tile * kTileSize, count, cp, sums + channel, out + at, soon_at);
      else
        store_summed<TWO, false>(y + tile * kTileSize, count, cp, sums + channel, out + at, soon_at);
    }
  });
#else
  if constexpr (kDots<T>)
    pointwise_summed(pairs_of(d, 0), pixels, pairs(stage.pw_pairs), stage.k / 2, pairs_with(stage.used_k), cp, sums, out, soon);
  else
    pointwise_summed(d, pixels, stage.pw, stage.k, stage.used_k, cp, sums, out, soon);
#endif
}

// The gradient of the stage's d, [rows, columns, stage.k], row r of it at row(r): dy * transposed weights, dy factors [rows *
// columns, cp].
template <class A, class T, class F>
FD_INLINE void multiply_back(const Stage<A, T>& stage, const A* dy, int64_t rows, int64_t columns, int64_t cp, const F& row) {
#if FASTDARTS_AMX
  const int64_t k = stage.k;
  product_in_tiles(dy, rows * columns, cp, stage.pw_t_pairs, k, [&](int64_t p, int64_t count, int64_t c, auto tiles, const A* y) FD_LAMBDA {
    int64_t r = p / columns, column = p % columns;
    for (int64_t i = 0; i < count; ++i) {
      A* to = row(r) + column * k + c;
      each<tiles.value>([&](auto t) FD_LAMBDA { store(to + t.value * kTileRows, load<A>(y + t.value * kTileSize + i * kTileRows)); });
      if (++column < columns) continue;
      column = 0;
      ++r;
    }
  });
#else
  for (int64_t r = 0; r < rows; ++r) {
    if constexpr (kDots<T>)
      pointwise(pairs_of(dy, r * columns * cp), columns, pairs(stage.pw_t_pairs), cp / 2, pairs_with(stage.used_c), stage.k, row(r),
                stage.k);
    else
      pointwise(dy + r * columns * cp, columns, stage.pw_t, cp, stage.used_c, stage.k, row(r), stage.k);
  }
#endif
}

// dw [stage.k, cp] += d^T dy, perhaps without rows of padding: d [pixels, k] numbers of A, dy factors [pixels, cp]. Overwrites d and
// `spare` [pixels + kSparePixels, larger of k and (k + cp) / 2].
template <class A, class T>
FD_INLINE void weight_grad(const Stage<A, T>& stage, A* d, int64_t pixels, const A* dy, int64_t cp, A* dw, A* spare) {
  const int64_t k = stage.k;
#if FASTDARTS_AMX
  const int64_t blocks = (pixels + kTileDepth - 1) / kTileDepth;
  float* dy_pairs = spare + blocks * kTileRows * k;
  turn_pixels(d, pixels, k, spare);
  pair_factors(dy, pixels, cp, blocks * kTileRows, dy_pairs);
  add_outer_products(spare, dy_pairs, blocks, k, cp, dw);
#else
  if constexpr (kDots<T>) {
    const int64_t count = (pixels + 1) / 2;
    pair_along_pixels(pixels, k, count, d, [&](int64_t i) FD_LAMBDA { return narrow(load<A>(d + i)); });
    pair_factors(dy, pixels, cp, count, spare);
    pointwise_weight_grad(pairs_of(d, 0), count, pairs_of(spare, 0), cp, k, stage.used_k, dw);
  } else {
    pointwise_weight_grad(d, pixels, dy, cp, k, stage.used_k, dw);
  }
#endif
}

}  // namespace fastdarts::FASTDARTS_ISA
