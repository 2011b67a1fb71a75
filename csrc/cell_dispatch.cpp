// Chooses the kernels of the recurrent cell for the machine at hand, as dispatch.cpp does for the tile kernels.
#include "cell.h"
#include "dispatch.h"

namespace fastdarts {

FASTDARTS_CHOOSE(CellKernels, cell)

}  // namespace fastdarts
