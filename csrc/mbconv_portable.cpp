// The kernels of inverted bottlenecks for any machine: 16-byte vectors.
#include "isa/portable.h"
#include "mbconv_kernels.h"
