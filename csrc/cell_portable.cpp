// The kernels of the recurrent cell for any machine: 16-byte vectors.
#include "isa/portable.h"
#include "cell_kernels.h"
