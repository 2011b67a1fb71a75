#include "bypass.h"

#include <ATen/Parallel.h>
#include <ATen/ops/from_blob.h>

#include "block_cache.h"
#include "schedule.h"

namespace fastdarts {

template <class A, class T>
PartialRows<A, T> Bypass::rows_of(int64_t state) const {
  const at::Tensor& whole = states_[state];
  const int64_t channels = whole.size(1), h = whole.size(2), w = whole.size(3);
  PartialRows<A, T> rows{};
  rows.h = h_;
  rows.w = w_;
  rows.channels = channels;
  rows.padded = padded_channels<A>(channels);
  rows.images = images_;
  rows.size = size_;
  rows.groups = plan_.groups;
  rows.step = h == h_ && w == w_ ? 1 : 2;
  rows.state_h = h;
  rows.state_w = w;
  rows.whole = view_of<const T>(whole);
  rows.passed = view_of<const T>(passing_[state]);
  return rows;
}

template <class A, class T, class F>
std::vector<Passage<A, T>> Bypass::passages(const F& tensor_of) const {
  std::vector<Passage<A, T>> terms;
  for (size_t e = 0; e < plan_.edges.size(); ++e)
    if (const at::Tensor* t = tensor_of(plan_.edges[e])) terms.push_back({view_of<const T>(*t), A(factors_[e]), int64_t(e)});
  return terms;
}

template <class A, class T>
void Bypass::run(typename Kernels<A, T>::Rows* kernel, const PartialRows<A, T>& rows) {
  const int64_t all = n_ / images_ * h_, sums = factor_sums_.size() / chunks_;
  at::parallel_for(0, chunks_, 1, [&](int64_t lo, int64_t hi) {
    const Block<A> scratch((2 * w_ + 1) * rows.padded);
    for (int64_t chunk = lo; chunk < hi; ++chunk)
      kernel(rows, all * chunk / chunks_, all * (chunk + 1) / chunks_, scratch.data(), factor_sums_.data() + chunk * sums);
  });
}

Bypass::Bypass(const Plan& plan, at::TensorList states, const at::Tensor& nodes, const at::Tensor& weights, int64_t images)
    : plan_(plan), images_(images), n_(nodes.size(0)), h_(nodes.size(2)), w_(nodes.size(3)), chunks_(at::get_num_threads()) {
  const int64_t C = states[0].size(1), edges = plan.edges.size();
  size_ = C / plan.groups;
  const at::Tensor factors = weights.select(1, -1).to(at::kDouble).contiguous();
  factors_.assign(factors.const_data_ptr<double>(), factors.const_data_ptr<double>() + edges);
  factor_sums_.assign(chunks_ * edges * kFactorLanes, 0);
  states_.assign(states.begin(), states.end());
  for (int64_t node = 0; node < plan.nodes; ++node) states_.push_back(nodes.narrow(1, node * C, C));
  gradients_.resize(states_.size());
  for (const at::Tensor& state : states_) passing_.push_back(state.narrow(1, size_, C - size_));
  dispatch(states_[0].scalar_type(), [&](auto a, auto t) {
    using A = decltype(a);
    using T = decltype(t);
    for (int64_t input = 0; input < plan.inputs; ++input) {
      auto rows = rows_of<A, T>(input);
      if (rows.step == 1 || !plan_.reads(input)) continue;  // a state that no edge leaves may have any size
      passing_[input] = empty_image_in_block({n_, C - size_, h_, w_}, kDtype<T>);
      rows.to = view_of<T>(passing_[input]);
      run(kernels<A, T>().pool_passing, rows);
    }
  });
}

void Bypass::join(int64_t node, const at::Tensor& slots) {
  dispatch(states_[node].scalar_type(), [&](auto a, auto t) {
    using A = decltype(a);
    using T = decltype(t);
    const auto terms = passages<A, T>([&](const Edge& e) { return e.node == node ? &passing_[e.source] : nullptr; });
    auto rows = rows_of<A, T>(node);
    rows.terms = terms.data();
    rows.count = terms.size();
    rows.own = view_of<T>(slots, (node - plan_.inputs) * images_ * size_);
    rows.to = view_of<T>(states_[node]);
    run(kernels<A, T>().join, rows);
  });
}

void Bypass::part_node(int64_t node, const at::Tensor& grad, const at::Tensor& slots, bool reached) {
  gradients_[node] = empty_image_in_block(passing_[node].sizes(), grad.scalar_type());
  dispatch(grad.scalar_type(), [&](auto a, auto t) {
    using A = decltype(a);
    using T = decltype(t);
    const int64_t place = node - plan_.inputs;
    const auto terms = passages<A, T>([&](const Edge& e) { return e.source == node ? &gradients_[e.node] : nullptr; });
    auto rows = rows_of<A, T>(node);
    rows.terms = terms.data();
    rows.count = terms.size();
    rows.own = view_of<T>(slots, place * images_ * size_);
    rows.reached = reached;
    rows.whole = view_of<const T>(grad, place * rows.channels);
    rows.to = view_of<T>(gradients_[node]);
    run(kernels<A, T>().part_node, rows);
  });
}

at::Tensor Bypass::part_input(int64_t input, const at::Tensor& own, bool reached, bool needed) {
  const at::Tensor& state = states_[input];
  const at::Tensor gradient = needed ? empty_image_in_block(state.sizes(), state.scalar_type()) : at::empty({0}, state.options());
  if (!plan_.reads(input)) return gradient.zero_();
  dispatch(state.scalar_type(), [&](auto a, auto t) {
    using A = decltype(a);
    using T = decltype(t);
    const auto terms = passages<A, T>([&](const Edge& e) { return e.source == input ? &gradients_[e.node] : nullptr; });
    auto rows = rows_of<A, T>(input);
    rows.terms = terms.data();
    rows.count = terms.size();
    rows.reached = reached && needed;
    if (rows.reached) rows.own = view_of<T>(own);
    if (needed) rows.to = view_of<T>(gradient);
    run(kernels<A, T>().part_input, rows);
  });
  return gradient;
}

void Bypass::give_factors(const at::Tensor& dweights) const {
  const int64_t edges = factors_.size();
  std::vector<double> sums(edges, 0);
  for (size_t i = 0; i < factor_sums_.size(); ++i) sums[i / kFactorLanes % edges] += factor_sums_[i];
  dweights.select(1, -1).copy_(at::from_blob(sums.data(), {edges}, at::kDouble));
}

}  // namespace fastdarts
