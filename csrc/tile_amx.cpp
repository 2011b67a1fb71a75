// The bfloat16 tile kernels for AMX: products in tile registers, the rest in AVX-512's 64-byte vectors.
#if defined(__x86_64__)
#include "isa/amx.h"
#include "tile_kernels.h"
#include "isa/end.h"
#endif
