// Chooses the kernels of a cell in eval mode for the machine at hand, as dispatch.cpp does for the tile kernels.
#include "eval.h"
#include "dispatch.h"

namespace fastdarts {

FASTDARTS_CHOOSE(EvalKernels, eval)

}  // namespace fastdarts
