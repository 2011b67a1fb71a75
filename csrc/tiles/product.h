// Pointwise convolutions and their weights' gradients: products of a few rows and columns at a time, in registers.
#pragma once
#include "vectors.h"

namespace fastdarts::FASTDARTS_ISA {

template <class A>
FD_INLINE void multiply_add(Vec<A>& acc, A a, Vec<A> b) {
  acc += a * b;
}
#if FASTDARTS_BF16_DOT
FD_INLINE void multiply_add(Vec<float>& acc, Pair a, Words b) {
  acc = (Vec<float>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)(Words{} + a), (__m512bh)b);
}
#endif

// done(i, j, sum_k a[i * ai + k * ak] * b[k, j-th vector]) for ROWS values of i and COLS vectors of b, where E is A or pairs along
// k. SA: ai where it is known when compiling (0: not), so that addresses need no arithmetic.
template <class A, class E, int SA, int ROWS, int COLS, class F>
FD_INLINE void product_block(const E* a, int64_t ai, int64_t ak, const E* b, int64_t bk, int64_t k_size, const F& done) {
  Vec<A> acc[ROWS][COLS];
  FD_UNROLL
  for (int i = 0; i < ROWS * COLS; ++i) acc[i / COLS][i % COLS] = Vec<A>{};
  for (int64_t k = 0; k < k_size; ++k) {
    Vec<E> bv[COLS];
    FD_UNROLL
    for (int j = 0; j < COLS; ++j) bv[j] = load<E>(b + k * bk + j * kLanes<A>);
    FD_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const E s = a[(SA ? i * SA : i * ai) + k * ak];
      FD_UNROLL
      for (int j = 0; j < COLS; ++j) multiply_add(acc[i][j], s, bv[j]);
    }
  }
  FD_UNROLL
  for (int i = 0; i < ROWS * COLS; ++i) done(i / COLS, i % COLS, acc[i / COLS][i % COLS]);
}

constexpr int kPairRows = kRegisters == 32 ? 8 : 4;    // of a block of two vectors
constexpr int kSingleRows = kRegisters == 32 ? 16 : 8;  // of one

// out[i, :] (+)= sum_k a[i * ai + k * ak] * b[k, :] for `rows` values of i and `columns` (whole vectors) of b.
template <class A, class E, int SA, bool ADD>
void product_strided(const E* a, int64_t rows, int64_t ai, int64_t ak, const E* b, int64_t bk, int64_t columns, int64_t k_size,
                     A* out, int64_t oi) {
  const auto block = [&](auto size, auto columns_at_once, int64_t i, int64_t j) FD_LAMBDA {
    A* to = out + i * oi + j;
    product_block<A, E, SA, size.value, columns_at_once.value>(
        a + i * ai, ai, ak, b + j, bk, k_size, [&](int row, int column, Vec<A> v) FD_LAMBDA {
          A* o = to + row * oi + column * kLanes<A>;
          store(o, ADD ? load<A>(o) + v : v);
        });
  };
  int64_t j = 0;
  for (; j + 2 * kLanes<A> <= columns; j += 2 * kLanes<A>)
    exact_blocks<kPairRows>(rows, [&](auto size, int64_t i) FD_LAMBDA { block(size, Int<2>{}, i, j); });
  for (; j < columns; j += kLanes<A>)
    exact_blocks<kSingleRows>(rows, [&](auto size, int64_t i) FD_LAMBDA { block(size, Int<1>{}, i, j); });
}

// f(Int<k_size>{}) for usual sizes, f(Int<0>{}) for others.
template <class A, class E, class F>
FD_INLINE void with_known(int64_t k_size, const F& f) {
  constexpr int kUnit = sizeof(E) == sizeof(A) && !kIsPair<E> ? 16 : 8;
  if (k_size == kUnit)
    f(Int<kUnit>{});
  else if (k_size == 2 * kUnit)
    f(Int<2 * kUnit>{});
  else if (k_size == 3 * kUnit)
    f(Int<3 * kUnit>{});
  else if (k_size == 4 * kUnit)
    f(Int<4 * kUnit>{});
  else if (k_size == 8 * kUnit)
    f(Int<8 * kUnit>{});
  else
    f(Int<0>{});
}

