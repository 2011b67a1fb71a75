#include "bypass.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "block_cache.h"
#include "schedule.h"

namespace fastdarts {
namespace {

template <int64_t value>
using Known = std::integral_constant<int64_t, value>;

template <class T>
struct Passage {  // what an edge adds
  View<const T> view;
  at::opmath_type<T> factor;
  int64_t edge;
};

// tensor_of(edge): what the edge adds, or null.
template <class T, class F>
std::vector<Passage<T>> passages(const Plan& plan, const std::vector<double>& factors, const F& tensor_of) {
  std::vector<Passage<T>> terms;
  for (size_t e = 0; e < plan.edges.size(); ++e)
    if (const at::Tensor* t = tensor_of(plan.edges[e]))
      terms.push_back({view_of<const T>(*t), at::opmath_type<T>(factors[e]), int64_t(e)});
  return terms;
}

template <class T>
T* row_of(const View<T>& v, int64_t image, int64_t y) {
  return v.data + image * v.sn + y * v.sh;
}

// sum += factor * row, pixel by pixel.
template <class A, class T, class C>
void add_row(A* __restrict__ sum, int64_t sum_step, const T* __restrict__ row, int64_t step, int64_t w, C channels, A factor) {
  for (int64_t x = 0; x < w; ++x, sum += sum_step, row += step)
    for (int64_t c = 0; c < channels; ++c) sum[c] += factor * A(row[c]);
}

// The sum of two rows' products.
template <class T>
double dot_row(const T* a, int64_t a_step, const T* b, int64_t b_step, int64_t w, int64_t channels) {
  double sum = 0;
  for (int64_t x = 0; x < w; ++x, a += a_step, b += b_step)
    for (int64_t c = 0; c < channels; ++c) sum += double(a[c]) * double(b[c]);
  return sum;
}

template <class T, int64_t channels>
double dot_row(const T* a, int64_t a_step, const T* b, int64_t b_step, int64_t w, Known<channels>) {
  using A = at::opmath_type<T>;
  A lanes[channels] = {};
  for (int64_t x = 0; x < w; ++x, a += a_step, b += b_step)
    for (int64_t c = 0; c < channels; ++c) lanes[c] += A(a[c]) * A(b[c]);
  return std::accumulate(lanes, lanes + channels, 0.0);
}

// others += a row of what the edges bring back; factor_sums[edge] += its product with what had passed.
template <class T, class A, class C>
void collect_row(const std::vector<Passage<T>>& terms, const View<const T>& passed, int64_t image, int64_t y, int64_t w, C channels,
                 A* others, int64_t step, double* factor_sums) {
  for (const Passage<T>& term : terms) {
    const T* g = row_of(term.view, image, y);
    add_row(others, step, g, term.view.sw, w, channels, term.factor);
    factor_sums[term.edge] += dot_row(g, term.view.sw, row_of(passed, image, y), passed.sw, w, channels);
  }
}

template <class T>
bool is_nan(T v) {
  return v != v;
}

}  // namespace

template <class F>
void Bypass::with_types_and_sizes(const F& body) const {
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, states_[0].scalar_type(), "Bypass", [&] {
    const auto with = [&](auto size, auto groups, auto rest) { body(scalar_t{}, at::opmath_type<scalar_t>{}, size, groups, rest); };
    if (plan_.groups == 4 && size_ == 4) return with(Known<4>{}, Known<4>{}, Known<12>{});  // the widths that searches have
    if (plan_.groups == 4 && size_ == 8) return with(Known<8>{}, Known<4>{}, Known<24>{});
    if (plan_.groups == 4 && size_ == 16) return with(Known<16>{}, Known<4>{}, Known<48>{});
    with(size_, plan_.groups, size_ * (plan_.groups - 1));
  });
}

template <class F>
void Bypass::over_rows(const F& body) const {
  const int64_t rows = n_ / images_ * h_;
  at::parallel_for(0, chunks_, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t chunk = lo; chunk < hi; ++chunk)
      for (int64_t row = rows * chunk / chunks_; row < rows * (chunk + 1) / chunks_; ++row)
        for (int64_t part = 0; part < images_; ++part) body(row / h_ * images_ + part, part * size_, row % h_, chunk);
  });
}

