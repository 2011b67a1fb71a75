// The tile kernels, written once with vector extensions and compiled once per instruction set: tile_<isa>.cpp defines
// FASTDARTS_ISA (a namespace) and FASTDARTS_VECTOR_BYTES, sets the target, and includes this file. FASTDARTS_BF16_DOT says that
// the target multiplies pairs of bfloat16 (AVX512-BF16), which the bfloat16 kernels then use for their products.
//
// Nothing here may use inline functions or templates of other headers: the linker could hand another instruction set's copy
// of them to the whole process. See README.md for how the passes fit together.
#include <cstdint>

#include "tile.h"

#define FD_INLINE inline __attribute__((always_inline))
#define FD_LAMBDA __attribute__((always_inline))

namespace fastdarts {
namespace FASTDARTS_ISA {

constexpr int kBytes = FASTDARTS_VECTOR_BYTES;
constexpr int kRegisters = kBytes == 64 ? 32 : 16;

// ---- vectors ---------------------------------------------------------------------------------------------------------

template <class A>
struct Vectors;
template <>
struct Vectors<float> {
  typedef float V __attribute__((vector_size(kBytes)));
  typedef float Loose __attribute__((vector_size(kBytes), aligned(4)));
  typedef int32_t Mask __attribute__((vector_size(kBytes)));
};
template <>
struct Vectors<double> {
  typedef double V __attribute__((vector_size(kBytes)));
  typedef double Loose __attribute__((vector_size(kBytes), aligned(8)));
  typedef int64_t Mask __attribute__((vector_size(kBytes)));
};
// Two bfloat16, the one with the lower index in the lower half; read where other types were written.
typedef uint32_t Pair __attribute__((may_alias));
typedef uint32_t Words __attribute__((vector_size(kBytes)));
template <>
struct Vectors<uint32_t> {
  typedef Words V;
  typedef uint32_t Loose __attribute__((vector_size(kBytes), aligned(4), may_alias));
};
template <class A>
using Vec = typename Vectors<A>::V;
template <class A>
constexpr int kLanes = kBytes / sizeof(A);

typedef uint16_t Halves __attribute__((vector_size(kBytes / 2)));
typedef uint16_t LooseHalves __attribute__((vector_size(kBytes / 2), aligned(2)));

// GCC 12 splits 64-byte conversions in two, so AVX-512 spells them out.
FD_INLINE Words widen(Halves halves) {
#if FASTDARTS_VECTOR_BYTES == 64
  return (Words)_mm512_cvtepu16_epi32((__m256i)halves);
#else
  return __builtin_convertvector(halves, Words);
#endif
}

template <class A>
FD_INLINE Vec<A> load(const A* p) {
  return *reinterpret_cast<const typename Vectors<A>::Loose*>(p);
}
template <class A>
FD_INLINE Vec<A> load(const bf16* p) {
  return (Vec<A>)(widen(*reinterpret_cast<const LooseHalves*>(p)) << 16);
}
template <class A>
FD_INLINE void store(A* p, Vec<A> v) {
  *reinterpret_cast<typename Vectors<A>::Loose*>(p) = v;
}
FD_INLINE Words round_to_bf16(Vec<float> v) {  // to nearest, ties to even; NaN stays NaN
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;
}
FD_INLINE Halves narrow(Vec<float> v) {
#if FASTDARTS_BF16_DOT
  return (Halves)_mm512_cvtneps_pbh((__m512)v);
#elif FASTDARTS_VECTOR_BYTES == 64
  return (Halves)_mm512_cvtepi32_epi16((__m512i)round_to_bf16(v));
#else
  return __builtin_convertvector(round_to_bf16(v), Halves);
#endif
}
FD_INLINE void store(bf16* p, Vec<float> v) { *reinterpret_cast<LooseHalves*>(p) = narrow(v); }
// Past the caches, to memory that nobody reads soon: a plain store would first fetch the line it overwrites.
template <class T, class V>
FD_INLINE void stream(T* p, V v) {
#if FASTDARTS_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return __builtin_ia32_movntps512(p, v);
  if constexpr (sizeof(T) == 8) return __builtin_ia32_movntpd512(p, v);
#endif
  store(p, v);
}
// The first `n` lanes only, the others 0: the last channels of a tensor whose channels do not fill whole vectors.
template <class A, class T>
FD_INLINE Vec<A> load_part(const T* p, int64_t n) {
#if FASTDARTS_VECTOR_BYTES == 64
  const uint32_t lanes = (1u << n) - 1;
  if constexpr (sizeof(T) == 8) return (Vec<A>)_mm512_maskz_loadu_pd(lanes, p);
  if constexpr (sizeof(T) == 4) return (Vec<A>)_mm512_maskz_loadu_ps(lanes, p);
  if constexpr (sizeof(T) == 2) return (Vec<A>)(widen((Halves)_mm256_maskz_loadu_epi16(lanes, p)) << 16);
#else
  T lanes[kLanes<A>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load<A>(lanes);
#endif
}
template <class A, class T>
FD_INLINE void store_part(T* p, Vec<A> v, int64_t n) {
#if FASTDARTS_VECTOR_BYTES == 64
  const uint32_t lanes = (1u << n) - 1;
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(p, lanes, (__m512d)v);
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, lanes, (__m512)v);
  if constexpr (sizeof(T) == 2) _mm256_mask_storeu_epi16(p, lanes, (__m256i)narrow(v));
#else
  T lanes[kLanes<A>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}
// FULL: the channels fill whole vectors, which is then known when compiling.
template <class A, bool FULL, class T>
FD_INLINE Vec<A> load_channels(const T* p, int64_t c, int64_t channels) {
  return FULL || c + kLanes<A> <= channels ? load<A>(p + c) : load_part<A>(p + c, channels - c);
}
template <class A, bool FULL, class T>
FD_INLINE void store_channels(T* p, Vec<A> v, int64_t c, int64_t channels) {
  if (FULL || c + kLanes<A> <= channels)
    store(p + c, v);
  else
    store_part<A>(p + c, v, channels - c);
}
template <class A>
FD_INLINE Vec<A> relu(Vec<A> v) {  // as PyTorch: NaN stays NaN
#if FASTDARTS_VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 4) return (Vec<A>)_mm512_max_ps(_mm512_setzero_ps(), (__m512)v);
#endif
  return v < 0 ? Vec<A>{} : v;
}

// GCC would rather load a value again for each of its uses, which takes the loads that the other operands need.
template <class V>
FD_INLINE void in_register(V& v) {
#if FASTDARTS_VECTOR_BYTES == 64
  asm("" : "+v"(v));
#elif FASTDARTS_VECTOR_BYTES == 32
  asm("" : "+x"(v));
#endif
}

template <class A>
FD_INLINE void clear(A* p, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<A>) store(p + i, Vec<A>{});
}

template <class E>
constexpr bool kIsPair = false;
template <>
constexpr bool kIsPair<uint32_t> = true;

template <int I>
struct Int {
  static constexpr int value = I;
};
template <int I, int N, class F>
FD_INLINE void unroll_from(const F& f) {
  if constexpr (I < N) {
    f(Int<I>{});
    unroll_from<I + 1, N>(f);
  }
}
// f(Int<0>{}), ..., f(Int<N - 1>{}): constant indices keep arrays of vectors in registers.
template <int N, class F>
FD_INLINE void unroll(const F& f) {
  unroll_from<0, N>(f);
}

// Covers [0, n) by blocks f(Int<size>{}, start) of the largest sizes that fit; the last may overlap the one before where
// blocks may be computed twice.
template <int LARGEST, class F>
FD_INLINE void overlapping_blocks(int64_t n, const F& f) {
  if (n >= LARGEST) {
    for (int64_t i = 0; i < n; i += LARGEST) f(Int<LARGEST>{}, i + LARGEST <= n ? i : n - LARGEST);
  } else if constexpr (LARGEST > 1) {
    overlapping_blocks<LARGEST / 2>(n, f);
  }
}
template <int LARGEST, class F>
FD_INLINE void exact_blocks(int64_t n, const F& f, int64_t i = 0) {
  for (; i + LARGEST <= n; i += LARGEST) f(Int<LARGEST>{}, i);
  if constexpr (LARGEST > 1) exact_blocks<LARGEST / 2>(n, f, i);
}

// ---- pointwise convolution -------------------------------------------------------------------------------------------

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
  unroll<ROWS>([&](auto i) FD_LAMBDA { unroll<COLS>([&](auto j) FD_LAMBDA { acc[i.value][j.value] = Vec<A>{}; }); });
  for (int64_t k = 0; k < k_size; ++k) {
    Vec<E> bv[COLS];
    unroll<COLS>([&](auto j) FD_LAMBDA { bv[j.value] = load<E>(b + k * bk + j.value * kLanes<A>); });
    unroll<ROWS>([&](auto i) FD_LAMBDA {
      const E s = a[(SA ? i.value * SA : i.value * ai) + k * ak];
      unroll<COLS>([&](auto j) FD_LAMBDA { multiply_add(acc[i.value][j.value], s, bv[j.value]); });
    });
  }
  unroll<ROWS>([&](auto i) FD_LAMBDA { unroll<COLS>([&](auto j) FD_LAMBDA { done(i, j, acc[i.value][j.value]); }); });
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
        a + i * ai, ai, ak, b + j, bk, k_size, [&](auto row, auto column, Vec<A> v) FD_LAMBDA {
          A* o = to + row.value * oi + column.value * kLanes<A>;
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

// y[p, :columns] = sum_k d[p, k] * w[k, :columns]; d holds k_size dense numbers a pixel, or pairs of them.
template <class A, class E>
FD_INLINE void pointwise(const E* d, int64_t pixels, const E* w, int64_t k_size, int64_t columns, A* y, int64_t y_stride) {
  with_known<A, E>(k_size, [&](auto known) FD_LAMBDA {
    product_strided<A, E, known.value, false>(d, pixels, k_size, 1, w, columns, columns, k_size, y, y_stride);
  });
}

// y as above, of the stored type, to `out` past the caches, to `soon` as well unless null, and into the sums of `sum_strip`.
template <class A, class E, int SA, int COLS, class T>
FD_INLINE void product_summed_columns(const E* d, int64_t pixels, const E* w, int64_t k_size, int64_t cp, A* sums, T* out, T* soon) {
  Vec<A> origin[COLS], sum[COLS][2], square[COLS][2];
  unroll<COLS>([&](auto j) FD_LAMBDA {
    const A* at = sums + j.value * kLanes<A>;
    origin[j.value] = load<A>(at);
    sum[j.value][0] = load<A>(at + cp);
    square[j.value][0] = load<A>(at + 2 * cp);
    sum[j.value][1] = square[j.value][1] = Vec<A>{};
  });
  exact_blocks<COLS == 2 ? kPairRows : kSingleRows>(pixels, [&](auto size, int64_t p) FD_LAMBDA {
    product_block<A, E, SA, size.value, COLS>(
        d + p * k_size, k_size, 1, w, cp, k_size, [&](auto row, auto j, Vec<A> y) FD_LAMBDA {
          const int64_t at = (p + row.value) * cp + j.value * kLanes<A>;
          if (soon) store(soon + at, y);
          stream(out + at, y);
          const Vec<A> v = y - origin[j.value];
          sum[j.value][row.value % 2] += v;
          square[j.value][row.value % 2] += v * v;
        });
  });
  unroll<COLS>([&](auto j) FD_LAMBDA {
    A* at = sums + j.value * kLanes<A>;
    store(at + cp, sum[j.value][0] + sum[j.value][1]);
    store(at + 2 * cp, square[j.value][0] + square[j.value][1]);
  });
}

template <class A, class E, int SA, class T>
void product_summed(const E* d, int64_t pixels, const E* w, int64_t k_size, int64_t cp, A* sums, T* out, T* soon) {
  const auto soon_at = [&](int64_t j) FD_LAMBDA { return soon ? soon + j : nullptr; };
  int64_t j = 0;
  for (; j + 2 * kLanes<A> <= cp; j += 2 * kLanes<A>)
    product_summed_columns<A, E, SA, 2>(d, pixels, w + j, k_size, cp, sums + j, out + j, soon_at(j));
  for (; j < cp; j += kLanes<A>)
    product_summed_columns<A, E, SA, 1>(d, pixels, w + j, k_size, cp, sums + j, out + j, soon_at(j));
}

template <class A, class E, class T>
FD_INLINE void pointwise_summed(const E* d, int64_t pixels, const E* w, int64_t k_size, int64_t cp, A* sums, T* out, T* soon) {
  with_known<A, E>(k_size, [&](auto known) FD_LAMBDA {
    product_summed<A, E, known.value>(d, pixels, w, k_size, cp, sums, out, soon);
  });
}

// dw[k, :columns] += sum_p d[p, k] * dy[p, :columns]
template <class A, class E>
FD_INLINE void pointwise_weight_grad(const E* d, int64_t pixels, const E* dy, int64_t columns, int64_t k_size, A* dw) {
  product_strided<A, E, 1, true>(d, k_size, 1, k_size, dy, columns, columns, pixels, dw, columns);
}

template <class T>
constexpr bool kDots = FASTDARTS_BF16_DOT && sizeof(T) == 2;

FD_INLINE const Pair* pairs(const uint32_t* packed) { return reinterpret_cast<const Pair*>(packed); }

// [pixels, k] as pairs along k; may be in place.
FD_INLINE const Pair* pair_along_channels(const float* from, int64_t count, float* to) {
  typedef uint16_t Out __attribute__((vector_size(kBytes / 2), aligned(2), may_alias));
  for (int64_t i = 0; i < count; i += kLanes<float>)
    *reinterpret_cast<Out*>(reinterpret_cast<char*>(to) + 2 * i) = narrow(load<float>(from + i));
  return reinterpret_cast<const Pair*>(to);
}

// [pixels, k] as pairs along pixels, [ceil(pixels / 2), k]; may be in place.
FD_INLINE const Pair* pair_along_pixels(const float* from, int64_t pixels, int64_t k, float* to) {
  for (int64_t p = 0; p < pixels; p += 2)
    for (int64_t c = 0; c < k; c += kLanes<float>) {
      const Words low = widen(narrow(load<float>(from + p * k + c)));
      Words high = {};
      if (p + 1 < pixels) high = widen(narrow(load<float>(from + (p + 1) * k + c)));
      *reinterpret_cast<Vectors<uint32_t>::Loose*>(to + p / 2 * k + c) = low | (high << 16);
    }
  return reinterpret_cast<const Pair*>(to);
}

// ---- depthwise convolution -------------------------------------------------------------------------------------------

// PB pixels of one row, OS pixels apart, for one vector of channels. Each input pixel is loaded once per kernel row and serves
// every tap.
template <class A, int KY, int K, int D, int S, int OS, int CP, int PB, bool ADD>
FD_INLINE void depthwise_block(const A* in, int64_t in_row, const A* w, int64_t cp, A* out) {
  const int64_t px = CP ? CP : cp;
  Vec<A> acc[PB];
  unroll<PB>([&](auto p) FD_LAMBDA { acc[p.value] = Vec<A>{}; });
#pragma GCC unroll 1
  for (int ky = 0; ky < KY; ++ky) {
    Vec<A> taps[K];
    unroll<K>([&](auto kx) FD_LAMBDA { taps[kx.value] = load<A>(w + (ky * K + kx.value) * px); });
    unroll<(PB - 1) * S + (K - 1) * D + 1>([&](auto q) FD_LAMBDA {
      Vec<A> v = load<A>(in + q.value * px);
      in_register(v);
      unroll<K>([&](auto kx) FD_LAMBDA {
        constexpr int start = q.value - kx.value * D;
        if constexpr (start >= 0 && start % S == 0 && start / S < PB) acc[start / S] += taps[kx.value] * v;
      });
    });
    in += in_row * D;
  }
  unroll<PB>([&](auto p) FD_LAMBDA {
    A* o = out + p.value * OS * px;
    store(o, ADD ? load<A>(o) + acc[p.value] : acc[p.value]);
  });
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

template <class A>
using DepthwiseTile = void (*)(const A*, int64_t, const A*, A*, int64_t, int64_t, int64_t, int64_t);

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
  unroll<PB>([&](auto p) FD_LAMBDA { g[p.value] = load<A>(dd + p.value * px); });
  unroll<KY>([&](auto ky) FD_LAMBDA {
    const A* in_k = in + ky.value * D * in_row;
    unroll<(PB - 1) * S + (K - 1) * D + 1>([&](auto q) FD_LAMBDA {
      Vec<A> v = load<A>(in_k + q.value * px);
      in_register(v);
      unroll<K>([&](auto kx) FD_LAMBDA {
        constexpr int start = q.value - kx.value * D;
        if constexpr (start >= 0 && start % S == 0 && start / S < PB) acc[ky.value][kx.value] += g[start / S] * v;
      });
    });
  });
}

// dw[ky, kx] += sum_{r, c} dd[r, c] * in[S r + D ky, S c + D kx], KY kernel rows from ky at a time.
template <class A, int K, int D, int S, int CP, int KY>
FD_INLINE void depthwise_weight_rows(const A* in, int64_t in_row, const A* dd, int64_t dd_row, int64_t rows, int64_t columns,
                                     int64_t cp, A* dw) {
  const int64_t px = CP ? CP : cp;
  Vec<A> acc[KY][K];
  unroll<KY>([&](auto ky) FD_LAMBDA { unroll<K>([&](auto kx) FD_LAMBDA { acc[ky.value][kx.value] = Vec<A>{}; }); });
  for (int64_t r = 0; r < rows; ++r) {
    const A* in_r = in + r * S * in_row;
    const A* dd_r = dd + r * dd_row;
    exact_blocks<4>(columns, [&](auto size, int64_t i) FD_LAMBDA {
      depthwise_weight_block<A, K, D, S, CP, KY, size.value>(in_r + i * S * px, in_row, dd_r + i * px, cp, acc);
    });
  }
  unroll<KY>([&](auto ky) FD_LAMBDA {
    unroll<K>([&](auto kx) FD_LAMBDA {
      A* o = dw + (ky.value * K + kx.value) * px;
      store(o, load<A>(o) + acc[ky.value][kx.value]);
    });
  });
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

template <class A>
using DepthwiseWeightTile = void (*)(const A*, int64_t, const A*, int64_t, A*, int64_t, int64_t, int64_t);

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

// ---- tiles -----------------------------------------------------------------------------------------------------------

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
  A *source, *d_padded, *middle, *d, *dy, *dd, *sums, *windows;
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

// Rows of a strip: what passes from one step of a stage to the next stays in the first-level cache.
template <class A>
FD_INLINE int64_t strip_rows(const Geometry& g) {
  const int64_t rows = (8 << 10) / (g.wo * g.cp * int64_t(sizeof(A)));
  return rows < 1 ? 1 : rows;
}

template <class A, class F>
FD_INLINE void over_strips(const Geometry& g, const Tile& tile, const F& f) {
  const int64_t rows = strip_rows<A>(g);
  for (int64_t r = tile.begin; r < tile.end; r += rows) f(Tile{tile.image, r, r + rows < tile.end ? r + rows : tile.end});
}

// Memory that the next phase reads, asked for a little at a time while this one computes.
class Ahead {
 public:
  // `count` pieces of `bytes`, `step` bytes apart.
  FD_INLINE void add(const void* data, int64_t count, int64_t bytes, int64_t step) {
    if (size_ == kMost) return;
    if (bytes == step) {
      bytes *= count;
      count = 1;
    }
    ranges_[size_++] = {static_cast<const char*>(data), count, bytes, step};
    lines_ += count * ((bytes + 63) / 64);
  }
  // Rows of a tile.
  template <class T>
  FD_INLINE void add(const View<T>& v, int64_t image, int64_t begin, int64_t end, int64_t columns, int64_t channels) {
    add(v.data + image * v.sn + begin * v.sh, (end - begin) * columns, channels * int64_t(sizeof(T)), v.sw * int64_t(sizeof(T)));
  }
  // From here on ask() is called so many times.
  FD_INLINE void over(int64_t times) { share_ = times ? (lines_ + times - 1) / times : 0; }
  FD_INLINE void ask() {
    for (int64_t i = 0; i < share_ && now_ < size_; ++i) {
      Range& r = ranges_[now_];
      __builtin_prefetch(r.data + offset_, 0, 3);
      offset_ += 64;
      if (offset_ < r.bytes) continue;
      offset_ = 0;
      r.data += r.step;
      if (--r.count == 0) ++now_;
    }
  }

 private:
  struct Range {
    const char* data;
    int64_t count, bytes, step;
  };
  static constexpr int64_t kMost = 16;
  Range ranges_[kMost];
  int64_t size_ = 0, now_ = 0, offset_ = 0, lines_ = 0, share_ = 0;
};

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

// The rows of relu(batch norm(y)) that output rows [begin, end) of a second stage read.
template <class A, class T>
FD_INLINE void fill_middle(const Geometry& g, const Stage<A, T>& first, const T* y, const Tile& tile, A* padded) {
  const int64_t wo = g.wo, cp = g.cp;
  const T* image = y + tile.image * g.ho * wo * cp;
  const A *mean = first.mean, *rstd = first.rstd;
  fill_padded(padded, tile.begin - g.pad, tile.end + g.pad, Padded(g, true), g, [&](int64_t row, int64_t column, int64_t c) FD_LAMBDA {
    const Vec<A> y = load<A>(image + (row * wo + column) * cp + c);
    return relu<A>((y - load<A>(mean + c)) * load<A>(rstd + c));
  });
}

// d = depthwise(padded) or the gather of a factorised reduction, [rows * wo, stage.k].
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
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t column = 0; column < g.wo; ++column, d += 2 * g.cp) {
      const A* here = in + 2 * r * of.row + 2 * column * g.cp;
      for (int64_t c = 0; c < g.cp; c += kLanes<A>) {
        store(d + c, load<A>(here + c));
        store(d + g.cp + c, load<A>(here + of.row + g.cp + c));
      }
    }
}

// The mean of eight pixels: near that of all, and exact for constants.
template <class A>
FD_INLINE Vec<A> origin_of(const A* y, int64_t pixels, int64_t cp) {
  const auto at = [&](int64_t i) FD_LAMBDA { return load<A>(y + i * pixels / 8 * cp); };
  return (((at(0) + at(1)) + (at(2) + at(3))) + ((at(4) + at(5)) + (at(6) + at(7)))) * A(0.125);
}

// Sums of y and its square about an origin (exact for constants, no cancellation for a large mean) of a tile or of its first
// strip: `sums` [3 (origin, sum, sum of squares), cp]. keep(i, y[i...]) stores what was read.
template <class A, class F>
FD_INLINE void sum_strip(const A* y, int64_t pixels, int64_t cp, A* sums, const F& keep) {
  for (int64_t c = 0; c < cp; c += kLanes<A>) {
    const Vec<A> origin = origin_of(y + c, pixels, cp);
    Vec<A> sum[4] = {}, square[4] = {};
    exact_blocks<4>(pixels, [&](auto size, int64_t p) FD_LAMBDA {
      unroll<size.value>([&](auto i) FD_LAMBDA {
        const int64_t at = (p + i.value) * cp + c;
        const Vec<A> value = load<A>(y + at), v = value - origin;
        keep(at, value);
        sum[i.value] += v;
        square[i.value] += v * v;
      });
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

// y = pointwise(d) of a strip: stored, and added to the tile's sums. Overwrites d.
template <class A, class T>
FD_INLINE void pointwise_forward(const Stage<A, T>& stage, const Geometry& g, const Tile& strip, bool starts, A* d, A* y, A* sums) {
  const int64_t pixels = (strip.end - strip.begin) * g.wo, at = (strip.image * g.ho + strip.begin) * g.wo * g.cp;
  T *out = stage.y + at, *soon = stage.soon ? stage.soon + at : nullptr;
  const auto with_operands = [&](const auto& f) FD_LAMBDA {
    if constexpr (kDots<T>)
      f(pair_along_channels(d, pixels * stage.k, d), pairs(stage.pw_pairs), stage.k / 2);
    else
      f(static_cast<const A*>(d), stage.pw, stage.k);
  };
  with_operands([&](const auto* from, const auto* weights, int64_t k) FD_LAMBDA {
    if (!starts) return pointwise_summed(from, pixels, weights, k, g.cp, sums, out, soon);
    pointwise(from, pixels, weights, k, g.cp, y, g.cp);  // the sums' origin is not known before y
    sum_strip(y, pixels, g.cp, sums, [&](int64_t i, Vec<A> v) FD_LAMBDA {
      if (soon) store(soon + i, v);
      stream(out + i, v);
    });
  });
}

// A stage of a tile, strip by strip, and its moments.
template <class A, class T>
FD_INLINE void stage_forward(const Stage<A, T>& stage, const Geometry& g, const Tile& tile, int64_t chunk, int64_t before,
                             const A* padded, const Padded& of, const Scratch<A>& s, Ahead& ahead) {
  over_strips<A>(g, tile, [&](const Tile& strip) FD_LAMBDA {
    const int64_t before_it = strip.begin - tile.begin;
    depthwise_forward(stage, g, padded + before_it * stage.stride * of.row, of, strip.end - strip.begin, s.d);
    pointwise_forward(stage, g, strip, before_it == 0, s.d, s.dy, s.sums);
    ahead.ask();
  });
  join_moments(s.sums, (tile.end - tile.begin) * g.wo, g.cp, before, stage.chunk_mean + chunk * g.cp, stage.chunk_m2 + chunk * g.cp);
}

template <class A>
FD_INLINE void add_lanes(double* into, Vec<A> v) {
  A lanes[kLanes<A>];
  store(lanes, v);
  for (int lane = 0; lane < kLanes<A>; ++lane) into[lane] += double(lanes[lane]);
}

// ---- pools -----------------------------------------------------------------------------------------------------------

struct Window {
  int64_t row_begin, row_end, column_begin, column_end;
};

FD_INLINE Window window_at(const Geometry& g, int64_t r, int64_t column) {  // 3x3, padding 1, clipped to the image
  const int64_t top = r * g.stride - 1, left = column * g.stride - 1;
  return {top < 0 ? 0 : top, top + 3 < g.h ? top + 3 : g.h, left < 0 ? 0 : left, left + 3 < g.w ? left + 3 : g.w};
}

template <class A, class T>
FD_INLINE void store_pool(T* out, const A* y, int64_t pixels, int64_t cp, int64_t before, A* sums, double* mean, double* m2) {
  sum_strip(y, pixels, cp, sums, [&](int64_t i, Vec<A> v) FD_LAMBDA { stream(out + i, v); });
  join_moments(sums, pixels, cp, before, mean, m2);
}

// The larger of two; NaN wins and stays, as in PyTorch.
template <class A>
FD_INLINE Vec<A> larger(Vec<A> v, Vec<A> than) {
  return (v > than) | (v != v) ? v : than;
}

// Largest and sum of a source row's three columns around each output's; the rows of `windows` lie wo * cp apart.
template <class A, bool FULL, class T>
FD_INLINE void pool_row(const Bank<A, T>& bank, const T* row, A* largest, A* sum) {
  const Geometry& g = bank.geo;
  const int64_t sw = bank.x.sw;
  for (int64_t column = 0; column < g.wo; ++column, largest += g.cp, sum += g.cp) {
    const int64_t left = column * g.stride - 1, end = left + 3 < g.w ? left + 3 : g.w, begin = left < 0 ? 0 : left;
    for (int64_t c = 0; c < g.cp; c += kLanes<A>) {
      Vec<A> most = load_channels<A, FULL>(row + begin * sw, c, g.c), total = most;
      for (int64_t col = begin + 1; col < end; ++col) {
        const Vec<A> v = load_channels<A, FULL>(row + col * sw, c, g.c);
        most = larger<A>(v, most);
        total += v;
      }
      store(largest + c, most);
      store(sum + c, total);
    }
  }
}

template <class A, bool FULL, class T>
FD_INLINE void pool_forward(const Bank<A, T>& bank, const Tile& tile, int64_t chunk, int64_t before, const Scratch<A>& s) {
  const Geometry g = bank.geo;
  const Pools<A, T>& pools = bank.pools;
  const T* image = bank.x.data + tile.image * bank.x.sn;
  const int64_t pixels = (tile.end - tile.begin) * g.wo, line = g.wo * g.cp;
  A *max_y = s.d, *avg_y = s.dy;
  const auto largest = [&](int64_t row) FD_LAMBDA { return s.windows + row % 3 * 2 * line; };
  const auto sum = [&](int64_t row) FD_LAMBDA { return largest(row) + line; };
  int64_t known = 0;  // source rows before this one are in `windows`, or no longer needed
  for (int64_t r = tile.begin; r < tile.end; ++r) {
    const int64_t at = (r - tile.begin) * line;
    const Window rows = window_at(g, r, 0);
    for (int64_t row = rows.row_begin > known ? rows.row_begin : known; row < rows.row_end; ++row)
      pool_row<A, FULL>(bank, image + row * bank.x.sh, largest(row), sum(row));
    known = rows.row_end;
    for (int64_t column = 0; column < g.wo; ++column) {
      const Window win = window_at(g, r, column);
      const A share = A(1) / A((win.row_end - win.row_begin) * (win.column_end - win.column_begin));
      for (int64_t i = column * g.cp; i < (column + 1) * g.cp; i += kLanes<A>) {
        Vec<A> most = load<A>(largest(win.row_begin) + i), total = load<A>(sum(win.row_begin) + i);
        for (int64_t row = win.row_begin + 1; row < win.row_end; ++row) {
          most = larger<A>(load<A>(largest(row) + i), most);
          total += load<A>(sum(row) + i);
        }
        store(max_y + at + i, most);
        store(avg_y + at + i, total * share);
      }
    }
  }
  const int64_t at = (tile.image * g.ho + tile.begin) * line, moments = chunk * g.cp;
  if (pools.max_y)
    store_pool(pools.max_y + at, max_y, pixels, g.cp, before, s.sums, pools.max_mean + moments, pools.max_m2 + moments);
  if (pools.avg_y)
    store_pool(pools.avg_y + at, avg_y, pixels, g.cp, before, s.sums, pools.avg_mean + moments, pools.avg_m2 + moments);
}

// d pooled = sum_j from_g[j] * g_j + from_y * (y - mean) + offset for one row of outputs, of both pools: max's, then avg's.
template <class A, bool FULL, class T>
FD_INLINE void pool_row_gradients(const Geometry& g, const Pools<A, T>& pools, int64_t image, int64_t r, A* rows) {
  struct Pool {
    const T* y;
    const A *from_g, *mean, *from_y, *offset;
    A* out;
  };
  const int64_t at = (image * g.ho + r) * g.wo * g.cp;
  const Pool both[2] = {{pools.max_y, pools.max_from_g, pools.max_mean_a, pools.max_from_y, pools.max_offset, rows},
                        {pools.avg_y, pools.avg_from_g, pools.avg_mean_a, pools.avg_from_y, pools.avg_offset, rows + g.wo * g.cp}};
  for (int64_t c = 0; c < g.cp; c += kLanes<A>)
    for (int64_t column = 0; column < g.wo; ++column) {
      const int64_t pixel = column * g.cp + c;
      Vec<A> d[2] = {};
      unroll<2>([&](auto i) FD_LAMBDA {
        const Pool& p = both[i.value];
        if (p.y) d[i.value] = load<A>(p.from_y + c) * (load<A>(p.y + at + pixel) - load<A>(p.mean + c)) + load<A>(p.offset + c);
      });
      for (int64_t e = 0; e < pools.edges; ++e) {
        const View<T>& v = pools.g[e];
        const Vec<A> gradient = load_channels<A, FULL>(v.data + image * v.sn + r * v.sh + column * v.sw, c, g.c);
        unroll<2>([&](auto i) FD_LAMBDA {
          const Pool& p = both[i.value];
          if (p.y) d[i.value] += load<A>(p.from_g + e * g.cp + c) * gradient;
        });
      }
      unroll<2>([&](auto i) FD_LAMBDA { store(both[i.value].out + pixel, d[i.value]); });
    }
}

// The gradients of one window's pools, handed out to its pixels in order.
template <class A>
struct PoolGradients {
  Vec<A> avg, max, largest;  // avg: each pixel's share; max: until a pixel has taken it
  FD_INLINE Vec<A> pixel(Vec<A> value) {
    // The gradient of a maximum goes to the first of equal values, which may lie in rows of another tile.
    const auto here = value >= largest;
    const Vec<A> taken = here ? max : Vec<A>{};
    max = here ? Vec<A>{} : max;
    return avg + taken;
  }
};

// Adds the pools' input gradients to dx, source rows [begin, end) of one image; `rows` holds two rows of outputs.
template <class A, bool FULL, class T>
FD_INLINE void pool_backward(const Bank<A, T>& bank, int64_t image, int64_t begin, int64_t end, A* rows, A* dx) {
  const Geometry g = bank.geo;
  const Pools<A, T>& pools = bank.pools;
  const T* x = bank.x.data + image * bank.x.sn;
  const int64_t sh = bank.x.sh, sw = bank.x.sw;
  const A *d_max_row = rows, *d_avg_row = rows + g.wo * g.cp;
  // Windows that touch source rows [begin, end): centre stride * r within one row of them.
  const int64_t r_begin = begin - 1 <= 0 ? 0 : (begin - 1 + g.stride - 1) / g.stride;
  const int64_t r_end = end / g.stride + 1 < g.ho ? end / g.stride + 1 : g.ho;
  for (int64_t r = r_begin; r < r_end; ++r) {
    const int64_t at = (image * g.ho + r) * g.wo * g.cp;
    pool_row_gradients<A, FULL>(g, pools, image, r, rows);
    // Windows inside the image share pixels' values and gradients, which stay in registers from one to the next.
    const int64_t inside_begin = 1, inside_end = (g.w - 2) / g.stride + 1;
    const bool whole_rows = r * g.stride >= 1 && r * g.stride + 2 <= g.h;
    for (int64_t c = 0; c < g.cp; c += kLanes<A>) {
      const auto gradients = [&](int64_t column) FD_LAMBDA {
        const int64_t o = column * g.cp + c;
        return PoolGradients<A>{load<A>(d_avg_row + o), load<A>(d_max_row + o),
                                pools.max_y ? load<A>(pools.max_y + at + o) : Vec<A>{}};
      };
      const auto add = [&](int64_t row, int64_t col, Vec<A> v) FD_LAMBDA {
        if (row < begin || row >= end) return;
        A* to = dx + ((row - begin) * g.w + col) * g.cp + c;
        store(to, load<A>(to) + v);
      };
      const auto value = [&](int64_t row, int64_t col) FD_LAMBDA {
        return load_channels<A, FULL>(x + row * sh + col * sw, c, g.c);
      };
      const auto clipped = [&](int64_t column) FD_LAMBDA {
        const Window win = window_at(g, r, column);
        PoolGradients<A> d = gradients(column);
        d.avg *= A(1) / A((win.row_end - win.row_begin) * (win.column_end - win.column_begin));
        for (int64_t row = win.row_begin; row < win.row_end; ++row)
          for (int64_t col = win.column_begin; col < win.column_end; ++col) add(row, col, d.pixel(value(row, col)));
      };
      int64_t column = 0;
      for (; column < g.wo && (!whole_rows || column < inside_begin); ++column) clipped(column);
      if (column < inside_end) {
        const int64_t top = r * g.stride - 1;
        Vec<A> values[3][3], sums[3][3];
        unroll<9>([&](auto i) FD_LAMBDA {
          values[i.value / 3][i.value % 3] = value(top + i.value / 3, column * g.stride - 1 + i.value % 3);
          sums[i.value / 3][i.value % 3] = Vec<A>{};
        });
        for (; column < inside_end; ++column) {
          PoolGradients<A> d = gradients(column);
          d.avg *= A(1) / A(9);
          unroll<9>([&](auto i) FD_LAMBDA { sums[i.value / 3][i.value % 3] += d.pixel(values[i.value / 3][i.value % 3]); });
          for (int64_t step = 0; step < g.stride; ++step) {  // to the next window
            const int64_t leaves = column * g.stride - 1 + step, enters = leaves + 3;
            unroll<3>([&](auto y) FD_LAMBDA {
              add(top + y.value, leaves, sums[y.value][0]);
              unroll<2>([&](auto i) FD_LAMBDA {
                sums[y.value][i.value] = sums[y.value][i.value + 1];
                values[y.value][i.value] = values[y.value][i.value + 1];
              });
              sums[y.value][2] = Vec<A>{};
              values[y.value][2] = enters < g.w ? value(top + y.value, enters) : Vec<A>{};
            });
          }
        }
        const int64_t left = column * g.stride - 1;
        unroll<3>([&](auto y) FD_LAMBDA {
          unroll<2>([&](auto i) FD_LAMBDA {
            if (left + i.value < g.w) add(top + y.value, left + i.value, sums[y.value][i.value]);
          });
        });
      }
      for (; column < g.wo; ++column) clipped(column);
    }
  }
}

// ---- what lies ahead -------------------------------------------------------------------------------------------------

template <class A>
FD_INLINE int64_t strips(const Geometry& g, const Tile& tile) {
  return (tile.end - tile.begin + strip_rows<A>(g) - 1) / strip_rows<A>(g);
}

template <class A, class T>
FD_INLINE void ahead_source(Ahead& ahead, const Bank<A, T>& bank, const Tile& tile) {
  const Geometry& g = bank.geo;
  const int64_t begin = tile.begin * g.stride, end = tile.end * g.stride < g.h ? tile.end * g.stride : g.h;
  ahead.add(bank.x, tile.image, begin, end, g.w, g.c);
}

// Of a tensor [n, ho, wo, cp].
template <class T>
FD_INLINE void ahead_output(Ahead& ahead, const T* y, const Geometry& g, const Tile& tile) {
  const int64_t bytes = g.wo * g.cp * int64_t(sizeof(T));
  ahead.add(y + (tile.image * g.ho + tile.begin) * g.wo * g.cp, tile.end - tile.begin, bytes, bytes);
}

// The rows of dx that a tile adds to.
template <class A, class T>
FD_INLINE void ahead_dx(Ahead& ahead, const Bank<A, T>& bank, const Tile& tile) {
  const Geometry& g = bank.geo;
  const int64_t begin = tile.begin * g.stride, end = tile.end * g.stride < g.h ? tile.end * g.stride : g.h;
  const int64_t bytes = g.w * g.cp * int64_t(sizeof(A));
  if (bank.need_x && !bank.starts) ahead.add(bank.dx_partial + (tile.image * g.h + begin) * g.w * g.cp, end - begin, bytes, bytes);
}

// What second_backward reads for a separable branch, with the edge's part of it if the tile is new.
template <class A, class T>
FD_INLINE void ahead_second(Ahead& ahead, const Branch<A, T>& branch, const Geometry& g, const Tile& tile, bool is_new) {
  if (is_new) ahead.add(branch.g, tile.image, tile.begin, tile.end, g.wo, g.c);
  ahead_output(ahead, branch.first.y, g, tile);
  ahead_output(ahead, branch.second.y, g, tile);
}

// What first_backward reads for a branch, with the edge's part of it if the tile is new.
template <class A, class T>
FD_INLINE void ahead_first(Ahead& ahead, const Bank<A, T>& bank, const Branch<A, T>& branch, const Tile& tile, bool is_new) {
  const Geometry& g = bank.geo;
  if (is_new) {
    ahead_source(ahead, bank, tile);
    ahead_dx(ahead, bank, tile);
  }
  ahead_output(ahead, branch.first.y, g, tile);
  if (branch.separable)
    ahead_output(ahead, branch.dz, g, tile);
  else
    ahead.add(branch.g, tile.image, tile.begin, tile.end, g.wo, g.c);
}

// What first_backward reads after a tile's last branch, with the bank's last edge.
template <class A, class T>
FD_INLINE void ahead_finish(Ahead& ahead, const Bank<A, T>& bank, const Tile& tile) {
  const Geometry& g = bank.geo;
  const int64_t begin = tile.begin * g.stride, end = tile.end * g.stride < g.h ? tile.end * g.stride : g.h;
  if (bank.pools.max_y) ahead_output(ahead, bank.pools.max_y, g, tile);
  if (bank.pools.avg_y) ahead_output(ahead, bank.pools.avg_y, g, tile);
  if (bank.g_before.data) ahead.add(bank.g_before, tile.image, begin, end, g.w, g.c);
  for (int64_t e = 0; e < bank.pools.edges; ++e) ahead.add(bank.pools.g[e], tile.image, tile.begin, tile.end, g.wo, g.c);
}

// ---- passes ----------------------------------------------------------------------------------------------------------

// First stages of an edge's branches, and the pools of its source with the first edge.
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
    ahead.over(bank.count * strips<A>(g, tile));
    for (int64_t b = 0; b < bank.count; ++b)
      stage_forward(bank.branches[b].first, g, tile, chunk, before, s.source, source, s, ahead);
    if (bank.starts && (bank.pools.max_y || bank.pools.avg_y)) pool_forward<A, FULL>(bank, tile, chunk, before, s);
    before += (tile.end - tile.begin) * g.wo;
  }
}

// Second stages of an edge's separable convolutions.
template <class A, class T>
void second_forward(const Bank<A, T>& bank, int64_t lo, int64_t hi, int64_t chunk, A* base) {
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
      ahead.over(strips<A>(g, tile));
      stage_forward(branch.second, g, tile, chunk, before, s.middle, middle, s, ahead);
      before += (tile.end - tile.begin) * g.wo;
    }
  }
}

// sum += scale_t * t over COUNT terms and a tile's rows, one vector of channels.
template <class A, bool FULL, int COUNT, class T>
FD_INLINE void mix_terms(const Term<A, T>* terms, const Tile& tile, int64_t c, int64_t columns, int64_t cp, A* sum) {
  const T* data[COUNT];
  int64_t sh[COUNT], sw[COUNT], channels[COUNT];
  Vec<A> scale[COUNT];
  unroll<COUNT>([&](auto t) FD_LAMBDA {
    const Term<A, T>& term = terms[t.value];
    data[t.value] = term.t.data + tile.image * term.t.sn;
    sh[t.value] = term.t.sh;
    sw[t.value] = term.t.sw;
    channels[t.value] = term.channels;
    scale[t.value] = load<A>(term.scale + c);
  });
  for (int64_t r = tile.begin; r < tile.end; ++r)
    for (int64_t column = 0; column < columns; ++column, sum += cp) {
      Vec<A> v = load<A>(sum + c);
      unroll<COUNT>([&](auto t) FD_LAMBDA {
        const T* pixel = data[t.value] + r * sh[t.value] + column * sw[t.value];
        v += scale[t.value] * load_channels<A, FULL>(pixel, c, channels[t.value]);
      });
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
      const Vec<A> shift = load<A>(m.shift + c);
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
    Vec<A> mean[COUNT], sum[COUNT][4], total[4] = {};  // four partial sums: less rounding, no waiting for the one before
    unroll<COUNT>([&](auto i) FD_LAMBDA {
      const Term<A, T>& term = m.terms[t + i.value];
      image[i.value] = term.t.data + tile.image * term.t.sn;
      sh[i.value] = term.t.sh;
      sw[i.value] = term.t.sw;
      channels[i.value] = term.channels;
      mean[i.value] = load<A>(term.mean + c);
      unroll<4>([&](auto j) FD_LAMBDA { sum[i.value][j.value] = Vec<A>{}; });
    });
    const auto joined = [](const Vec<A>(&v)[4]) FD_LAMBDA { return (v[0] + v[1]) + (v[2] + v[3]); };
    for (int64_t r = tile.begin; r < tile.end; ++r)
      exact_blocks<4>(g.wo, [&](auto size, int64_t column) FD_LAMBDA {
        unroll<size.value>([&](auto j) FD_LAMBDA {
          const T* here = from + r * m.node.sh + (column + j.value) * m.node.sw;
          const Vec<A> v = load_channels<A, FULL>(here, c, g.c);
          total[j.value] += v;
          unroll<COUNT>([&](auto i) FD_LAMBDA {
            const T* pixel = image[i.value] + r * sh[i.value] + (column + j.value) * sw[i.value];
            sum[i.value][j.value] += v * (load_channels<A, FULL>(pixel, c, channels[i.value]) - mean[i.value]);
          });
        });
      });
    unroll<COUNT>([&](auto i) FD_LAMBDA { add_lanes<A>(m.terms[t + i.value].chunk_sum + chunk * g.cp + c, joined(sum[i.value])); });
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

// dw [k, cp] += d^T dy over a tile's pixels. Overwrites d; `spare` holds what dy does.
template <class A, class T>
FD_INLINE void weight_grad(A* d, int64_t pixels, const A* dy, int64_t cp, int64_t k, A* dw, A* spare) {
  if constexpr (kDots<T>)
    pointwise_weight_grad(pair_along_pixels(d, pixels, k, d), (pixels + 1) / 2, pair_along_pixels(dy, pixels, cp, spare), cp, k,
                          dw);
  else
    pointwise_weight_grad(d, pixels, dy, cp, k, dw);
}

// From the gradient dn of a stage's normalised output to everything before it. `dn(row, column, c)` gives it for one image,
// `padded` is the stage's input for the tile's rows; dx [stride * rows, w, cp] is added to, or written
// where not ADD. Asks three times a strip for what lies ahead.
template <bool ADD, class A, class T, class F>
FD_INLINE void stage_backward(const Stage<A, T>& stage, const Geometry& g, const Tile& tile, const A* padded,
                              const Padded& of, bool need_params, bool need_x, A* grads, const Scratch<A>& s, Ahead& ahead,
                              const F& dn, A* dx) {
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
      const Vec<A> from_g = load<A>(stage.from_g + c), from_y = load<A>(stage.from_y + c), mean = load<A>(stage.mean + c),
                   offset = load<A>(stage.offset + c);
      A* out = s.dy + c;
      for (int64_t r = begin; r < end; ++r)
        for (int64_t column = 0; column < wo; ++column, out += cp)
          store(out, from_g * dn(r, column, c) + (from_y * (load<A>(y + (r * wo + column) * cp + c) - mean) + offset));
    }
    if (need_params && own) {
      depthwise_forward(stage, g, padded + (begin - tile.begin) * S * of.row, of, rows, s.d);
      weight_grad<A, T>(s.d, pixels, s.dy, cp, stage.k, grads + stage.grad, s.dd);
    }
    // From here on dy is only multiplied by the pointwise weights.
    if (!need_x && !(need_params && stage.kernel)) return;
    const Pair* dy_pairs = nullptr;
    if constexpr (kDots<T>) dy_pairs = pair_along_channels(s.dy, pixels * cp, s.d);
    const auto times_weights = [&](int64_t pixel, int64_t count, A* out, int64_t out_stride) FD_LAMBDA {
      if constexpr (kDots<T>)
        pointwise(dy_pairs + pixel * cp / 2, count, pairs(stage.pw_t_pairs), cp / 2, stage.k, out, out_stride);
      else
        pointwise(s.dy + pixel * cp, count, stage.pw_t, cp, stage.k, out, out_stride);
    };
    if (stage.kernel) {
      for (int64_t r = begin; r < end; ++r) times_weights((r - begin) * wo, wo, dd_row(r), cp);
      return;
    }
    times_weights(0, pixels, s.dd, stage.k);
    const A* dd = s.dd;
    for (int64_t r = begin - tile.begin; r < end - tile.begin; ++r)
      for (int64_t column = 0; column < wo; ++column, dd += 2 * cp)
        for (int64_t half = 0; half < 2; ++half) {
          if (2 * (tile.begin + r) + half >= of.h || 2 * column + half >= of.w) continue;
          A* o = dx + ((2 * r + half) * of.w + 2 * column + half) * cp;
          for (int64_t c = 0; c < cp; c += kLanes<A>) store(o + c, load<A>(o + c) + load<A>(dd + half * cp + c));
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

// The second stages of an edge's separable convolutions: weight gradients, and the gradient of the middle with the sums that
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
        ahead_second(ahead, bank.branches[next], g, tile, false);
      else if (index + 1 < g.n * g.bands)
        ahead_second(ahead, bank.branches[separable_from(0)], g, tile_at(g, index + 1), true);
      ahead.over(3 * strips<A>(g, tile));
      // dz of the tile goes to its place in the image.
      A* dz = branch.dz + (tile.image * g.ho + tile.begin) * g.wo * g.cp;
      if (bank.need_params) fill_middle(g, branch.first, branch.first.y, tile, s.middle);
      stage_backward<false>(branch.second, g, tile, s.middle, middle, bank.need_params, true, grads, s, ahead,
                            [&](int64_t row, int64_t column, int64_t c) FD_LAMBDA {
                              return load_channels<A, FULL>(gi + row * sh + column * sw, c, channels);
                            },
                            dz);
      const T* y = branch.first.y + (tile.image * g.ho + tile.begin) * g.wo * g.cp;
      const int64_t pixels = (tile.end - tile.begin) * g.wo;
      for (int64_t c = 0; c < g.cp; c += kLanes<A>) {
        const Vec<A> mean = load<A>(branch.first.mean + c);
        Vec<A> sum[2] = {}, sum_y[2] = {};
        const auto one = [&](int64_t i, int lane) FD_LAMBDA {
          const Vec<A> centred = load<A>(y + i * g.cp + c) - mean;
          const Vec<A> v = centred > 0 ? load<A>(dz + i * g.cp + c) : Vec<A>{};  // where the relu let it pass
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

// The first stages of an edge's branches; with the bank's last edge the state's whole gradient.
template <class A, bool FULL, class T>
FD_INLINE void first_backward_tiles(const Bank<A, T>& bank, int64_t lo, int64_t hi, A* base, A* grads) {
  const Geometry g = bank.geo;
  const Scratch<A> s(g, base);
  const Padded source(g, false);
  for (int64_t index = lo; index < hi; ++index) {
    const Tile tile = tile_at(g, index);
    const int64_t x_begin = tile.begin * g.stride, x_end = tile.end * g.stride < g.h ? tile.end * g.stride : g.h;
    A* dx = bank.need_x ? bank.dx_partial + (tile.image * g.h + x_begin) * g.w * g.cp : nullptr;
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
      ahead.over(3 * strips<A>(g, tile));
      const auto back = [&](const auto& dn) FD_LAMBDA {
        stage_backward<true>(branch.first, g, tile, s.source, source, bank.need_params, bank.need_x, grads, s, ahead, dn,
                             dx);
      };
      if (branch.separable) {
        const A* dz = branch.dz + tile.image * g.ho * g.wo * g.cp;
        const T* y = branch.first.y + tile.image * g.ho * g.wo * g.cp;
        const A* mean = branch.first.mean;
        back([&](int64_t row, int64_t column, int64_t c) FD_LAMBDA {
          const int64_t at = (row * g.wo + column) * g.cp + c;
          return load<A>(y + at) - load<A>(mean + c) > 0 ? load<A>(dz + at) : Vec<A>{};  // the relu
        });
      } else {
        const T* gi = branch.g.data + tile.image * branch.g.sn;
        const int64_t sh = branch.g.sh, sw = branch.g.sw, channels = g.c;
        back([&](int64_t row, int64_t column, int64_t c) FD_LAMBDA {
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
          Vec<A> v = load_channels<A, FULL>(x + row * bank.x.sh + column * bank.x.sw, c, g.c) > 0 ? load<A>(o + c) : Vec<A>{};
          for (int64_t k = 0; k < bank.skips; ++k) {
            const View<T>& gv = bank.skip_g[k];
            v += bank.skip_weight[k] *
                 load_channels<A, FULL>(gv.data + tile.image * gv.sn + row * gv.sh + column * gv.sw, c, g.c);
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

template <class A, bool FULL, class T>
FD_INLINE void project_backward_tiles(const Projection<A, T>& p, int64_t lo, int64_t hi, A* d, A* grads) {
  const Geometry g = p.geo;
  const Stage<A, T> stage = p.stage;
  const int64_t k = stage.k, sh = p.g.sh, sw = p.g.sw;
  const int64_t widest = k > g.cp ? k : g.cp;
  A *dd = d + g.rows * g.wo * widest, *dy = dd + g.rows * g.wo * widest;
  const auto back = [&](const Tile& tile) FD_LAMBDA {
    const int64_t rows = tile.end - tile.begin, pixels = rows * g.wo;
    const T* y = stage.y + (tile.image * g.ho + tile.begin) * g.wo * g.cp;
    const T* gi = p.g.data + tile.image * p.g.sn + tile.begin * sh;
    for (int64_t c = 0; c < g.cp; c += kLanes<A>) {
      const Vec<A> from_g = load<A>(stage.from_g + c), from_y = load<A>(stage.from_y + c), mean = load<A>(stage.mean + c),
                   offset = load<A>(stage.offset + c);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t column = 0; column < g.wo; ++column) {
          const int64_t at = (r * g.wo + column) * g.cp + c;
          store(dy + at, from_g * load_channels<A, FULL>(gi + r * sh + column * sw, c, g.c) +
                             (from_y * (load<A>(y + at) - mean) + offset));
        }
    }
    if (p.need_params) {
      gather_source<A, FULL>(p, tile, d);
      weight_grad<A, T>(d, pixels, dy, g.cp, k, grads + stage.grad, dd);
    }
    if (!p.need_x) return;
    if constexpr (kDots<T>)
      pointwise(pair_along_channels(dy, pixels * g.cp, d), pixels, pairs(stage.pw_t_pairs), g.cp / 2, k, dd, k);
    else
      pointwise(dy, pixels, stage.pw_t, g.cp, k, dd, k);
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
            v = load_channels<A, FULL>(x + row * p.x.sh + col * p.x.sw, c, p.in_channels) > 0 ? load<A>(from + c) : Vec<A>{};
          T* out = dx + row * p.dx.sh + col * p.dx.sw;
          if constexpr (FULL)
            stream(out + c, v);
          else
            store_channels<A, FULL>(out, v, c, p.in_channels);
        }
      }
  };
  for (int64_t index = lo; index < hi; ++index) over_strips<A>(g, tile_at(g, index), back);
}

template <class A, class T>
void project_forward(const Projection<A, T>& p, int64_t lo, int64_t hi, int64_t chunk, A* scratch) {
  if (p.in_channels == p.in_padded)
    project_forward_tiles<A, true>(p, lo, hi, chunk, scratch);
  else
    project_forward_tiles<A, false>(p, lo, hi, chunk, scratch);
}

template <class A, class T>
void project_backward(const Projection<A, T>& p, int64_t lo, int64_t hi, int64_t, A* scratch, A* grads) {
  if (p.in_channels == p.in_padded && p.geo.c == p.geo.cp)
    project_backward_tiles<A, true>(p, lo, hi, scratch, grads);
  else
    project_backward_tiles<A, false>(p, lo, hi, scratch, grads);
}

template <class A, class T>
void first_forward(const Bank<A, T>& bank, int64_t lo, int64_t hi, int64_t chunk, A* scratch) {
  if (bank.geo.c == bank.geo.cp)
    first_forward_tiles<A, true>(bank, lo, hi, chunk, scratch);
  else
    first_forward_tiles<A, false>(bank, lo, hi, chunk, scratch);
}

template <class A, class T>
void second_backward(const Bank<A, T>& bank, int64_t lo, int64_t hi, int64_t chunk, A* scratch, A* grads) {
  if (bank.geo.c == bank.geo.cp)
    second_backward_tiles<A, true>(bank, lo, hi, chunk, scratch, grads);
  else
    second_backward_tiles<A, false>(bank, lo, hi, chunk, scratch, grads);
}

template <class A, class T>
void first_backward(const Bank<A, T>& bank, int64_t lo, int64_t hi, int64_t, A* scratch, A* grads) {
  if (bank.geo.c == bank.geo.cp)
    first_backward_tiles<A, true>(bank, lo, hi, scratch, grads);
  else
    first_backward_tiles<A, false>(bank, lo, hi, scratch, grads);
}

#include "bypass_rows.h"

template <class A, class T>
constexpr Kernels<A, T> table() {
  return {kDots<T>, first_forward<A, T>, second_forward<A, T>, mix<A, T>, term_sums<A, T>, second_backward<A, T>,
          first_backward<A, T>, project_forward<A, T>, project_backward<A, T>, pool_passing<A, T>, join<A, T>, part_node<A, T>,
          part_input<A, T>};
}

extern const Kernels<float, bf16> kernels_bf16 = table<float, bf16>();
#if !FASTDARTS_BF16_DOT
extern const Kernels<float, float> kernels_f32 = table<float, float>();
extern const Kernels<double, double> kernels_f64 = table<double, double>();
#endif

}  // namespace FASTDARTS_ISA
}  // namespace fastdarts
