// fastdarts::shuffled_sum and its backward on CPUs; what they compute stands in fastdarts/shuffled_sum.py.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <numeric>
#include <tuple>
#include <type_traits>
#include <vector>

#include "block_cache.h"
#include "schedule.h"

namespace fastdarts {
namespace {

// Channel j of group g of K becomes channel j * K + g; group 0 is `mixed`, the others are `passing`.
struct Sizes {
  int64_t n, h, w, size, groups;
};

Sizes check(at::TensorList mixed, at::TensorList passing, const at::Tensor& factors) {
  TORCH_CHECK_VALUE(!mixed.empty() && !passing.empty() && mixed[0].dim() == 4 && passing[0].dim() == 4 && mixed[0].numel() > 0,
                    "shuffled_sum: mixed and passing must hold [N, C, H, W], not empty");
  const int64_t size = mixed[0].size(1), rest = passing[0].size(1);
  for (const at::TensorList& list : {mixed, passing})
    for (const at::Tensor& t : list)
      TORCH_CHECK_VALUE(t.sizes() == list[0].sizes() && t.scalar_type() == mixed[0].scalar_type(),
                        "shuffled_sum: mixed, and passing, must be alike; got ", t.scalar_type(), " ", t.sizes());
  for (const int64_t axis : {0, 2, 3})
    TORCH_CHECK_VALUE(mixed[0].size(axis) == passing[0].size(axis), "shuffled_sum: mixed and passing differ in size: ",
                      mixed[0].sizes(), ", ", passing[0].sizes());
  TORCH_CHECK_VALUE(rest > 0 && rest % size == 0, "shuffled_sum: ", rest, " channels are no whole groups of ", size);
  TORCH_CHECK_VALUE(factors.dim() == 1 && factors.size(0) == int64_t(passing.size()), "shuffled_sum: factors must be [",
                    passing.size(), "]; got ", factors.sizes());
  return {mixed[0].size(0), mixed[0].size(2), mixed[0].size(3), size, 1 + rest / size};
}

template <int64_t value>
using Known = std::integral_constant<int64_t, value>;

// body(size, groups, channels of the others), compile-time numbers for the widths that searches have.
template <class F>
void with_known_sizes(const Sizes& s, const F& body) {
  if (s.groups == 4 && s.size == 4) return body(Known<4>{}, Known<4>{}, Known<12>{});
  if (s.groups == 4 && s.size == 8) return body(Known<8>{}, Known<4>{}, Known<24>{});
  if (s.groups == 4 && s.size == 16) return body(Known<16>{}, Known<4>{}, Known<48>{});
  body(s.size, s.groups, s.size * (s.groups - 1));
}

// The sum of a row's products.
template <class A, class T>
double dot_row(const A* g, const T* row, int64_t step, int64_t w, int64_t channels) {
  double sum = 0;
  for (int64_t x = 0; x < w; ++x, g += channels, row += step)
    for (int64_t c = 0; c < channels; ++c) sum += double(g[c]) * double(row[c]);
  return sum;
}

template <class A, class T, int64_t channels>
double dot_row(const A* g, const T* row, int64_t step, int64_t w, Known<channels>) {
  A lanes[channels] = {};
  for (int64_t x = 0; x < w; ++x, g += channels, row += step)
    for (int64_t c = 0; c < channels; ++c) lanes[c] += g[c] * A(row[c]);
  return std::accumulate(lanes, lanes + channels, 0.0);
}

template <class T>
T* row_of(const View<T>& v, int64_t image, int64_t y) {
  return v.data + image * v.sn + y * v.sh;
}

template <class T>
std::vector<View<T>> views_of(at::TensorList tensors) {
  std::vector<View<T>> result;
  for (const at::Tensor& t : tensors) result.push_back(view_of<T>(t));
  return result;
}

// sum[x * channels + c] = sum of factor * row[x, c].
template <class A, class T, class C>
void add_row(A* __restrict__ sum, const T* __restrict__ row, int64_t step, int64_t w, C channels, A factor, bool first) {
  for (int64_t x = 0; x < w; ++x, sum += channels, row += step)
    for (int64_t c = 0; c < channels; ++c) sum[c] = factor * A(row[c]) + (first ? A(0) : sum[c]);
}

std::vector<at::Tensor> all_channels_last(at::TensorList tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& t : tensors) result.push_back(channels_last(t));
  return result;
}

at::Tensor shuffled_sum(at::TensorList mixed_terms, at::TensorList passing_terms, const at::Tensor& factors) {
  const Sizes s = check(mixed_terms, passing_terms, factors);
  const auto mixed_held = all_channels_last(mixed_terms), passing_held = all_channels_last(passing_terms);
  const at::Tensor out = empty_image_in_block({s.n, s.size * s.groups, s.h, s.w}, mixed_terms[0].scalar_type());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, out.scalar_type(), "shuffled_sum", [&] {
    using T = scalar_t;
    using A = at::opmath_type<T>;
    const at::Tensor f = factors.to(c10::CppTypeToScalarType<A>::value).contiguous();
    const A* weights = f.const_data_ptr<A>();
    const auto mixed = views_of<const T>(mixed_held), passing = views_of<const T>(passing_held);
    const View<T> to = view_of<T>(out);
    with_known_sizes(s, [&](auto size, auto groups, auto rest) {
      at::parallel_for(0, s.n * s.h, 1 + 4096 / s.w, [&, size, groups, rest](int64_t lo, int64_t hi) {
        std::vector<A> sums(s.w * (size + rest));
        A *const own = sums.data(), *const others = own + s.w * size;
        for (int64_t row = lo; row < hi; ++row) {
          const int64_t image = row / s.h, y = row % s.h;
          for (size_t i = 0; i < mixed.size(); ++i) add_row(own, row_of(mixed[i], image, y), mixed[i].sw, s.w, size, A(1), i == 0);
          for (size_t i = 0; i < passing.size(); ++i)
            add_row(others, row_of(passing[i], image, y), passing[i].sw, s.w, rest, weights[i], i == 0);
          T* pixel = row_of(to, image, y);
          for (int64_t x = 0; x < s.w; ++x, pixel += to.sw)
            for (int64_t j = 0; j < size; ++j) {
              pixel[j * groups] = T(own[x * size + j]);
              for (int64_t g = 1; g < groups; ++g) pixel[j * groups + g] = T(others[x * rest + (g - 1) * size + j]);
            }
        }
      });
    });
  });
  return out;
}

