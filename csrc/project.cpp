// fastdarts::project and its backward on CPUs: a cell's preprocessing. Schema, fakes and autograd stand in fastdarts/ops/operators.py.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <vector>

#include "block_cache.h"
#include "plan.h"
#include "schedule.h"
#include "tile.h"
#include "weights.h"

namespace fastdarts {
namespace {

constexpr int64_t kTileElements = 16 << 10;  // of a tile's inputs, or as many as kTilePixels have
constexpr int64_t kTilePixels = 64;
constexpr int64_t kColumnsOfThread = 16, kWeightsOfThread = 4096;  // at least

template <class A, class T>
class Project {
 public:
  Project(const at::Tensor& x, const std::vector<at::Tensor>& params, const at::Tensor& affine, const at::Tensor& saved,
          const at::Tensor& stats, bool training, double eps)
      : params_(params), kernels_(kernels<A, T>()), norms_(stats, affine, eps), training_(training), threads_(at::get_num_threads()), chunks_(threads_ * kChunksOfThread) {
    const int64_t stride = params.size(), c = stats.size(2), cp = padded_channels<A>(c);
    const int64_t h = x.size(2), w = x.size(3), ho = ceil_div(h, stride), wo = ceil_div(w, stride);
    p_.in_channels = x.size(1);
    p_.in_padded = padded_channels<A>(p_.in_channels);
    Stage<A, T>& s = p_.stage;
    s.k = stride * p_.in_padded;
    s.used_k = s.k - p_.in_padded + p_.in_channels;
    s.used_c = c;
    const int64_t rows = std::min(ho, std::max(kTileElements / (wo * s.k), ceil_div(kTilePixels, wo)));
    p_.geo = {x.size(0), h, w, ho, wo, c, cp, stride, 0, rows, ceil_div(ho, rows)};
    p_.x = view_of<const T>(x);
    s.y = pointer<T>(saved);
    s.norm = make_norm(arena_, cp);
    scratch_ = (3 * rows * wo + 2 * kSparePixels) * std::max(s.k, cp);
    pack();
  }

  void forward(const at::Tensor& out) {
    const Geometry& g = p_.geo;
    p_.stage.chunk_mean = doubles_.zeros(chunks_ * g.cp);
    p_.stage.chunk_m2 = doubles_.zeros(chunks_ * g.cp);
    Block<A> scratch(scratch_ * threads_);
    over_tiles(g, threads_, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
      kernels_.project_forward(p_, lo, hi, chunk, scratch.data() + thread * scratch_);
    });
    if (training_) norms_.join(g, chunks_, g.cp, 0, p_.stage.chunk_mean, p_.stage.chunk_m2);
    const Norm<A>& norm = p_.stage.norm;
    norms_.read(0, g.c, norm);
    const Term<A, T> term = y_term(nullptr);
    const Mix<A, T> m{node_geometry(), &term, 1, view_of<T>(out), norm.shift, 0, nullptr};
    over_tiles(m.geo, threads_, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
      kernels_.mix(m, lo, hi, chunk, scratch.data() + thread * scratch_);
    });
  }

