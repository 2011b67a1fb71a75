// The bfloat16 tile kernels for AVX-512 with products of bfloat16 pairs: 64-byte vectors.
#if defined(__x86_64__)
#include "isa/avx512_bf16.h"
#include "tile_kernels.h"
#include "isa/end.h"
#endif
