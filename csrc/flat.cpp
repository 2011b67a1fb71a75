// CPU side of the flat bilevel operators, each one pass over its buffers. The loops are bound by memory, so the
// compiler's vectors of the baseline instruction set do. Definitions and checks: fastdarts/ops/flat_ops.py.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "flat_math.h"

namespace fastdarts::flat {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least

void check(const at::Tensor& tensor, const at::Tensor& like, const char* name) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == like.scalar_type() &&
                  tensor.numel() == like.numel(),
              name, " must be contiguous ", like.scalar_type(), " of ", like.numel(), " elements on the CPU; got ",
              tensor.scalar_type(), " of ", tensor.numel(), " on ", tensor.device());
}

double scalar(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == at::kDouble && tensor.numel() == 1, name,
              " must be one float64 element on the CPU");
  return *tensor.const_data_ptr<double>();
}

void gather(at::TensorList tensors, at::Tensor& out) {
  check(out, out, "out");
  int64_t offset = 0;
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK(tensor.scalar_type() == out.scalar_type() && offset + tensor.numel() <= out.numel(),
                "tensors must be ", out.scalar_type(), " of ", out.numel(), " elements together");
    if (tensor.numel() == 0) continue;  // its data pointer is null, which memcpy may not be given
    const at::Tensor dense = tensor.contiguous();
    std::memcpy(static_cast<char*>(out.mutable_data_ptr()) + offset * out.element_size(), dense.const_data_ptr(),
                dense.nbytes());
    offset += tensor.numel();
  }
  TORCH_CHECK(offset == out.numel(), "tensors must have ", out.numel(), " elements together; got ", offset);
}

void virtual_step(at::Tensor& weights, at::Tensor& saved, const at::Tensor& gradient,
                  const std::optional<at::Tensor>& buffer, const at::Tensor& xi, double momentum, double weight_decay) {
  check(weights, weights, "weights");
  check(saved, weights, "saved");
  check(gradient, weights, "gradient");
  if (buffer) check(*buffer, weights, "buffer");
  AT_DISPATCH_FLOATING_TYPES(weights.scalar_type(), "flat_virtual_step", [&] {
    const VirtualStep<scalar_t> step{scalar_t(scalar(xi, "xi")), scalar_t(momentum), scalar_t(weight_decay)};
    scalar_t* __restrict w = weights.mutable_data_ptr<scalar_t>();
    scalar_t* __restrict s = saved.mutable_data_ptr<scalar_t>();
    const scalar_t* __restrict g = gradient.const_data_ptr<scalar_t>();
    const scalar_t* __restrict b = buffer ? buffer->const_data_ptr<scalar_t>() : nullptr;
    at::parallel_for(0, weights.numel(), kGrain, [=](int64_t begin, int64_t end) {
      if (b) {
        for (int64_t i = begin; i < end; ++i) {
          const scalar_t before = w[i];
          s[i] = before;
          w[i] = step(before, g[i], b[i]);
        }
      } else {
        for (int64_t i = begin; i < end; ++i) {
          const scalar_t before = w[i];
          s[i] = before;
          w[i] = step(before, g[i], scalar_t(0));
        }
      }
    });
  });
}

template <typename T, typename Add>
double chunk_sum(const T* values, int64_t count, Add add) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = add(lanes[lane], values[i + lane]);
  for (int lane = 0; i + lane < count; ++lane) lanes[lane] = add(lanes[lane], values[i + lane]);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) lanes[lane] = fold(lanes[lane], lanes[lane + width]);
  return lanes[0];
}

at::Tensor norm(const at::Tensor& v) {
  check(v, v, "v");
  std::vector<double> sums(chunk_count(v.numel()));
  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "flat_norm", [&] {
    const scalar_t* values = v.const_data_ptr<scalar_t>();
    at::parallel_for(0, int64_t(sums.size()), kGrain / kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk * kChunk;
        sums[chunk] = chunk_sum(values + first, std::min(kChunk, v.numel() - first),
                                [](double sum, scalar_t value) { return add_square(sum, value); });
      }
    });
  });
  const double total = chunk_sum(sums.data(), sums.size(), [](double sum, double value) { return sum + value; });
  at::Tensor result = at::empty({}, v.options().dtype(at::kDouble));
  *result.mutable_data_ptr<double>() = std::sqrt(total);
  return result;
}

