// Chooses the kernels of inverted bottlenecks for the machine at hand, as dispatch.cpp does for the tile kernels.
#include "mbconv.h"
#include "dispatch.h"

namespace fastdarts {

FASTDARTS_CHOOSE(MbconvKernels, mbconv)

}  // namespace fastdarts
