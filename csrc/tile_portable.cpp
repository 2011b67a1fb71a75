// The tile kernels for any machine: 16-byte vectors.
#include "isa/portable.h"
#include "tile_kernels.h"
