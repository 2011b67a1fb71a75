// The tile kernels for any machine: 16-byte vectors.
#define FASTDARTS_ISA portable
#define FASTDARTS_VECTOR_BYTES 16
#define FASTDARTS_BF16_DOT 0
#include "tile_kernels.h"
