// Compiles the rest of a file for AVX-512 with products of bfloat16 pairs, in 64-byte vectors, up to isa/end.h.
#include "isa/warnings.h"
#include <immintrin.h>

#include <cstdint>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi,bmi2")
#endif
#define FASTDARTS_ISA avx512_bf16
#define FASTDARTS_VECTOR_BYTES 64
#define FASTDARTS_BF16_DOT 1
#define FASTDARTS_AMX 0
