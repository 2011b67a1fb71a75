// The kernels of a cell in eval mode for any machine: 16-byte vectors.
#include "isa/portable.h"
#include "eval_kernels.h"
