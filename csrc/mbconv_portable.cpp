// The kernels of inverted bottlenecks for any machine: 16-byte vectors.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false: its own intrinsics, and Ahead's ranges
#pragma GCC diagnostic ignored "-Wpsabi"                // no vector goes from one file to another
#endif
#define FASTDARTS_ISA portable
#define FASTDARTS_VECTOR_BYTES 16
#define FASTDARTS_BF16_DOT 0
#include "mbconv_kernels.h"
