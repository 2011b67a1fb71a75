// The kernels of inverted bottlenecks for AVX2 and FMA: 32-byte vectors.
#if defined(__x86_64__)
#include "isa/avx2.h"
#include "mbconv_kernels.h"
#include "isa/end.h"
#endif
