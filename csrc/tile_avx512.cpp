// The tile kernels for AVX-512: 64-byte vectors.
#if defined(__x86_64__)
#include "isa/avx512.h"
#include "tile_kernels.h"
FASTDARTS_SHARE_DEPTHWISE(template)  // with tile_avx512_bf16.cpp
#include "isa/end.h"
#endif