void perturb(at::Tensor& weights, const at::Tensor& saved, const at::Tensor& direction, const at::Tensor& norm,
             double r) {
  check(weights, weights, "weights");
  check(saved, weights, "saved");
  check(direction, weights, "direction");
  AT_DISPATCH_FLOATING_TYPES(weights.scalar_type(), "flat_perturb", [&] {
    const Perturb<scalar_t> step{scalar_t(epsilon(r, scalar(norm, "norm")))};
    scalar_t* __restrict w = weights.mutable_data_ptr<scalar_t>();
    const scalar_t* __restrict s = saved.const_data_ptr<scalar_t>();
    const scalar_t* __restrict v = direction.const_data_ptr<scalar_t>();
    at::parallel_for(0, weights.numel(), kGrain, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) w[i] = step(s[i], v[i]);
    });
  });
}

at::Tensor combine(const at::Tensor& direct, const at::Tensor& plus, const at::Tensor& minus, const at::Tensor& norm,
                   const at::Tensor& xi, double r) {
  check(direct, direct, "direct");
  check(plus, direct, "plus");
  check(minus, direct, "minus");
  at::Tensor result = at::empty_like(direct);
  AT_DISPATCH_FLOATING_TYPES(direct.scalar_type(), "flat_combine", [&] {
    const Combine combined{scalar(xi, "xi"), scalar(norm, "norm"), r};
    scalar_t* out = result.mutable_data_ptr<scalar_t>();
    const scalar_t* d = direct.const_data_ptr<scalar_t>();
    const scalar_t* p = plus.const_data_ptr<scalar_t>();
    const scalar_t* m = minus.const_data_ptr<scalar_t>();
    for (int64_t i = 0; i < direct.numel(); ++i) out[i] = scalar_t(combined(d[i], p[i], m[i]));
  });
  return result;
}

void clipped_sgd(at::Tensor& weights, const std::optional<at::Tensor>& buffer, const at::Tensor& gradient,
                 const at::Tensor& norm, const at::Tensor& lr, double momentum, double weight_decay, double max_norm) {
  check(weights, weights, "weights");
  if (buffer) check(*buffer, weights, "buffer");
  check(gradient, weights, "gradient");
  AT_DISPATCH_FLOATING_TYPES(weights.scalar_type(), "flat_clipped_sgd", [&] {
    const ClippedSgd<scalar_t> step{scalar_t(clip_factor(scalar(norm, "norm"), max_norm)), scalar_t(scalar(lr, "lr")),
                                    scalar_t(momentum), scalar_t(weight_decay)};
    scalar_t* __restrict w = weights.mutable_data_ptr<scalar_t>();
    scalar_t* __restrict b = buffer ? buffer->mutable_data_ptr<scalar_t>() : nullptr;
    const scalar_t* __restrict g = gradient.const_data_ptr<scalar_t>();
    at::parallel_for(0, weights.numel(), kGrain, [=](int64_t begin, int64_t end) {
      if (b) {
        for (int64_t i = begin; i < end; ++i) step(w[i], b[i], g[i]);
      } else {
        for (int64_t i = begin; i < end; ++i) {
          scalar_t none = 0;
          step(w[i], none, g[i]);
        }
      }
    });
  });
}

}  // namespace
}  // namespace fastdarts::flat

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) {
  m.impl("flat_gather", &fastdarts::flat::gather);
  m.impl("flat_virtual_step", &fastdarts::flat::virtual_step);
  m.impl("flat_norm", &fastdarts::flat::norm);
  m.impl("flat_perturb", &fastdarts::flat::perturb);
  m.impl("flat_combine", &fastdarts::flat::combine);
  m.impl("flat_clipped_sgd", &fastdarts::flat::clipped_sgd);
}
