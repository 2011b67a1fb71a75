// Vectors of an instruction set: loads, stores, conversions, and loops that are unrolled.
//
// Nothing in this folder may use inline functions or templates of headers outside it: the linker could hand another instruction
// set's copy of them to the whole process.
#pragma once
#include <cstdint>

#include "../tile.h"

#define FD_INLINE inline __attribute__((always_inline))
#define FD_LAMBDA __attribute__((always_inline))
// Before a loop of a number of turns known when compiling: its variable is then constant in each, which keeps arrays of vectors in
// registers. A lambda for each turn does the same and takes compilers several times as long.
#define FD_UNROLL _Pragma("GCC unroll 64")

namespace fastdarts::FASTDARTS_ISA {

constexpr int kBytes = FASTDARTS_VECTOR_BYTES;
constexpr int kRegisters = kBytes == 64 ? 32 : 16;

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
#if FASTDARTS_BF16_DOT
// Intel's processors narrow two vectors in the time of one.
FD_INLINE __m512i narrow_two(Vec<float> first, Vec<float> second) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}
#endif
FD_INLINE void store(bf16* p, Vec<float> v) { *reinterpret_cast<LooseHalves*>(p) = narrow(v); }
// What a load gives back of v, stored as T.
template <class T, class A>
FD_INLINE Vec<A> as_stored(Vec<A> v) {
  if constexpr (sizeof(T) == 2)
    return (Vec<A>)(widen(narrow(v)) << 16);
  else
    return v;
}
// Past the caches, to memory that nobody reads soon: a plain store would first fetch the line it overwrites.
template <class T, class V>
FD_INLINE void stream(T* p, V v) {
#if FASTDARTS_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_stream_ps(p, (__m512)v);
  if constexpr (sizeof(T) == 8) return _mm512_stream_pd(p, (__m512d)v);
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

// The gradient of a relu of v; NaN lets it pass, as in PyTorch.
template <class A>
FD_INLINE Vec<A> behind_relu(Vec<A> v, Vec<A> gradient) {
  return v <= 0 ? Vec<A>{} : gradient;
}

// The larger of two; NaN wins and stays, as in PyTorch.
template <class A>
FD_INLINE Vec<A> larger(Vec<A> v, Vec<A> than) {
  return ((v > than) | (v != v)) ? v : than;
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

}  // namespace fastdarts::FASTDARTS_ISA
