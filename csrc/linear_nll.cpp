// fastdarts::linear_nll on CPUs: a linear layer and its cross entropy by chunks of rows, so that all logits never exist at once.
// Gradients are computed along with the loss. Schema, fakes and autograd: fastdarts/ops/recurrent.py.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

#include "cell.h"

namespace fastdarts {
namespace {

constexpr int64_t kChunkElements = 4 << 20;  // of logits at a time

// sum += a b, in the type of sum
void add_product(at::Tensor sum, const at::Tensor& a, const at::Tensor& b) {
  if (b.scalar_type() == sum.scalar_type())
    at::addmm_out(sum, sum, a, b);
  else
    sum.add_(at::mm(a, b));
}

template <class A, class T>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> run(const at::Tensor& h, const at::Tensor& weight, const at::Tensor& bias,
                                                              const at::Tensor& targets, const at::Tensor& shares, bool half,
                                                              bool need_h, bool need_weight) {
  const CellKernels<A, T>& kernels = cell_kernels<A, T>();
  const at::TensorOptions options = h.options(), products = half ? options.dtype(at::kBFloat16) : options;
  const int64_t rows = h.size(0), words = weight.size(0), most = std::clamp<int64_t>(kChunkElements / words, 64, rows < 64 ? 64 : rows);
  const at::Tensor matrix = weight.to(products.dtype()), none = at::empty({0}, options);
  const at::Tensor losses = at::empty({rows}, options), logits = at::empty({std::min(most, rows), words}, products);
  at::Tensor grad_h = need_h ? at::empty(h.sizes(), options) : none;
  at::Tensor grad_weight = need_weight ? at::zeros(weight.sizes(), options) : none;
  at::Tensor grad_bias = need_weight ? at::zeros(bias.sizes(), options) : none;
  for (int64_t at = 0; at < rows; at += most) {
    const int64_t count = std::min(most, rows - at);
    const at::Tensor part = h.narrow(0, at, count).to(products.dtype());
    at::Tensor of_part = logits.narrow(0, 0, count);
    at::mm_out(of_part, part, matrix.t());
    T* data = reinterpret_cast<T*>(of_part.data_ptr());
    at::parallel_for(0, count, 8, [&](int64_t lo, int64_t hi) {
      kernels.softmax(data, bias.const_data_ptr<A>(), targets.const_data_ptr<int64_t>() + at, words, need_h || need_weight,
                      shares.const_data_ptr<A>() + at, losses.data_ptr<A>() + at, lo, hi);
    });
    if (need_h) grad_h.narrow(0, at, count).copy_(at::mm(of_part, matrix));
    if (!need_weight) continue;
    add_product(grad_weight, of_part.t(), part);
    grad_bias.add_(of_part.sum(0, false, options.dtype().toScalarType()));
  }
  return {losses.mul(shares).sum(at::kDouble).to(h.scalar_type()), grad_h, grad_weight, grad_bias};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_nll(const at::Tensor& h, const at::Tensor& weight,
                                                                     const at::Tensor& bias, const at::Tensor& targets,
                                                                     const at::Tensor& shares, bool half, bool need_h,
                                                                     bool need_weight) {
  TORCH_CHECK_VALUE(h.dim() == 2 && weight.dim() == 2 && h.size(1) == weight.size(1) && h.numel() > 0 && weight.size(0) > 0,
                    "linear_nll: h must be [rows, d] and weight [words, d], not empty; got ", h.sizes(), " and ", weight.sizes());
  TORCH_CHECK_VALUE(bias.dim() == 1 && bias.size(0) == weight.size(0) && targets.dim() == 1 && targets.size(0) == h.size(0),
                    "linear_nll: bias must be [", weight.size(0), "] and targets [", h.size(0), "]; got ", bias.sizes(), " and ",
                    targets.sizes());
  TORCH_CHECK_VALUE(shares.dim() == 1 && shares.size(0) == h.size(0), "linear_nll: shares must be [", h.size(0), "]; got ",
                    shares.sizes());
  for (const at::Tensor* t : {&h, &weight, &bias, &shares})
    TORCH_CHECK_TYPE(t->scalar_type() == h.scalar_type() && t->is_contiguous() && t->device().is_cpu(),
                     "linear_nll: h, weight, bias and shares must be contiguous, of one dtype, on the CPU");
  TORCH_CHECK_TYPE(targets.scalar_type() == at::kLong && targets.is_contiguous(), "linear_nll: targets must be contiguous int64; got ",
                   targets.scalar_type());
  const int64_t* t = targets.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < targets.size(0); ++i)
    TORCH_CHECK_INDEX(t[i] >= 0 && t[i] < weight.size(0), "linear_nll: target ", t[i], " is none of ", weight.size(0), " words");
  if (h.scalar_type() == at::kDouble && !half) return run<double, double>(h, weight, bias, targets, shares, half, need_h, need_weight);
  TORCH_CHECK_TYPE(h.scalar_type() == at::kFloat, "linear_nll: h must be float32, or float64 without bfloat16 products; got ",
                   h.scalar_type());
  if (half) return run<float, bf16>(h, weight, bias, targets, shares, half, need_h, need_weight);
  return run<float, float>(h, weight, bias, targets, shares, half, need_h, need_weight);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) { m.impl("linear_nll", &linear_nll); }

}  // namespace fastdarts