// y[p, :columns] = sum_k d[p, k] * w[k, :columns]; d holds k_size dense numbers a pixel, or pairs of them, zeros behind the first
// `used`.
template <class A, class E>
FD_INLINE void pointwise(const E* d, int64_t pixels, const E* w, int64_t k_size, int64_t used, int64_t columns, A* y,
                         int64_t y_stride) {
  with_known<A, E>(k_size, [&](auto known) FD_LAMBDA {
    product_strided<A, E, known.value, false>(d, pixels, k_size, 1, w, columns, columns, used, y, y_stride);
  });
}

// y as above, of the stored type, to `out` past the caches, to `soon` as well unless null, and into the sums of `sum_strip`.
template <class A, class E, int SA, int COLS, class T>
FD_INLINE void product_summed_columns(const E* d, int64_t pixels, const E* w, int64_t k_size, int64_t used, int64_t cp, A* sums,
                                      T* out, T* soon) {
  Vec<A> origin[COLS], sum[COLS][2], square[COLS][2];
  FD_UNROLL
  for (int j = 0; j < COLS; ++j) {
    const A* at = sums + j * kLanes<A>;
    origin[j] = load<A>(at);
    sum[j][0] = load<A>(at + cp);
    square[j][0] = load<A>(at + 2 * cp);
    sum[j][1] = square[j][1] = Vec<A>{};
  }
  exact_blocks<COLS == 2 ? kPairRows : kSingleRows>(pixels, [&](auto size, int64_t p) FD_LAMBDA {
    product_block<A, E, SA, size.value, COLS>(d + p * k_size, k_size, 1, w, cp, used, [&](int row, int j, Vec<A> y) FD_LAMBDA {
      const int64_t at = (p + row) * cp + j * kLanes<A>;
      if (soon) store(soon + at, y);
      stream(out + at, y);
      const Vec<A> v = as_stored<T, A>(y) - origin[j];
      sum[j][row % 2] += v;
      square[j][row % 2] += v * v;
    });
  });
  FD_UNROLL
  for (int j = 0; j < COLS; ++j) {
    A* at = sums + j * kLanes<A>;
    store(at + cp, sum[j][0] + sum[j][1]);
    store(at + 2 * cp, square[j][0] + square[j][1]);
  }
}

template <class A, class E, int SA, class T>
void product_summed(const E* d, int64_t pixels, const E* w, int64_t k_size, int64_t used, int64_t cp, A* sums, T* out, T* soon) {
  const auto soon_at = [&](int64_t j) FD_LAMBDA { return soon ? soon + j : nullptr; };
  int64_t j = 0;
  for (; j + 2 * kLanes<A> <= cp; j += 2 * kLanes<A>)
    product_summed_columns<A, E, SA, 2>(d, pixels, w + j, k_size, used, cp, sums + j, out + j, soon_at(j));
  for (; j < cp; j += kLanes<A>)
    product_summed_columns<A, E, SA, 1>(d, pixels, w + j, k_size, used, cp, sums + j, out + j, soon_at(j));
}

template <class A, class E, class T>
FD_INLINE void pointwise_summed(const E* d, int64_t pixels, const E* w, int64_t k_size, int64_t used, int64_t cp, A* sums, T* out,
                                T* soon) {
  with_known<A, E>(k_size, [&](auto known) FD_LAMBDA {
    product_summed<A, E, known.value>(d, pixels, w, k_size, used, cp, sums, out, soon);
  });
}

// dw[k, :columns] += sum_p d[p, k] * dy[p, :columns] for the first `used` of k.
template <class A, class E>
FD_INLINE void pointwise_weight_grad(const E* d, int64_t pixels, const E* dy, int64_t columns, int64_t k_size, int64_t used, A* dw) {
  product_strided<A, E, 1, true>(d, used, 1, k_size, dy, columns, columns, pixels, dw, columns);
}

}  // namespace fastdarts::FASTDARTS_ISA
