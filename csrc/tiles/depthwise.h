// Depthwise convolutions, their transposes and their weights' gradients.
#pragma once
#include "vectors.h"

namespace fastdarts {

template <class A>
using DepthwiseTile = void (*)(const A*, int64_t, const A*, A*, int64_t, int64_t, int64_t, int64_t);
template <class A>
using DepthwiseWeightTile = void (*)(const A*, int64_t, const A*, int64_t, A*, int64_t, int64_t, int64_t);

}  // namespace fastdarts

// Both kinds of AVX-512 have the same convolutions of float: compiled with the one that has all types, declared for the other.
#define FASTDARTS_SHARE_DEPTHWISE(template)                                               \
  namespace fastdarts::avx512 {                                                           \
  template DepthwiseTile<float> depthwise<float, 1, false>(int64_t, int64_t, int64_t);    \
  template DepthwiseTile<float> depthwise<float, 1, true>(int64_t, int64_t, int64_t);     \
  template DepthwiseTile<float> depthwise<float, 2, false>(int64_t, int64_t, int64_t);    \
  template DepthwiseTile<float> depthwise_phase<float>(int64_t, int64_t);                 \
  template DepthwiseWeightTile<float> depthwise_weight<float, 1>(int64_t, int64_t, int64_t); \
  template DepthwiseWeightTile<float> depthwise_weight<float, 2>(int64_t, int64_t, int64_t); \
  }