  void backward(const at::Tensor& grad_out, bool need_x, bool need_params, at::Tensor& dx, std::vector<at::Tensor>& dparams,
                const at::Tensor& daffine) {
    const Geometry& g = p_.geo;
    Stage<A, T>& s = p_.stage;
    norms_.read(0, p_.geo.c, s.norm);
    double *sum_g = doubles_.zeros(chunks_ * g.cp), *sum_gy = doubles_.zeros(chunks_ * g.cp);
    Block<A> scratch(scratch_ * threads_), grads(s.k * g.cp * chunks_);
    const Term<A, T> term = y_term(sum_gy);
    const Mix<A, T> m{node_geometry(), &term, 1, view_of<T>(grad_out), nullptr, 0, sum_g};
    over_tiles(m.geo, threads_, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t) { kernels_.term_sums(m, lo, hi, chunk); });
    for (double* sums : {sum_g, sum_gy}) join_chunks(sums, g.cp, chunks_, g.cp);
    norms_.give(daffine, 0, s.norm, 1, sum_g, sum_gy);
    s.from_g = arena_.zeros(g.cp);
    s.from_y = arena_.zeros(g.cp);
    s.offset = arena_.zeros(g.cp);
    for (int64_t c = 0; c < g.c; ++c)
      set_coefficients(s, c, 1, sum_g[c], sum_gy[c], training_ ? double(g.n * g.ho * g.wo) : 0);
    p_.g = view_of<const T>(grad_out);
    p_.need_params = need_params;
    p_.need_x = need_x;
    if (need_x) p_.dx = view_of<T>(dx);
    over_tiles(g, threads_, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
      A* mine = grads.data() + chunk * s.k * g.cp;
      std::fill(mine, mine + s.k * g.cp, A(0));
      kernels_.project_backward(p_, lo, hi, chunk, scratch.data() + thread * scratch_, mine);
    });
    if (need_params) collect(grads.data(), dparams);
  }

 private:
  // f(part, place in the part's weights, row and column of pw [k, cp]) for all weights, by several threads: a column by one.
  template <class F>
  void over_weights(const F& f) const {
    const int64_t share = p_.geo.c / int64_t(params_.size());
    at::parallel_for(0, p_.geo.c, kColumnsOfThread, [&](int64_t lo, int64_t hi) {
      for (int64_t column = lo; column < hi; ++column) {
        const int64_t part = column / share, first = column % share * p_.in_channels;
        for (int64_t i = 0; i < p_.in_channels; ++i) f(part, first + i, part * p_.in_padded + i, column);
      }
    });
  }

  void pack() {
    Stage<A, T>& s = p_.stage;
    A *pw = arena_.zeros(s.k * p_.geo.cp), *pw_t = arena_.zeros(s.k * p_.geo.cp);
    over_weights([&](int64_t part, int64_t at, int64_t row, int64_t column) {
      pw[row * p_.geo.cp + column] = pw_t[column * s.k + row] = pointer<A>(params_[part])[at];
    });
    s.pw = pw;
    s.pw_t = pw_t;
    if (!kernels_.pairs) return;
    auto* pairs = reinterpret_cast<uint32_t*>(arena_.take(s.k * p_.geo.cp));
    pack_pairs(pw, s.k, p_.geo.cp, pairs);
    pack_pairs(pw_t, p_.geo.cp, s.k, pairs + s.k * p_.geo.cp / 2);
    s.pw_pairs = pairs;
    s.pw_t_pairs = pairs + s.k * p_.geo.cp / 2;
  }

  void collect(A* grads, std::vector<at::Tensor>& dparams) const {
    const int64_t count = p_.stage.k * p_.geo.cp;
    at::parallel_for(0, count, kWeightsOfThread, [&](int64_t lo, int64_t hi) { join_chunks(grads + lo, hi - lo, chunks_, count); });
    over_weights([&](int64_t part, int64_t at, int64_t row, int64_t column) {
      pointer<A>(dparams[part])[at] = grads[row * p_.geo.cp + column];
    });
  }

  Term<A, T> y_term(double* sums) const {
    const Geometry& g = p_.geo;
    return {{p_.stage.y, g.ho * g.wo * g.cp, g.wo * g.cp, g.cp}, g.cp, p_.stage.norm.scale, p_.stage.norm.mean, nullptr, sums};
  }

  Geometry node_geometry() const {
    const Geometry& g = p_.geo;
    return {g.n, g.ho, g.wo, g.ho, g.wo, g.c, g.cp, 1, 0, g.rows, g.bands};
  }

  const std::vector<at::Tensor>& params_;
  const Kernels<A, T>& kernels_;
  Norms<A> norms_;
  bool training_;
  int64_t threads_, chunks_, scratch_;
  Arena<A> arena_;
  Arena<double> doubles_;
  Projection<A, T> p_{};
};

