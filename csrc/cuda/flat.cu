// CUDA side of the flat bilevel operators. Definitions and checks: fastdarts/ops/flat_ops.py.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "flat_kernels.cuh"

namespace fastdarts::flat {
namespace {

void check(const at::Tensor& tensor, const at::Tensor& like, const char* name) {
  TORCH_CHECK(tensor.device() == like.device() && tensor.is_contiguous() &&
                  tensor.scalar_type() == like.scalar_type() && tensor.numel() == like.numel(),
              name, " must be contiguous ", like.scalar_type(), " of ", like.numel(), " elements on ", like.device(),
              "; got ", tensor.scalar_type(), " of ", tensor.numel(), " on ", tensor.device());
}

const double* scalar(const at::Tensor& tensor, const at::Tensor& like, const char* name) {
  TORCH_CHECK(tensor.device() == like.device() && tensor.scalar_type() == at::kDouble && tensor.numel() == 1, name,
              " must be one float64 element on ", like.device());
  return tensor.const_data_ptr<double>();
}

bool aligned(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers)
    if (reinterpret_cast<std::uintptr_t>(pointer) % 16) return false;
  return true;
}

template <typename T, typename Pass>
void run(int64_t n, const Pass& pass, bool wide) {
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  if (wide)
    launch_pass<kWidth<T>>(n, pass, stream);
  else
    launch_pass<1>(n, pass, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void virtual_step(at::Tensor& weights, at::Tensor& saved, const at::Tensor& gradient,
                  const std::optional<at::Tensor>& buffer, const at::Tensor& xi, double momentum, double weight_decay) {
  check(weights, weights, "weights");
  check(saved, weights, "saved");
  check(gradient, weights, "gradient");
  if (buffer) check(*buffer, weights, "buffer");
  const c10::cuda::CUDAGuard guard(weights.device());
  AT_DISPATCH_FLOATING_TYPES(weights.scalar_type(), "flat_virtual_step", [&] {
    const VirtualStepPass<scalar_t> pass{weights.mutable_data_ptr<scalar_t>(),
                                         saved.mutable_data_ptr<scalar_t>(),
                                         gradient.const_data_ptr<scalar_t>(),
                                         buffer ? buffer->const_data_ptr<scalar_t>() : nullptr,
                                         scalar(xi, weights, "xi"),
                                         momentum,
                                         weight_decay};
    run<scalar_t>(weights.numel(), pass, aligned({pass.w, pass.saved, pass.gradient, pass.buffer}));
  });
}

at::Tensor norm(const at::Tensor& v) {
  check(v, v, "v");
  const c10::cuda::CUDAGuard guard(v.device());
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  at::Tensor sums = at::empty({chunk_count(v.numel())}, v.options().dtype(at::kDouble));
  at::Tensor result = at::empty({}, v.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "flat_norm", [&] {
    const scalar_t* values = v.const_data_ptr<scalar_t>();
    const auto launch = aligned({values}) ? launch_norm<scalar_t, kWidth<scalar_t>> : launch_norm<scalar_t, 1>;
    launch(v.numel(), values, sums.mutable_data_ptr<double>(), result.mutable_data_ptr<double>(), stream);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

void perturb(at::Tensor& weights, const at::Tensor& saved, const at::Tensor& direction, const at::Tensor& norm,
             double r) {
  check(weights, weights, "weights");
  check(saved, weights, "saved");
  check(direction, weights, "direction");
  const c10::cuda::CUDAGuard guard(weights.device());
  AT_DISPATCH_FLOATING_TYPES(weights.scalar_type(), "flat_perturb", [&] {
    const PerturbPass<scalar_t> pass{weights.mutable_data_ptr<scalar_t>(), saved.const_data_ptr<scalar_t>(),
                                     direction.const_data_ptr<scalar_t>(), scalar(norm, weights, "norm"), r};
    run<scalar_t>(weights.numel(), pass, aligned({pass.w, pass.saved, pass.direction}));
  });
}

at::Tensor combine(const at::Tensor& direct, const at::Tensor& plus, const at::Tensor& minus, const at::Tensor& norm,
                   const at::Tensor& xi, double r) {
  check(direct, direct, "direct");
  check(plus, direct, "plus");
  check(minus, direct, "minus");
  const c10::cuda::CUDAGuard guard(direct.device());
  at::Tensor result = at::empty_like(direct);
  AT_DISPATCH_FLOATING_TYPES(direct.scalar_type(), "flat_combine", [&] {
    const CombinePass<scalar_t> pass{result.mutable_data_ptr<scalar_t>(),
                                     direct.const_data_ptr<scalar_t>(),
                                     plus.const_data_ptr<scalar_t>(),
                                     minus.const_data_ptr<scalar_t>(),
                                     scalar(norm, direct, "norm"),
                                     scalar(xi, direct, "xi"),
                                     r};
    run<scalar_t>(direct.numel(), pass, false);
  });
  return result;
}

void clipped_sgd(at::Tensor& weights, const std::optional<at::Tensor>& buffer, const at::Tensor& gradient,
                 const at::Tensor& norm, const at::Tensor& lr, double momentum, double weight_decay, double max_norm) {
  check(weights, weights, "weights");
  if (buffer) check(*buffer, weights, "buffer");
  check(gradient, weights, "gradient");
  const c10::cuda::CUDAGuard guard(weights.device());
  AT_DISPATCH_FLOATING_TYPES(weights.scalar_type(), "flat_clipped_sgd", [&] {
    const ClippedSgdPass<scalar_t> pass{weights.mutable_data_ptr<scalar_t>(),
                                        buffer ? buffer->mutable_data_ptr<scalar_t>() : nullptr,
                                        gradient.const_data_ptr<scalar_t>(),
                                        scalar(norm, weights, "norm"),
                                        scalar(lr, weights, "lr"),
                                        momentum,
                                        weight_decay,
                                        max_norm};
    run<scalar_t>(weights.numel(), pass, aligned({pass.w, pass.buffer, pass.gradient}));
  });
}

}  // namespace
}  // namespace fastdarts::flat

TORCH_LIBRARY_IMPL(fastdarts, CUDA, m) {
  m.impl("flat_virtual_step", &fastdarts::flat::virtual_step);
  m.impl("flat_norm", &fastdarts::flat::norm);
  m.impl("flat_perturb", &fastdarts::flat::perturb);
  m.impl("flat_combine", &fastdarts::flat::combine);
  m.impl("flat_clipped_sgd", &fastdarts::flat::clipped_sgd);
}