Bypass::Bypass(const Plan& plan, at::TensorList states, const at::Tensor& nodes, const at::Tensor& weights, int64_t images)
    : plan_(plan), images_(images), n_(nodes.size(0)), h_(nodes.size(2)), w_(nodes.size(3)), chunks_(at::get_num_threads()) {
  const int64_t C = states[0].size(1), edges = plan.edges.size();
  size_ = C / plan.groups;
  const at::Tensor factors = weights.select(1, -1).to(at::kDouble).contiguous();
  factors_.assign(factors.const_data_ptr<double>(), factors.const_data_ptr<double>() + edges);
  factor_sums_.assign(chunks_ * edges, 0);
  states_.assign(states.begin(), states.end());
  for (int64_t node = 0; node < plan.nodes; ++node) states_.push_back(nodes.narrow(1, node * C, C));
  gradients_.resize(states_.size());
  for (const at::Tensor& state : states_) {
    passing_.push_back(state.narrow(1, size_, C - size_));
    const Windows windows = windows_of(state);
    if (windows.step == 1) continue;
    const at::Tensor large = passing_.back();
    passing_.back() = empty_image_in_block({n_, C - size_, h_, w_}, large.scalar_type());
    with_types_and_sizes([&](auto t, auto, auto, auto, auto rest) {
      using T = decltype(t);
      const View<const T> from = view_of<const T>(large);
      const View<T> to = view_of<T>(passing_.back());
      over_rows([&, rest](int64_t image, int64_t, int64_t y, int64_t) {
        T* most = row_of(to, image, y);
        for (int64_t x = 0; x < w_; ++x, most += to.sw) {
          std::copy_n(row_of(from, image, 2 * y) + 2 * x * from.sw, int64_t(rest), most);
          windows.over(y, x, [&](int64_t row, int64_t column) {
            const T* pixel = row_of(from, image, row) + column * from.sw;
            for (int64_t c = 0; c < rest; ++c) most[c] = pixel[c] > most[c] || is_nan(pixel[c]) ? pixel[c] : most[c];
          });
        }
      });
    });
  }
}

Windows Bypass::windows_of(const at::Tensor& state) const {
  const int64_t h = state.size(2), w = state.size(3);
  return {h == h_ && w == w_ ? 1 : 2, h, w};
}

void Bypass::join(int64_t node, const at::Tensor& slots) {
  with_types_and_sizes([&](auto t, auto a, auto size, auto groups, auto rest) {
    using T = decltype(t);
    using A = decltype(a);
    const View<T> slot = view_of<T>(slots, (node - plan_.inputs) * images_ * size), to = view_of<T>(states_[node]);
    const auto terms = passages<T>(plan_, factors_, [&](const Edge& e) { return e.node == node ? &passing_[e.source] : nullptr; });
    std::vector<A> sums(chunks_ * w_ * rest);
    over_rows([&, size, groups, rest](int64_t image, int64_t lane, int64_t y, int64_t chunk) {
      A* others = &sums[chunk * w_ * rest];
      std::fill(others, others + w_ * rest, A(0));
      for (const Passage<T>& term : terms) add_row(others, rest, row_of(term.view, image, y), term.view.sw, w_, rest, term.factor);
      T *own = row_of(slot, image / images_, y) + lane, *pixel = row_of(to, image, y);
      for (int64_t x = 0; x < w_; ++x, others += rest, own += slot.sw, pixel += to.sw) {
        for (int64_t j = 0; j < size; ++j) {
          pixel[j * groups] = own[j];
          for (int64_t g = 1; g < groups; ++g) pixel[j * groups + g] = T(others[(g - 1) * size + j]);
        }
        std::copy_n(pixel, int64_t(size), own);
      }
    });
  });
}

