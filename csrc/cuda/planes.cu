// CUDA side of the passes that keep images in shared memory. Schemas, and which launches they serve: kernels/planes.py.

#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <cstdint>

#include "planes_forward.cuh"

namespace fastdarts::planes {
namespace {

template <typename T>
const T* numbers(const at::Tensor& tensor, const at::Tensor& like, at::ScalarType type, const char* name) {
  TORCH_CHECK(tensor.device() == like.device() && tensor.scalar_type() == type && tensor.is_contiguous(), name,
              " must be contiguous ", type, " on ", like.device(), "; got ", tensor.scalar_type(), " on ",
              tensor.device());
  return static_cast<const T*>(tensor.const_data_ptr());
}

// The structs of planes_forward.cuh, which are nothing but int32.
template <typename T>
const T* table(const at::Tensor& tensor, const at::Tensor& like, const char* name) {
  const auto* rows = numbers<std::int32_t>(tensor, like, at::kInt, name);
  TORCH_CHECK(tensor.dim() == 2 && tensor.size(1) * sizeof(std::int32_t) == sizeof(T), name, " must be [n, ",
              sizeof(T) / sizeof(std::int32_t), "]; got ", tensor.sizes());
  return reinterpret_cast<const T*>(rows);
}

template <int C, int W>
void launch(const Forward& p, dim3 grid) {
  const int lines = p.images_of_program * W, bytes = shared_bytes<C, W>(lines);
  TORCH_CHECK(lines * W <= kMostPixels, "images_of_program must leave at most ", kMostPixels, " pixels; got ",
              lines * W);
  C10_CUDA_CHECK(cudaFuncSetAttribute(forward_kernel<C, W>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  forward_kernel<C, W><<<grid, kThreads, bytes, at::cuda::getCurrentCUDAStream()>>>(p);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void forward(at::TensorList states, at::Tensor& saved, const at::Tensor& dw, const at::Tensor& pw,
             const at::Tensor& stats, at::Tensor& moments, const at::Tensor& stages, const at::Tensor& groups,
             int64_t images, int64_t channels, int64_t width, int64_t x_pitch, int64_t images_of_program,
             double eps) {
  TORCH_CHECK(!states.empty() && states.size() <= kMostStates, "states must be 1 to ", kMostStates, "; got ",
              states.size());
  const c10::cuda::CUDAGuard guard(saved.device());
  Forward p{};
  for (size_t i = 0; i < states.size(); ++i) {
    TORCH_CHECK(states[i].device() == saved.device() && states[i].scalar_type() == at::kBFloat16, "states must be ",
                at::kBFloat16, " on ", saved.device(), "; got ", states[i].scalar_type(), " on ", states[i].device());
    p.states[i] = static_cast<const __nv_bfloat16*>(states[i].const_data_ptr());
  }
  numbers<__nv_bfloat16>(saved, saved, at::kBFloat16, "saved");
  p.saved = static_cast<__nv_bfloat16*>(saved.mutable_data_ptr());
  p.dw = numbers<float>(dw, saved, at::kFloat, "dw");
  p.pw = numbers<__nv_bfloat16>(pw, saved, at::kBFloat16, "pw");
  p.stats = numbers<float>(stats, saved, at::kFloat, "stats");
  numbers<float>(moments, saved, at::kFloat, "moments");
  p.moments = moments.numel() ? static_cast<float*>(moments.mutable_data_ptr()) : nullptr;
  p.stages = table<Stage>(stages, saved, "stages");
  p.groups = table<Group>(groups, saved, "groups");
  p.images = images;
  p.x_pitch = x_pitch;
  p.images_of_program = images_of_program;
  p.eps = eps;
  const dim3 grid((images + images_of_program - 1) / images_of_program, groups.size(0));
  if (channels == 16 && width == 32)
    launch<16, 32>(p, grid);
  else if (channels == 32 && width == 16)
    launch<32, 16>(p, grid);
  else
    TORCH_CHECK(false, "planes_forward knows 16 channels of 32x32 pixels and 32 of 16x16; got ", channels, " of ",
                width);
}

}  // namespace
}  // namespace fastdarts::planes

TORCH_LIBRARY_IMPL(fastdarts, CUDA, m) { m.impl("planes_forward", &fastdarts::planes::forward); }
