// CPU side of `fastdarts::update_running`: the running statistics of many batch norms. Definition and plain formulas:
// fastdarts/ops/running.py.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

namespace fastdarts {
namespace {

void check(const at::Tensor& tensor, at::ScalarType type, int64_t numel, const char* name) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == type && tensor.numel() == numel && tensor.dim() <= 1,
              "update_running: ", name, " must be ", type, " of ", numel, " elements on the CPU; got ",
              tensor.scalar_type(), " ", tensor.sizes(), " on ", tensor.device());
}

// Moves `tensor` by the share `momentum` of its distance from factor * batch.
template <typename T, typename Acc>
void move(const at::Tensor& tensor, const Acc* batch, Acc factor, Acc momentum) {
  T* const running = tensor.mutable_data_ptr<T>();
  const int64_t stride = tensor.dim() ? tensor.stride(0) : 1;
  for (int64_t c = 0; c < tensor.numel(); ++c) {
    T& value = running[c * stride];
    value = T(Acc(value) + momentum * (factor * batch[c] - Acc(value)));
  }
}

void update_running(at::TensorList means, at::TensorList variances, at::TensorList counters, const at::Tensor& stats,
                    at::IntArrayRef values, double momentum) {
  TORCH_CHECK(!means.empty() && means.size() == variances.size() && means.size() == values.size(),
              "update_running: means, variances and values must be as many, and at least one; got ", means.size(), ", ",
              variances.size(), " and ", values.size());
  const at::ScalarType type = means[0].scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, type, "update_running", [&] {
    using Acc = at::opmath_type<scalar_t>;
    const at::Tensor batch = stats.to(c10::CppTypeToScalarType<Acc>::value).contiguous();
    const Acc* of_norm = batch.const_data_ptr<Acc>();
    int64_t left = batch.numel();
    for (size_t i = 0; i < means.size(); ++i) {
      const int64_t channels = means[i].numel(), n = values[i];
      check(means[i], type, channels, "a mean");
      check(variances[i], type, channels, "a variance");
      TORCH_CHECK(n > 1 && (left -= 2 * channels) >= 0,
                  "update_running: stats must have two values per channel, of more than one value each; got ",
                  stats.numel(), " and ", n);
      move<scalar_t>(means[i], of_norm, Acc(1), Acc(momentum));
      move<scalar_t>(variances[i], of_norm + channels, Acc(double(n) / double(n - 1)), Acc(momentum));
      of_norm += 2 * channels;
    }
    TORCH_CHECK(left == 0, "update_running: stats have ", left, " elements too many");
  });
  for (const at::Tensor& counter : counters) {
    check(counter, at::kLong, 1, "a counter");
    *counter.mutable_data_ptr<int64_t>() += 1;
  }
}

}  // namespace
}  // namespace fastdarts

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) { m.impl("update_running", &fastdarts::update_running); }