void Bypass::part_node(int64_t node, const at::Tensor& grad, const at::Tensor& slots, bool reached) {
  gradients_[node] = empty_image_in_block(passing_[node].sizes(), grad.scalar_type());
  with_types_and_sizes([&](auto t, auto a, auto size, auto groups, auto rest) {
    using T = decltype(t);
    using A = decltype(a);
    const int64_t place = node - plan_.inputs, C = size * groups;
    const View<const T> from = view_of<const T>(grad, place * C), passed = view_of<const T>(passing_[node]);
    const View<T> slot = view_of<T>(slots, place * images_ * size), to = view_of<T>(gradients_[node]);
    const auto terms = passages<T>(plan_, factors_, [&](const Edge& e) { return e.source == node ? &gradients_[e.node] : nullptr; });
    std::vector<A> sums(chunks_ * w_ * C);
    over_rows([&, size, groups, rest](int64_t image, int64_t lane, int64_t y, int64_t chunk) {
      A* sum = &sums[chunk * w_ * C];
      const T* outer = row_of(from, image, y);
      T *own = row_of(slot, image / images_, y) + lane, *others = row_of(to, image, y);
      for (int64_t x = 0; x < w_; ++x, outer += from.sw)
        for (int64_t c = 0; c < size * groups; ++c)
          sum[x * C + c] = A(outer[c]) + (reached && c < size ? A(own[x * slot.sw + c]) : A(0));
      collect_row(terms, passed, image, y, w_, rest, sum + size, C, &factor_sums_[chunk * factors_.size()]);
      for (int64_t x = 0; x < w_; ++x, sum += C, own += slot.sw, others += to.sw)
        for (int64_t j = 0; j < size; ++j) {
          own[j] = T(sum[j * groups]);
          for (int64_t g = 1; g < groups; ++g) others[(g - 1) * size + j] = T(sum[j * groups + g]);
        }
    });
  });
}

at::Tensor Bypass::part_input(int64_t input, const at::Tensor& own, bool reached, bool needed) {
  const at::Tensor& state = states_[input];
  const at::Tensor gradient = needed ? empty_image_in_block(state.sizes(), state.scalar_type()) : at::empty({0}, state.options());
  with_types_and_sizes([&](auto t, auto a, auto size, auto, auto rest) {
    using T = decltype(t);
    using A = decltype(a);
    const View<const T> from = view_of<const T>(state), passed = view_of<const T>(passing_[input]);
    const View<const T> mine = reached && needed ? view_of<const T>(own) : View<const T>{};
    const View<T> to = needed ? view_of<T>(gradient) : View<T>{};
    const Windows windows = windows_of(state);
    const auto terms = passages<T>(plan_, factors_, [&](const Edge& e) { return e.source == input ? &gradients_[e.node] : nullptr; });
    std::vector<A> sums(chunks_ * w_ * rest);
    over_rows([&, size, rest](int64_t image, int64_t lane, int64_t y, int64_t chunk) {
      A* others = &sums[chunk * w_ * rest];
      std::fill(others, others + w_ * rest, A(0));
      collect_row(terms, passed, image, y, w_, rest, others, rest, &factor_sums_[chunk * factors_.size()]);
      const T* most = row_of(passed, image, y);
      for (int64_t x = 0; needed && x < w_; ++x, most += passed.sw, others += rest)
        windows.over(y, x, [&](int64_t row, int64_t column) {
          T* d = row_of(to, image, row) + column * to.sw;
          const T* pixel = row_of(from, image, row) + column * from.sw + size;
          if (reached)
            std::copy_n(row_of(mine, image / images_, row) + column * mine.sw + lane, int64_t(size), d);
          else
            std::fill_n(d, int64_t(size), T(0));
          for (int64_t c = 0; c < rest; ++c) {  // to the first pixel that has the maximum
            const bool here = pixel[c] == most[c] || is_nan(pixel[c]);
            d[size + c] = here ? T(others[c]) : T(0);
            others[c] = here ? A(0) : others[c];
          }
        });
    });
  });
  return gradient;
}

void Bypass::give_factors(const at::Tensor& dweights) const {
  std::vector<double> sums(factors_.size(), 0);
  for (size_t i = 0; i < factor_sums_.size(); ++i) sums[i % sums.size()] += factor_sums_[i];
  dweights.select(1, -1).copy_(at::from_blob(sums.data(), {int64_t(sums.size())}, at::kDouble));
}

}  // namespace fastdarts
