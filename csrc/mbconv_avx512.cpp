// The kernels of inverted bottlenecks for AVX-512: 64-byte vectors.
#if defined(__x86_64__)
#include "isa/avx512.h"
#include "mbconv_kernels.h"
#include "isa/end.h"
#endif
