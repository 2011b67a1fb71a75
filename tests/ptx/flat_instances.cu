// The kernels of csrc/cuda/flat_kernels.cuh that test_ptx_cuda.py executes.
#include "cuda/flat_kernels.cuh"

namespace fastdarts::flat {

template void launch_norm<float, kWidth<float>>(int64_t, const float*, double*, double*, cudaStream_t);
template void launch_norm<double, 1>(int64_t, const double*, double*, double*, cudaStream_t);
template void launch_pass<kWidth<float>>(int64_t, const VirtualStepPass<float>&, cudaStream_t);
template void launch_pass<kWidth<float>>(int64_t, const PerturbPass<float>&, cudaStream_t);
template void launch_pass<1>(int64_t, const CombinePass<float>&, cudaStream_t);
template void launch_pass<kWidth<float>>(int64_t, const ClippedSgdPass<float>&, cudaStream_t);

}  // namespace fastdarts::flat