void check(const at::Tensor& x, at::TensorList params, double eps) {
  check_eps("project", eps);
  check_tensor("project", "x", x);
  check_tensors("project", "params", params);
  TORCH_CHECK_VALUE(x.dim() == 4 && x.numel() > 0, "project: x must be a non-empty [N, C, H, W]; got ", x.sizes());
  TORCH_CHECK_VALUE(params.size() == 1 || params.size() == 2, "project: one weight, or two for a factorised reduction; got ",
                    params.size());
  for (const at::Tensor& p : params)
    TORCH_CHECK_VALUE(p.dim() == 4 && p.sizes() == params[0].sizes() && p.size(1) == x.size(1) && p.size(2) == 1 && p.size(3) == 1 &&
                          p.size(0) > 0,
                      "project: weights must be [C_out, ", x.size(1), ", 1, 1]; got ", p.sizes());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> project(const at::Tensor& x, at::TensorList params,
                                                       const std::optional<at::Tensor>& running, double eps,
                                                       const std::optional<at::Tensor>& affine) {
  check(x, params, eps);
  const at::ScalarType dtype = x.scalar_type(), compute = compute_type(dtype);
  const int64_t stride = params.size(), c = params[0].size(0) * stride, n = x.size(0);
  const int64_t ho = ceil_div(x.size(2), stride), wo = ceil_div(x.size(3), stride);
  const at::Tensor stats = make_stats("project", running, 1, c, x.options().dtype(compute));
  const at::Tensor xs = channels_last(x), out = empty_image_in_block({n, c, ho, wo}, dtype);
  const auto ps = in_compute_type(params, compute);
  const at::Tensor affines = read_affine("project", affine, 1, c, compute);
  at::Tensor saved;
  dispatch(dtype, [&](auto a, auto t) {
    using A = decltype(a);
    saved = empty_in_block({checked_product("project: saved", {n, ho, wo, padded_channels<A>(c)})}, dtype);
    Project<A, decltype(t)>(xs, ps, affines, saved, stats, !running, eps).forward(out);
  });
  return {out, saved, stats};
}

std::tuple<at::Tensor, std::vector<at::Tensor>, at::Tensor> project_backward(
    const at::Tensor& grad_out, const at::Tensor& x, at::TensorList params, const at::Tensor& saved, const at::Tensor& stats,
    bool training, double eps, bool need_x, bool need_params, const std::optional<at::Tensor>& affine) {
  check(x, params, eps);
  const at::ScalarType dtype = x.scalar_type(), compute = compute_type(dtype);
  const int64_t stride = params.size(), c = params[0].size(0) * stride;
  const std::vector<int64_t> sizes{x.size(0), c, ceil_div(x.size(2), stride), ceil_div(x.size(3), stride)};
  TORCH_CHECK_VALUE(grad_out.sizes() == sizes, "project_backward: grad_out must be ", sizes, "; got ", grad_out.sizes());
  check_tensor("project_backward", "grad_out", grad_out);
  check_saved("project_backward", saved, dtype, stats, 1, c);
  const at::Tensor xs = channels_last(x), g = channels_last(grad_out.to(dtype));
  const auto ps = in_compute_type(params, compute);
  at::Tensor dx = need_x ? empty_image_in_block(x.sizes(), dtype) : at::empty({0}, x.options());
  const at::Tensor affines = read_affine("project", affine, 1, c, compute), daffine = make_affine_gradient(affines, need_params);
  std::vector<at::Tensor> dparams;
  for (const at::Tensor& p : ps) dparams.push_back(need_params ? at::empty_like(p) : at::empty({0}, p.options()));
  dispatch(dtype, [&](auto a, auto t) {
    using A = decltype(a);
    TORCH_CHECK_VALUE(saved.numel() == sizes[0] * sizes[2] * sizes[3] * padded_channels<A>(c), "project_backward: saved");
    Project<A, decltype(t)>(xs, ps, affines, saved, stats, training, eps).backward(g, need_x, need_params, dx, dparams, daffine);
  });
  for (size_t i = 0; need_params && i < ps.size(); ++i) dparams[i] = dparams[i].to(params[i].scalar_type());
  return {dx, dparams, affine_result(daffine, affine, x.options().dtype(compute))};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) {
  m.impl("project", &project);
  m.impl("project_backward", &project_backward);
}

}  // namespace fastdarts
