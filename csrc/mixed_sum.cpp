// fastdarts::mixed_sum and its backward on CPUs: the operators. Schema, fakes and autograd stand in fastdarts/ops/operators.py, the schedule in
// mixed_sum.h, the arithmetic in tiles/.
#include "mixed_sum.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "block_cache.h"
#include "bypass.h"
#include "fold.h"
#include "plan.h"
#include "schedule.h"

namespace fastdarts {
namespace {

struct Shape {
  int64_t n, c, ho, wo;  // c: that the ops see
};

std::vector<at::Tensor> all_channels_last(at::TensorList states) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& t : states) result.push_back(channels_last(t));
  return result;
}

std::vector<at::Tensor> all_folded(at::TensorList states, const Plan& plan, int64_t images) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& t : states) result.push_back(fold(t, 1, images, plan.groups));
  return result;
}

// What keeps the kernels inside the tensors; the callers' words for mistakes stand in fastdarts/ops/operators.py.
Shape check(const Plan& plan, at::TensorList states, const at::Tensor& weights, at::TensorList params, double eps) {
  TORCH_CHECK_VALUE(int64_t(states.size()) == plan.inputs, "mixed_sum: plan has ", plan.inputs, " inputs; got ", states.size());
  check_eps("mixed_sum", eps);
  check_tensors("mixed_sum", "states", states);
  check_tensor("mixed_sum", "weights", weights);
  check_tensors("mixed_sum", "params", params);
  TORCH_CHECK_VALUE(states[0].dim() == 4, "mixed_sum: states must be [N, C, H, W]");
  TORCH_CHECK_VALUE(states[0].size(1) % plan.groups == 0, "mixed_sum: C must be a multiple of K = ", plan.groups, "; got ",
                    states[0].size(1));
  Shape shape{states[0].size(0), states[0].size(1) / plan.groups, -1, -1};
  for (const at::Tensor& s : states)
    TORCH_CHECK_VALUE(s.dim() == 4 && s.numel() > 0 && s.size(0) == shape.n && s.size(1) == states[0].size(1) &&
                          s.scalar_type() == states[0].scalar_type(),
                      "mixed_sum: states must share N, C and dtype and not be empty; got ", s.sizes());
  for (const Edge& edge : plan.edges) {
    if (edge.source >= plan.inputs) continue;
    const int64_t ho = ceil_div(states[edge.source].size(2), edge.stride), wo = ceil_div(states[edge.source].size(3), edge.stride);
    if (shape.ho < 0) {
      shape.ho = ho;
      shape.wo = wo;
    }
    TORCH_CHECK_VALUE(shape.ho == ho && shape.wo == wo, "mixed_sum: the edges from the inputs end in different sizes");
  }
  TORCH_CHECK_VALUE(shape.ho > 0, "mixed_sum: no edge leaves an input");
  checked_product("mixed_sum: out", {shape.n, plan.nodes, plan.groups, shape.c, shape.ho, shape.wo});
  TORCH_CHECK_VALUE(weights.dim() == 2 && weights.size(0) == int64_t(plan.edges.size()) && weights.size(1) >= (plan.groups > 1),
                    "mixed_sum: weights must be [edges, ops]; got ", weights.sizes());
  TORCH_CHECK_VALUE(int64_t(params.size()) == plan.params, "mixed_sum: plan needs ", plan.params, " parameters; got ",
                    params.size());
  const int64_t columns = weights.size(1) - (plan.groups > 1);  // without the factors of what passes the ops by
  for (const Edge& edge : plan.edges)
    for (const Op& op : edge.ops) {
      TORCH_CHECK_VALUE(op.column < columns, "mixed_sum: no column ", op.column, " in weights, which have ", columns,
                        " for the ops");
      TORCH_CHECK_VALUE(op.kind != Kind::skip || edge.stride == 1 || shape.c % 2 == 0,
                        "mixed_sum: a factorised reduction needs an even number of channels; got ", shape.c);
      for (int64_t i = 0; i < op.params; ++i)
        TORCH_CHECK_VALUE(params[op.param + i].numel() == op.param_size(i, shape.c), "mixed_sum: parameter ", op.param + i, " has ",
                          params[op.param + i].numel(), " elements, not ", op.param_size(i, shape.c));
    }
  return shape;
}

