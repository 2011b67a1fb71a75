// The tile kernels for any machine: 16-byte vectors.
#define FASTDARTS_ISA portable
#define FASTDARTS_VECTOR_BYTES 16
#include "tile_kernels.h"
