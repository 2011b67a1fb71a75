// The kernels of the recurrent cell for AVX-512: 64-byte vectors.
#if defined(__x86_64__)
#include "isa/avx512.h"
#include "cell_kernels.h"
#include "isa/end.h"
#endif