#if FASTDARTS_BF16_DOT
namespace fastdarts::avx512 {
template <class A, int S, bool ADD>
DepthwiseTile<A> depthwise(int64_t kernel, int64_t dilation, int64_t cp);
template <class A>
DepthwiseTile<A> depthwise_phase(int64_t ky, int64_t kx);
template <class A, int S>
DepthwiseWeightTile<A> depthwise_weight(int64_t kernel, int64_t dilation, int64_t cp);
}  // namespace fastdarts::avx512
FASTDARTS_SHARE_DEPTHWISE(extern template)
namespace fastdarts::FASTDARTS_ISA {
using avx512::depthwise;
using avx512::depthwise_phase;
using avx512::depthwise_weight;
}  // namespace fastdarts::FASTDARTS_ISA
#else
namespace fastdarts::FASTDARTS_ISA {

// PB pixels of one row, OS pixels apart, for one vector of channels. Each input pixel is loaded once per kernel row and serves
// every tap.
template <class A, int KY, int K, int D, int S, int OS, int CP, int PB, bool ADD>
FD_INLINE void depthwise_block(const A* in, int64_t in_row, const A* w, int64_t cp, A* out) {
  const int64_t px = CP ? CP : cp;
  Vec<A> acc[PB];
  FD_UNROLL
  for (int p = 0; p < PB; ++p) acc[p] = Vec<A>{};
#pragma GCC unroll 1
  for (int ky = 0; ky < KY; ++ky) {
    Vec<A> taps[K];
    FD_UNROLL
    for (int kx = 0; kx < K; ++kx) taps[kx] = load<A>(w + (ky * K + kx) * px);
    FD_UNROLL
    for (int q = 0; q < (PB - 1) * S + (K - 1) * D + 1; ++q) {
      Vec<A> v = load<A>(in + q * px);
      in_register(v);
      FD_UNROLL
      for (int kx = 0; kx < K; ++kx) {
        const int start = q - kx * D;
        if (start >= 0 && start % S == 0 && start / S < PB) acc[start / S] += taps[kx] * v;
      }
    }
    in += in_row * D;
  }
  FD_UNROLL
  for (int p = 0; p < PB; ++p) {
    A* o = out + p * OS * px;
    store(o, ADD ? load<A>(o) + acc[p] : acc[p]);
  }
}

// out[r, OS c] (+)= sum_{ky, kx} w[ky, kx] * in[S r + D ky, S c + D kx]; row strides in elements.
template <class A, int KY, int K, int D, int S, int OS, int CP, bool ADD>
void depthwise_tile(const A* in, int64_t in_row, const A* w, A* out, int64_t out_row, int64_t rows, int64_t columns,
                    int64_t cp) {
  constexpr int kPixels = kRegisters == 32 ? 16 : 8;
  const int64_t px = CP ? CP : cp;
  for (int64_t c = 0; c < px; c += kLanes<A>)
    for (int64_t r = 0; r < rows; ++r) {
      const A* in_r = in + r * S * in_row + c;
      A* out_r = out + r * out_row + c;
      const auto block = [&](auto size, int64_t i) FD_LAMBDA {
        depthwise_block<A, KY, K, D, S, OS, CP, size.value, ADD>(in_r + i * S * px, in_row, w + c, cp, out_r + i * OS * px);
      };
      if constexpr (ADD)
        exact_blocks<kPixels>(columns, block);
      else
        overlapping_blocks<kPixels>(columns, block);
    }
}

// The usual channel counts are known when compiling, so that addresses need no arithmetic.
template <class A, int K, int D, int S, bool ADD>
DepthwiseTile<A> depthwise_of_channels(int64_t cp) {
  if constexpr (sizeof(A) == 4 && S == 1) {
    if (cp == 16) return depthwise_tile<A, K, K, D, S, 1, 16, ADD>;
    if (cp == 32) return depthwise_tile<A, K, K, D, S, 1, 32, ADD>;
    if (cp == 64) return depthwise_tile<A, K, K, D, S, 1, 64, ADD>;
  }
  return depthwise_tile<A, K, K, D, S, 1, 0, ADD>;
}

template <class A, int S, bool ADD>
DepthwiseTile<A> depthwise(int64_t kernel, int64_t dilation, int64_t cp) {
  if (dilation == 1) {
    if (kernel == 3) return depthwise_of_channels<A, 3, 1, S, ADD>(cp);
    if (kernel == 5) return depthwise_of_channels<A, 5, 1, S, ADD>(cp);
    return depthwise_of_channels<A, 7, 1, S, ADD>(cp);
  }
  if (kernel == 3) return depthwise_of_channels<A, 3, 2, S, ADD>(cp);
  return depthwise_of_channels<A, 5, 2, S, ADD>(cp);
}

// A phase of the gradient of a stride-2 convolution: every other pixel of every other row.
template <class A>
DepthwiseTile<A> depthwise_phase(int64_t ky, int64_t kx) {
  if (ky == 5) return depthwise_tile<A, 5, 5, 1, 1, 2, 0, true>;
  if (ky == 4) return kx == 4 ? depthwise_tile<A, 4, 4, 1, 1, 2, 0, true> : depthwise_tile<A, 4, 3, 1, 1, 2, 0, true>;
  if (ky == 3 && kx == 4) return depthwise_tile<A, 3, 4, 1, 1, 2, 0, true>;
  if (ky == 3) return kx == 3 ? depthwise_tile<A, 3, 3, 1, 1, 2, 0, true> : depthwise_tile<A, 3, 2, 1, 1, 2, 0, true>;
  if (ky == 2 && kx == 3) return depthwise_tile<A, 2, 3, 1, 1, 2, 0, true>;
  if (ky == 2) return kx == 2 ? depthwise_tile<A, 2, 2, 1, 1, 2, 0, true> : depthwise_tile<A, 2, 1, 1, 1, 2, 0, true>;
  return kx == 2 ? depthwise_tile<A, 1, 2, 1, 1, 2, 0, true> : depthwise_tile<A, 1, 1, 1, 1, 2, 0, true>;
}

// PB pixels of one row, KY kernel rows: each input pixel is loaded once per kernel row and serves every tap.
template <class A, int K, int D, int S, int CP, int KY, int PB>
FD_INLINE void depthwise_weight_block(const A* in, int64_t in_row, const A* dd, int64_t cp, Vec<A> (&acc)[KY][K]) {
  const int64_t px = CP ? CP : cp;
  Vec<A> g[PB];
  FD_UNROLL
  for (int p = 0; p < PB; ++p) g[p] = load<A>(dd + p * px);
  FD_UNROLL
  for (int ky = 0; ky < KY; ++ky) {
    const A* in_k = in + ky * D * in_row;
    FD_UNROLL
    for (int q = 0; q < (PB - 1) * S + (K - 1) * D + 1; ++q) {
      Vec<A> v = load<A>(in_k + q * px);
      in_register(v);
      FD_UNROLL
      for (int kx = 0; kx < K; ++kx) {
        const int start = q - kx * D;
        if (start >= 0 && start % S == 0 && start / S < PB) acc[ky][kx] += g[start / S] * v;
      }
    }
  }
}

// dw[ky, kx] += sum_{r, c} dd[r, c] * in[S r + D ky, S c + D kx], KY kernel rows from ky at a time.
template <class A, int K, int D, int S, int CP, int KY>
FD_INLINE void depthwise_weight_rows(const A* in, int64_t in_row, const A* dd, int64_t dd_row, int64_t rows, int64_t columns,
                                     int64_t cp, A* dw) {
  const int64_t px = CP ? CP : cp;
  Vec<A> acc[KY][K];
  FD_UNROLL
  for (int i = 0; i < KY * K; ++i) acc[i / K][i % K] = Vec<A>{};
  for (int64_t r = 0; r < rows; ++r) {
    const A* in_r = in + r * S * in_row;
    const A* dd_r = dd + r * dd_row;
    exact_blocks<4>(columns, [&](auto size, int64_t i) FD_LAMBDA {
      depthwise_weight_block<A, K, D, S, CP, KY, size.value>(in_r + i * S * px, in_row, dd_r + i * px, cp, acc);
    });
  }
  FD_UNROLL
  for (int i = 0; i < KY * K; ++i) store(dw + i * px, load<A>(dw + i * px) + acc[i / K][i % K]);
}

template <class A, int K, int D, int S, int CP>
void depthwise_weight_tile(const A* in, int64_t in_row, const A* dd, int64_t dd_row, A* dw, int64_t rows, int64_t columns,
                           int64_t cp) {
  constexpr int kAtOnce = kRegisters == 32 ? (K == 7 ? 3 : K) : (K == 3 ? 3 : K == 5 ? 2 : 1);
  const int64_t px = CP ? CP : cp;
  for (int64_t c = 0; c < px; c += kLanes<A>) {
    int ky = 0;
    for (; ky + kAtOnce <= K; ky += kAtOnce)
      depthwise_weight_rows<A, K, D, S, CP, kAtOnce>(in + ky * D * in_row + c, in_row, dd + c, dd_row, rows, columns, cp,
                                                     dw + ky * K * px + c);
    if constexpr (K % kAtOnce)
      depthwise_weight_rows<A, K, D, S, CP, K % kAtOnce>(in + ky * D * in_row + c, in_row, dd + c, dd_row, rows, columns, cp,
                                                         dw + ky * K * px + c);
  }
}

template <class A, int K, int D, int S>
DepthwiseWeightTile<A> depthwise_weight_of_channels(int64_t cp) {
  if constexpr (sizeof(A) == 4 && S == 1) {
    if (cp == 16) return depthwise_weight_tile<A, K, D, S, 16>;
    if (cp == 32) return depthwise_weight_tile<A, K, D, S, 32>;
    if (cp == 64) return depthwise_weight_tile<A, K, D, S, 64>;
  }
  return depthwise_weight_tile<A, K, D, S, 0>;
}

template <class A, int S>
DepthwiseWeightTile<A> depthwise_weight(int64_t kernel, int64_t dilation, int64_t cp) {
  if (dilation == 1) {
    if (kernel == 3) return depthwise_weight_of_channels<A, 3, 1, S>(cp);
    if (kernel == 5) return depthwise_weight_of_channels<A, 5, 1, S>(cp);
    return depthwise_weight_of_channels<A, 7, 1, S>(cp);
  }
  if (kernel == 3) return depthwise_weight_of_channels<A, 3, 2, S>(cp);
  return depthwise_weight_of_channels<A, 5, 2, S>(cp);
}

}  // namespace fastdarts::FASTDARTS_ISA
#endif
