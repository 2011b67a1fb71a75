// Compiles the rest of a file for AVX2 and FMA, in 32-byte vectors, up to isa/end.h.
#include "isa/warnings.h"
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
#define FASTDARTS_AMX 0