// The edges' factors in the type that is computed in; undefined where they have none.
at::Tensor read_factors(const std::optional<at::Tensor>& factors, const Plan& plan, int64_t n, at::ScalarType compute) {
  if (!factors) return {};
  check_tensor("mixed_sum", "factors", *factors);
  TORCH_CHECK_VALUE(factors->sizes() == at::IntArrayRef({int64_t(plan.edges.size()), n}), "mixed_sum: factors must be [",
                    plan.edges.size(), ", ", n, "]; got ", factors->sizes());
  TORCH_CHECK_VALUE(plan.groups == 1, "mixed_sum: factors and partial channels do not go together; got K = ", plan.groups);
  return factors->to(compute).contiguous();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> mixed_sum(at::TensorList states, const at::Tensor& weights, at::TensorList params,
                                                         const std::optional<at::Tensor>& running, at::IntArrayRef code, double eps,
                                                         const std::optional<at::Tensor>& affine,
                                                         const std::optional<at::Tensor>& factors, bool recompute) {
  const Plan plan(code);
  const Shape shape = check(plan, states, weights, params, eps);
  const at::ScalarType dtype = states[0].scalar_type(), compute = compute_type(dtype);
  const at::Tensor affines = read_affine("mixed_sum", affine, plan.norms, shape.c, compute);
  const at::Tensor fs = read_factors(factors, plan, shape.n, compute);
  const at::Tensor stats = make_stats("mixed_sum", running, plan.norms, shape.c, states[0].options().dtype(compute));
  const int64_t images = images_in_line(dtype, shape.n, shape.c), n = shape.n / images, c = shape.c * images;
  const auto wholes = all_channels_last(states), xs = all_folded(wholes, plan, images);
  const auto ps = in_compute_type(params, compute);
  const at::Tensor ws = weights.to(compute);
  const at::Tensor nodes = empty_image_in_block({n, plan.nodes * c, shape.ho, shape.wo}, dtype);
  std::optional<Bypass> bypass;
  at::Tensor out;
  if (plan.groups > 1) {
    out = empty_image_in_block({shape.n, plan.nodes * plan.groups * shape.c, shape.ho, shape.wo}, dtype);
    bypass.emplace(plan, wholes, out, ws, images);
  }
  at::Tensor saved;
  const Args args{xs, ws, ps, plan, affines, fs, !running, eps, recompute, bypass ? &*bypass : nullptr};
  dispatch(dtype, [&](auto a, auto t) {
    using Sum = MixedSum<decltype(a), decltype(t)>;
    saved = empty_in_block({Sum::saved_size(plan, recompute, n, c, shape.ho, shape.wo)}, dtype);
    Sum(args, nodes, saved, stats).forward();
  });
  return {bypass ? out : unfold(nodes, plan.nodes, images), saved, stats};
}

std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>, at::Tensor> mixed_sum_backward(
    const at::Tensor& grad_out, at::TensorList states, const at::Tensor& weights, at::TensorList params, const at::Tensor& out,
    const at::Tensor& saved, const at::Tensor& stats, at::IntArrayRef code, bool training, double eps, at::IntArrayRef need_states,
    bool need_params, bool need_weights, const std::optional<at::Tensor>& affine, const std::optional<at::Tensor>& factors,
    bool recompute) {
  const Plan plan(code);
  const Shape shape = check(plan, states, weights, params, eps);
  const at::ScalarType dtype = states[0].scalar_type(), compute = compute_type(dtype);
  check_tensor("mixed_sum_backward", "grad_out", grad_out);
  check_tensor("mixed_sum_backward", "out", out);
  TORCH_CHECK_VALUE(grad_out.sizes() == out.sizes() && int64_t(need_states.size()) == plan.inputs,
                    "mixed_sum_backward: grad_out must have the output's shape ", out.sizes(), "; got ", grad_out.sizes());
  const bool reads_nodes = plan.reads_nodes();
  TORCH_CHECK_VALUE(out.sizes() == at::IntArrayRef({shape.n, plan.nodes * plan.groups * shape.c, shape.ho, shape.wo}) &&
                        (!reads_nodes || out.scalar_type() == dtype),
                    "mixed_sum_backward: out is none of these states: ", out.scalar_type(), " ", out.sizes());
  check_saved("mixed_sum_backward", saved, dtype, stats, plan.norms, shape.c);
  const at::Tensor affines = read_affine("mixed_sum", affine, plan.norms, shape.c, compute);
  const at::Tensor fs = read_factors(factors, plan, shape.n, compute);
  const int64_t images = images_in_line(dtype, shape.n, shape.c), n = shape.n / images, c = shape.c * images;
  const auto wholes = all_channels_last(states), xs = all_folded(wholes, plan, images);
  const auto ps = in_compute_type(params, compute);
  const at::Tensor ws = weights.to(compute), out_whole = reads_nodes ? channels_last(out) : out;
  const at::Tensor nodes = reads_nodes ? fold(out_whole, plan.nodes, images, plan.groups) : out;
  const at::Tensor g = plan.groups > 1 ? channels_last(grad_out.to(dtype)) : fold(grad_out.to(dtype), plan.nodes, images);
  std::optional<Bypass> bypass;
  if (plan.groups > 1) bypass.emplace(plan, wholes, out_whole, ws, images);
  Gradients to{need_weights, need_params, {}, at::zeros_like(ws, at::MemoryFormat::Contiguous), {}, {},
               make_affine_gradient(affines, need_params)};
  for (const at::Tensor& p : ps) to.params.push_back(need_params ? at::empty_like(p) : at::empty({0}, p.options()));
  for (size_t i = 0; i < xs.size(); ++i) {
    to.need_states.push_back(need_states[i] != 0);
    to.states.push_back(need_states[i] ? empty_image_in_block(xs[i].sizes(), dtype) : at::empty({0}, xs[i].options()));
  }
  const Args args{xs, ws, ps, plan, affines, fs, training, eps, recompute, bypass ? &*bypass : nullptr};
  dispatch(dtype, [&](auto a, auto t) {
    using Sum = MixedSum<decltype(a), decltype(t)>;
    TORCH_CHECK_VALUE(saved.numel() == Sum::saved_size(plan, recompute, n, c, shape.ho, shape.wo), "mixed_sum_backward: saved");
    Sum(args, nodes, saved, stats).backward(g, to);
  });
  for (size_t i = 0; i < xs.size(); ++i)
    if (to.need_states[i] && !bypass) to.states[i] = unfold(to.states[i], 1, images);
  for (size_t i = 0; need_params && i < ps.size(); ++i) to.params[i] = to.params[i].to(params[i].scalar_type());
  return {to.weights.to(weights.scalar_type()), to.states, to.params, affine_result(to.affine, affine, ws.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) {
  m.impl("mixed_sum", &mixed_sum);
  m.impl("mixed_sum_backward", &mixed_sum_backward);
}

}  // namespace fastdarts
