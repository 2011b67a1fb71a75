// The kernels of inverted bottlenecks for AVX2 and FMA: 32-byte vectors.
#if defined(__x86_64__)
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false: its own intrinsics, and Ahead's ranges
#pragma GCC diagnostic ignored "-Wpsabi"                // no vector goes from one file to another
#endif
#include <immintrin.h>

#include <cstdint>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2")
#endif
#define FASTDARTS_ISA avx2
#define FASTDARTS_VECTOR_BYTES 32
#define FASTDARTS_BF16_DOT 0
#include "mbconv_kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
