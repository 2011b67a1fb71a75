// The kernels of the recurrent cell for AVX2 and FMA: 32-byte vectors.
#if defined(__x86_64__)
#include "isa/avx2.h"
#include "cell_kernels.h"
#include "isa/end.h"
#endif