std::tuple<at::Tensor, std::vector<at::Tensor>, at::Tensor> shuffled_sum_backward(const at::Tensor& grad, at::TensorList passing_terms,
                                                                                  const at::Tensor& factors, bool need_passing,
                                                                                  bool need_factors) {
  TORCH_CHECK_VALUE(grad.dim() == 4 && !passing_terms.empty() && passing_terms[0].dim() == 4 &&
                        grad.size(1) > passing_terms[0].size(1) && grad.scalar_type() == passing_terms[0].scalar_type(),
                    "shuffled_sum_backward: grad must be [N, C, H, W] of passing's dtype; got ", grad.sizes());
  const at::Tensor g_held = channels_last(grad);
  const at::Tensor d_mixed = empty_image_in_block(
      {grad.size(0), grad.size(1) - passing_terms[0].size(1), grad.size(2), grad.size(3)}, grad.scalar_type());
  const Sizes s = check({d_mixed}, passing_terms, factors);
  const auto held = all_channels_last(passing_terms);
  std::vector<at::Tensor> d_passing;
  for (const at::Tensor& t : held)
    d_passing.push_back(need_passing ? empty_image_in_block(t.sizes(), t.scalar_type()) : at::empty({0}, t.options()));
  const int64_t terms = held.size(), chunks = at::get_num_threads();
  at::Tensor d_factors = at::zeros({need_factors ? terms : 0}, factors.options().dtype(at::kDouble));
  std::vector<double> sums(chunks * terms, 0);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, grad.scalar_type(), "shuffled_sum_backward", [&] {
    using T = scalar_t;
    using A = at::opmath_type<T>;
    const at::Tensor f = factors.to(c10::CppTypeToScalarType<A>::value).contiguous();
    const A* weights = f.const_data_ptr<A>();
    const auto passing = views_of<const T>(held);
    const auto dx = need_passing ? views_of<T>(d_passing) : std::vector<View<T>>{};
    const View<const T> from = view_of<const T>(g_held);
    const View<T> own = view_of<T>(d_mixed);
    with_known_sizes(s, [&](auto size, auto groups, auto rest) {
      at::parallel_for(0, chunks, 1, [&, size, groups, rest](int64_t first, int64_t last) {
        std::vector<A> g_rest(s.w * rest);
        for (int64_t chunk = first; chunk < last; ++chunk)
          for (int64_t row = s.n * s.h * chunk / chunks; row < s.n * s.h * (chunk + 1) / chunks; ++row) {
            const int64_t image = row / s.h, y = row % s.h;
            const T* pixel = row_of(from, image, y);
            T* mine = row_of(own, image, y);
            for (int64_t x = 0; x < s.w; ++x, pixel += from.sw, mine += own.sw)
              for (int64_t j = 0; j < size; ++j) {
                mine[j] = pixel[j * groups];
                for (int64_t g = 1; g < groups; ++g) g_rest[x * rest + (g - 1) * size + j] = A(pixel[j * groups + g]);
              }
            for (int64_t i = 0; i < terms; ++i) {
              if (need_passing) {
                T* __restrict__ d = row_of(dx[i], image, y);
                const A* __restrict__ g = g_rest.data();
                for (int64_t k = 0; k < s.w * rest; ++k) d[k] = T(weights[i] * g[k]);
              }
              if (need_factors)
                sums[chunk * terms + i] += dot_row(g_rest.data(), row_of(passing[i], image, y), passing[i].sw, s.w, rest);
            }
          }
      });
    });
  });
  for (int64_t i = 0; need_factors && i < terms; ++i)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) d_factors.mutable_data_ptr<double>()[i] += sums[chunk * terms + i];
  return {d_mixed, d_passing, d_factors.to(factors.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) {
  m.impl("shuffled_sum", &shuffled_sum);
  m.impl("shuffled_sum_backward", &shuffled_sum_backward);
}

}  // namespace fastdarts
