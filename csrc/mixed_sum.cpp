// fastdarts::mixed_sum and its backward on CPUs: the schedule over a plan's states and edges. Schema, fakes and autograd stand
// in fastdarts/ops.py; the arithmetic in tile_kernels.h; README.md tells how the passes follow each other.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "block_cache.h"
#include "bypass.h"
#include "fold.h"
#include "plan.h"
#include "schedule.h"
#include "tile.h"

namespace fastdarts {
namespace {

constexpr int64_t kTileBytes = 192 << 10;  // of one tensor's tile: with the others of a pass it stays in a 1 MiB L2

struct Args {
  at::TensorList states;  // folded (fold.h), as out and all gradients of images
  const at::Tensor& weights;
  at::TensorList params;
  const Plan& plan;
  bool training;
  double eps;
  Bypass* bypass;  // of partial channels: then the tensors here hold the ops' channels alone, those of nodes in slots; or null
};

// One op of one edge as the schedule sees it.
template <class A, class T>
struct OpSite {
  const Edge* edge;
  int64_t edge_index;
  const Op* op;
  double weight;
  int64_t branch = -1;               // in its bank, for ops with convolutions
  const T* y = nullptr;              // what the last batch norm sees; null for a stride-1 skip
  A *mean = nullptr, *rstd = nullptr;
  double* sum = nullptr;             // backward: [chunks, cp] sums of g * (y - mean)
  double* sum_g = nullptr;           // backward: [chunks, cp] sums of g, one array an edge
};

template <class A, class T>
struct BankSite {  // a bank and where its things come from; ops and branches stand edge by edge
  Bank<A, T> bank{};
  int64_t source, stride;
  std::vector<Branch<A, T>> branches;
  std::vector<OpSite<A, T>> ops;

  // visit(first op, one past the last, edge) for each edge, with the bank set to its branches.
  template <class F>
  void over_edges(const F& visit) {
    bank.branches = branches.data();
    for (size_t lo = 0, hi; lo < ops.size(); lo = hi, bank.branches += bank.count) {
      bank.count = 0;
      for (hi = lo; hi < ops.size() && ops[hi].edge == ops[lo].edge; ++hi) bank.count += ops[hi].branch >= 0;
      bank.starts = lo == 0;
      bank.finishes = hi == ops.size();
      visit(&ops[lo], &ops[lo] + (hi - lo), *ops[lo].edge);
    }
  }

  int64_t separables() const {  // of the edge that is visited
    return std::count_if(bank.branches, bank.branches + bank.count, [](const auto& b) { return b.separable; });
  }

  int64_t most_separables() {
    int64_t most = 0;
    over_edges([&](OpSite<A, T>*, OpSite<A, T>*, const Edge&) { most = std::max(most, separables()); });
    return most;
  }
};

template <class A, class T>
class MixedSum {
 public:
  MixedSum(const Args& args, const at::Tensor& out, const at::Tensor& saved, const at::Tensor& stats)
      : args_(args), plan_(args.plan), kernels_(kernels<A, T>()), out_(out), norms_(stats, args.eps) {
    const at::Tensor& x = args.states[0];
    n_ = x.size(0);
    c_ = x.size(1);
    channels_ = stats.size(2);
    cp_ = padded_channels<A>(c_);
    ho_ = out.size(2);
    wo_ = out.size(3);
    threads_ = at::get_num_threads();
    chunks_ = threads_ * kChunksOfThread;
    make_banks(pointer<T>(saved));
  }

  // Elements of T that `saved` must hold.
  static int64_t saved_size(const Plan& plan, int64_t n, int64_t c, int64_t ho, int64_t wo) {
    int64_t tensors = 0;
    std::vector<std::vector<int64_t>> pools;
    for (const Edge& edge : plan.edges)
      for (const Op& op : edge.ops) {
        if (op.kind == Kind::max_pool || op.kind == Kind::avg_pool) {
          const std::vector<int64_t> key{edge.source, edge.stride, int64_t(op.kind)};
          if (std::find(pools.begin(), pools.end(), key) != pools.end()) continue;
          pools.push_back(key);
          ++tensors;
        } else {
          tensors += op.kind == Kind::sep_conv ? 2 : op.kind == Kind::dil_conv || edge.stride == 2 ? 1 : 0;
        }
      }
    return tensors * n * ho * wo * padded_channels<A>(c);
  }

  void forward() {
    pack(false);
    for (int64_t state = 0; state < plan_.inputs + plan_.nodes; ++state) {
      if (state >= plan_.inputs) make_node(state);
      if (state >= plan_.inputs && args_.bypass) args_.bypass->join(state, out_);
      for (BankSite<A, T>& site : banks_)
        if (site.source == state) run_bank(site);
    }
  }

  void backward(const at::Tensor& grad_out, bool need_params, const std::vector<bool>& need_states, at::Tensor& dweights,
                std::vector<at::Tensor>& dparams, std::vector<at::Tensor>& dstates) {
    pack(true);
    load_stats();
    std::vector<View<T>> g(plan_.inputs + plan_.nodes);
    std::vector<at::Tensor> node_grads(plan_.nodes);
    const at::Tensor nodes = args_.bypass ? empty_image_in_block({n_, plan_.nodes * c_, ho_, wo_}, kDtype<T>) : grad_out;
    for (int64_t node = 0; node < plan_.nodes; ++node) g[plan_.inputs + node] = view_of<T>(nodes, node * c_);
    std::vector<bool> has_g(plan_.inputs + plan_.nodes, false);
    for (int64_t node = 0; node < plan_.nodes; ++node) has_g[plan_.inputs + node] = !args_.bypass;
    for (int64_t state = plan_.inputs + plan_.nodes - 1; state >= 0; --state) {
      for (BankSite<A, T>& site : banks_) {
        if (site.source != state) continue;
        const bool need_x = state >= plan_.inputs || need_states[state];
        View<T> dx{};
        if (state >= plan_.inputs && args_.bypass) {
          dx = g[state];
        } else if (state >= plan_.inputs) {
          at::Tensor& t = node_grads[state - plan_.inputs];
          t = empty_in_block({n_, ho_, wo_, c_}, kDtype<T>);
          dx = {pointer<T>(t), t.stride(0), t.stride(1), t.stride(2)};
        } else if (need_x) {
          dx = view_of<T>(dstates[state]);
        }
        const View<T> before = has_g[state] ? g[state] : View<T>{};
        back_bank(site, g, before, dx, need_x, need_params, dweights, dparams);
        g[state] = dx;
        has_g[state] = true;
      }
      if (args_.bypass && state >= plan_.inputs)
        args_.bypass->part_node(state, grad_out, nodes, has_g[state]);
      else if (args_.bypass)
        dstates[state] = args_.bypass->part_input(state, dstates[state], has_g[state], need_states[state]);
      else if (!has_g[state] && need_states[state])
        dstates[state].zero_();
    }
    if (args_.bypass) args_.bypass->give_factors(dweights);
  }

 private:
  // ---- setting up ----

  double weight_of(int64_t edge, int64_t column) const {
    const A* row = pointer<A>(args_.weights) + edge * args_.weights.stride(0);
    return double(row[column * args_.weights.stride(1)]);
  }

  Stage<A, T> stage_of(int64_t kernel, int64_t dilation, int64_t stride, T*& saved) {
    Stage<A, T> s{};
    s.kernel = kernel;
    s.dilation = dilation;
    s.stride = stride;
    s.pad = kernel ? dilation * (kernel - 1) / 2 : 0;
    s.k = kernel ? cp_ : 2 * cp_;
    s.y = saved;
    saved += n_ * ho_ * wo_ * cp_;
    s.mean = arena_.zeros(cp_);
    s.rstd = arena_.zeros(cp_);
    s.chunk_mean = doubles_.zeros(chunks_ * cp_);
    s.chunk_m2 = doubles_.zeros(chunks_ * cp_);
    return s;
  }

  void make_banks(T* saved) {
    for (size_t e = 0; e < plan_.edges.size(); ++e) {
      const Edge& edge = plan_.edges[e];
      if (edge.ops.empty()) continue;
      BankSite<A, T>* site = nullptr;
      for (BankSite<A, T>& b : banks_)
        if (b.source == edge.source && b.stride == edge.stride) site = &b;
      if (!site) {
        banks_.emplace_back();
        site = &banks_.back();
        site->source = edge.source;
        site->stride = edge.stride;
      }
      for (const Op& op : edge.ops) {
        OpSite<A, T> o{&edge, int64_t(e), &op, weight_of(e, op.column)};
        if (op.kind == Kind::sep_conv || op.kind == Kind::dil_conv || (op.kind == Kind::skip && edge.stride == 2)) {
          Branch<A, T> b{};
          b.separable = op.kind == Kind::sep_conv;
          b.first = stage_of(op.kind == Kind::skip ? 0 : op.kernel, op.dilation, edge.stride, saved);
          if (b.separable) b.second = stage_of(op.kernel, 1, 1, saved);
          const Stage<A, T>& last = b.separable ? b.second : b.first;
          o.branch = site->branches.size();
          o.y = last.y;
          o.mean = last.mean;
          o.rstd = last.rstd;
          site->branches.push_back(b);
        } else if (op.kind != Kind::skip) {
          Pools<A, T>& pools = site->bank.pools;
          const bool is_max = op.kind == Kind::max_pool;
          T*& y = is_max ? pools.max_y : pools.avg_y;
          if (!y) {
            y = saved;
            saved += n_ * ho_ * wo_ * cp_;
            (is_max ? pools.max_mean : pools.avg_mean) = doubles_.zeros(chunks_ * cp_);
            (is_max ? pools.max_m2 : pools.avg_m2) = doubles_.zeros(chunks_ * cp_);
          }
          o.y = y;
          o.mean = arena_.zeros(cp_);
          o.rstd = arena_.zeros(cp_);
        }
        site->ops.push_back(o);
      }
    }
    for (BankSite<A, T>& site : banks_) {
      Bank<A, T>& bank = site.bank;
      const bool is_input = site.source < plan_.inputs;
      const int64_t h = is_input ? args_.states[site.source].size(2) : ho_;
      const int64_t w = is_input ? args_.states[site.source].size(3) : wo_;
      int64_t pad = 1;
      for (const Branch<A, T>& b : site.branches) pad = std::max({pad, b.first.pad, b.second.pad});
      bank.geo = geometry(h, w, site.stride, pad);
      bank.x = is_input ? view_of<const T>(args_.states[site.source])
                        : view_of<const T>(out_, (site.source - plan_.inputs) * c_);
    }
  }

  Geometry geometry(int64_t h, int64_t w, int64_t stride, int64_t pad) const {
    const int64_t row_bytes = wo_ * cp_ * int64_t(sizeof(A)) * stride * stride;
    const int64_t bands = ceil_div(ho_ * row_bytes, kTileBytes);
    const int64_t rows = std::min(ho_, std::max<int64_t>(ceil_div(ho_, bands), 4));
    return {n_, h, w, ho_, wo_, c_, cp_, stride, pad, rows, ceil_div(ho_, rows)};
  }

  // body(first lane) for the images that stand side by side in the lanes: the same weights for each.
  template <class F>
  void over_images(const F& body) const {
    for (int64_t at = 0; at < c_; at += channels_) body(at);
  }

  // Weights in the layouts the kernels read.
  void pack(bool for_backward) {
    std::vector<std::pair<BankSite<A, T>*, OpSite<A, T>*>> work;
    for (BankSite<A, T>& site : banks_)
      for (OpSite<A, T>& o : site.ops)
        if (o.branch >= 0) work.emplace_back(&site, &o);
    for (auto& [site, o] : work) {
      Branch<A, T>& b = site->branches[o->branch];
      for (Stage<A, T>* s : {&b.first, &b.second}) {
        if (!s->y) continue;
        s->dw = arena_.take(s->kernel * s->kernel * cp_);
        s->pw = for_backward ? nullptr : arena_.take(s->k * cp_);
        s->dw_flipped = for_backward ? arena_.take(s->kernel * s->kernel * cp_) : nullptr;
        s->pw_t = for_backward ? arena_.take(s->k * cp_) : nullptr;
        if (!kernels_.pairs) continue;
        (for_backward ? s->pw_t_pairs : s->pw_pairs) = reinterpret_cast<uint32_t*>(arena_.take(s->k * cp_ / 2));
      }
    }
    at::parallel_for(0, work.size(), 4, [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi; ++i) {
        Branch<A, T>& b = work[i].first->branches[work[i].second->branch];
        const int64_t param = work[i].second->op->param;
        if (b.first.kernel)
          pack_stage(b.first, args_.params[param], args_.params[param + 1]);
        else
          pack_reduce(b.first, args_.params[param], args_.params[param + 1]);
        if (b.separable) pack_stage(b.second, args_.params[param + 2], args_.params[param + 3]);
        for (const Stage<A, T>* s : {&b.first, &b.second}) {
          if (s->pw_pairs) pack_pairs(s->pw, s->k, cp_, const_cast<uint32_t*>(s->pw_pairs));
          if (s->pw_t_pairs) pack_pairs(s->pw_t, cp_, s->k, const_cast<uint32_t*>(s->pw_t_pairs));
        }
      }
    });
  }

  void pack_stage(const Stage<A, T>& s, const at::Tensor& depthwise, const at::Tensor& pointwise) const {
    const A* d = pointer<A>(depthwise);
    const int64_t taps = s.kernel * s.kernel;
    A *dw = const_cast<A*>(s.dw), *flipped = const_cast<A*>(s.dw_flipped);
    if (c_ < cp_) std::fill(dw, dw + taps * cp_, A(0));
    over_images([&](int64_t at) {
      for (int64_t c = 0; c < channels_; ++c)
        for (int64_t tap = 0; tap < taps; ++tap) dw[tap * cp_ + at + c] = d[c * taps + tap];
    });
    if (flipped && s.stride == 1)
      for (int64_t tap = 0; tap < taps; ++tap) std::copy_n(dw + tap * cp_, cp_, flipped + (taps - 1 - tap) * cp_);
    if (flipped && s.stride == 2) pack_phases(s, flipped);
    const A* p = pointer<A>(pointwise);
    const bool partly = channels_ < cp_;  // the rest are zeros
    if (A* pw = const_cast<A*>(s.pw)) {
      if (partly) std::fill(pw, pw + s.k * cp_, A(0));
      over_images([&](int64_t at) {
        for (int64_t o = 0; o < channels_; ++o)
          for (int64_t i = 0; i < channels_; ++i) pw[(at + i) * cp_ + at + o] = p[o * channels_ + i];
      });
    }
    if (A* pw_t = const_cast<A*>(s.pw_t)) {
      if (partly) std::fill(pw_t, pw_t + s.k * cp_, A(0));
      over_images([&](int64_t at) {
        for (int64_t o = 0; o < channels_; ++o) std::copy_n(p + o * channels_, channels_, pw_t + (at + o) * s.k + at);
      });
    }
  }

  void pack_phases(const Stage<A, T>& s, A* flipped) const {
    for (int64_t part = 0; part < 4; ++part) {
      const Phase down(s.kernel, s.dilation, s.pad, part / 2), across(s.kernel, s.dilation, s.pad, part % 2);
      for (int64_t i = 0; i < down.taps * across.taps; ++i, flipped += cp_) {
        const int64_t ky = down.last - down.step * (i / across.taps), kx = across.last - across.step * (i % across.taps);
        std::copy(s.dw + (ky * s.kernel + kx) * cp_, s.dw + (ky * s.kernel + kx + 1) * cp_, flipped);
      }
    }
  }

  // A factorised reduction as one product: the first half of the outputs from one pixel, the second from its neighbour.
  void pack_reduce(const Stage<A, T>& s, const at::Tensor& conv_1, const at::Tensor& conv_2) const {
    const int64_t half = channels_ / 2;
    A *pw = const_cast<A*>(s.pw), *pw_t = const_cast<A*>(s.pw_t);
    if (pw) std::fill(pw, pw + s.k * cp_, A(0));
    if (pw_t) std::fill(pw_t, pw_t + s.k * cp_, A(0));
    for (int64_t part = 0; part < 2; ++part) {
      const A* p = pointer<A>(part ? conv_2 : conv_1);
      over_images([&](int64_t at) {
        for (int64_t o = 0; o < half; ++o)
          for (int64_t i = 0; i < channels_; ++i) {
            if (pw) pw[(part * cp_ + at + i) * cp_ + at + part * half + o] = p[o * channels_ + i];
            if (pw_t) pw_t[(at + part * half + o) * s.k + part * cp_ + at + i] = p[o * channels_ + i];
          }
      });
    }
  }

  // ---- running passes ----

  template <class F>
  void over_tiles(const Geometry& geo, const F& body) const {
    fastdarts::over_tiles(geo, threads_, body);
  }

  void clear_borders(const Geometry& geo, A* scratch) const {
    const ScratchLayout layout(geo);
    at::parallel_for(0, threads_, 1, [&](int64_t lo, int64_t hi) {
      for (int64_t thread = lo; thread < hi; ++thread) std::fill_n(scratch + thread * layout.total(), layout.bordered(), A(0));
    });
  }

  void finish_norm(const Geometry& geo, int64_t norm, const double* chunk_mean, const double* chunk_m2, A* mean, A* rstd) const {
    if (args_.training) norms_.join(geo, chunks_, cp_, norm, chunk_mean, chunk_m2);
    norms_.read(norm, c_, mean, rstd);
  }

  void run_bank(BankSite<A, T>& site) {
    const Bank<A, T>& bank = site.bank;
    const int64_t size = ScratchLayout(bank.geo).total();
    const int64_t plane = n_ * ho_ * wo_ * cp_;
    Block<A> scratch(size * threads_);
    clear_borders(bank.geo, scratch.data());
    Block<T> soon(site.most_separables() * plane);
    site.over_edges([&](OpSite<A, T>* begin, OpSite<A, T>* end, const Edge&) {
      T* next_soon = soon.data();
      for (Branch<A, T>* b = bank.branches; b != bank.branches + bank.count; ++b) {
        if (!b->separable) continue;
        b->first.soon = next_soon;
        next_soon += plane;
      }
      over_tiles(bank.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
        kernels_.first_forward(bank, lo, hi, chunk, scratch.data() + thread * size);
      });
      for (OpSite<A, T>* o = begin; o != end; ++o)
        if (o->branch >= 0) {
          const Stage<A, T>& first = site.branches[o->branch].first;
          finish_norm(bank.geo, o->op->norm, first.chunk_mean, first.chunk_m2, first.mean, first.rstd);
        } else if (o->y) {
          const bool is_max = o->op->kind == Kind::max_pool;
          finish_norm(bank.geo, o->op->norm, is_max ? bank.pools.max_mean : bank.pools.avg_mean,
                      is_max ? bank.pools.max_m2 : bank.pools.avg_m2, o->mean, o->rstd);
        }
      if (site.separables() == 0) return;
      over_tiles(bank.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
        kernels_.second_forward(bank, lo, hi, chunk, scratch.data() + thread * size);
      });
      for (OpSite<A, T>* o = begin; o != end; ++o)
        if (o->branch >= 0 && site.branches[o->branch].separable) {
          const Stage<A, T>& s = site.branches[o->branch].second;
          finish_norm(bank.geo, o->op->norm + 1, s.chunk_mean, s.chunk_m2, s.mean, s.rstd);
        }
    });
  }

  // The tensor of an op that enters its node, with its scale.
  Term<A, T> term_of(const BankSite<A, T>& site, const OpSite<A, T>& o, A* scale) {
    if (!o.y) {
      std::fill(scale, scale + cp_, A(o.weight));
      return {site.bank.x, c_, scale, zero(), nullptr};
    }
    for (int64_t c = 0; c < cp_; ++c) scale[c] = A(o.weight * double(o.rstd[c]));
    return {{o.y, ho_ * wo_ * cp_, wo_ * cp_, cp_}, cp_, scale, o.mean, nullptr};
  }

  // The batch norms' means, scaled: what is left of sum scale * (t - mean) beside sum scale * t.
  const A* shift_of(const std::vector<Term<A, T>>& terms) {
    A* shift = arena_.zeros(cp_);
    for (int64_t c = 0; c < cp_; ++c) {
      double sum = 0;
      for (const Term<A, T>& term : terms) sum -= double(term.scale[c]) * double(term.mean[c]);
      shift[c] = A(sum);
    }
    return shift;
  }

  void make_node(int64_t state) {
    std::vector<Term<A, T>> terms;
    for (BankSite<A, T>& site : banks_)
      for (const OpSite<A, T>& o : site.ops)
        if (o.edge->node == state) terms.push_back(term_of(site, o, arena_.take(cp_)));
    Mix<A, T> m{};
    m.geo = geometry(ho_, wo_, 1, 0);
    m.terms = terms.data();
    m.count = terms.size();
    m.node = view_of<T>(out_, (state - plan_.inputs) * c_);
    m.shift = shift_of(terms);
    const int64_t size = m.geo.rows * wo_ * cp_;
    Block<A> scratch(size * threads_);
    over_tiles(m.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
      kernels_.mix(m, lo, hi, chunk, scratch.data() + thread * size);
    });
  }

  // ---- backward ----

  void load_stats() {
    for (BankSite<A, T>& site : banks_)
      for (OpSite<A, T>& o : site.ops) {
        if (o.branch >= 0 && site.branches[o.branch].separable) {
          const Branch<A, T>& b = site.branches[o.branch];
          norms_.read(o.op->norm, c_, b.first.mean, b.first.rstd);
          norms_.read(o.op->norm + 1, c_, b.second.mean, b.second.rstd);
        } else if (o.y) {
          norms_.read(o.op->norm, c_, o.mean, o.rstd);
        }
      }
  }

  // The first chunk's [cp] become the sums of all chunks', and of a channel in all images' lanes.
  void join_sums(double* sums) const {
    join_chunks(sums, cp_, chunks_, cp_);
    for (int64_t c = 0; c < channels_ && channels_ < c_; ++c) {
      double sum = 0;
      over_images([&](int64_t at) { sum += sums[at + c]; });
      over_images([&](int64_t at) { sums[at + c] = sum; });
    }
  }

  double values() const { return double(n_ * (c_ / channels_) * ho_ * wo_); }  // that a batch norm averages over

  // Sums over a node's gradient: what alpha and every last batch norm of an edge need.
  void sum_terms(const BankSite<A, T>& site, OpSite<A, T>* begin, OpSite<A, T>* end, const View<T>& g) {
    std::vector<Term<A, T>> terms;
    Mix<A, T> m{};
    m.geo = geometry(ho_, wo_, 1, 0);
    m.node = g;
    m.chunk_g = doubles_.zeros(chunks_ * cp_);
    A* scale = arena_.take(cp_);
    for (OpSite<A, T>* o = begin; o != end; ++o) {
      o->sum = doubles_.zeros(chunks_ * cp_);
      o->sum_g = m.chunk_g;
      terms.push_back(term_of(site, *o, scale));
      terms.back().chunk_sum = o->sum;
    }
    m.terms = terms.data();
    m.count = terms.size();
    over_tiles(m.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t) { kernels_.term_sums(m, lo, hi, chunk); });
    join_sums(m.chunk_g);
    for (OpSite<A, T>* o = begin; o != end; ++o) join_sums(o->sum);
  }

  void set_coefficients(const Stage<A, T>& s, int64_t c, double weight, double sum_g, double sum_gy) const {
    fastdarts::set_coefficients(s, c, weight, sum_g, sum_gy, args_.training ? values() : 0);
  }

  void give_coefficients(Stage<A, T>& s) {
    s.from_g = arena_.zeros(cp_);
    s.from_y = arena_.zeros(cp_);
    s.offset = arena_.zeros(cp_);
  }

  void back_bank(BankSite<A, T>& site, const std::vector<View<T>>& g, const View<T>& before, const View<T>& dx, bool need_x,
                 bool need_params, at::Tensor& dweights, std::vector<at::Tensor>& dparams) {
    Bank<A, T>& bank = site.bank;
    bank.need_x = need_x;
    bank.need_params = need_params;
    bank.g_before = as_const(before);
    bank.dx = dx;
    bank.dx_channels = c_;

    int64_t grads_size = 0;
    std::vector<View<T>> skip_g;
    std::vector<A> skip_weight;
    for (const OpSite<A, T>& o : site.ops) {
      if (o.branch >= 0) {
        for (Stage<A, T>* s : {&site.branches[o.branch].first, &site.branches[o.branch].second}) {
          s->grad = grads_size;
          grads_size += s->y ? (s->k + s->kernel * s->kernel) * cp_ : 0;
        }
      } else if (!o.y) {
        skip_g.push_back(g[o.edge->node]);
        skip_weight.push_back(A(o.weight));
      }
    }
    bank.skip_g = skip_g.data();
    bank.skip_weight = skip_weight.data();
    bank.skips = skip_g.size();

    const int64_t plane = n_ * ho_ * wo_ * cp_, size = ScratchLayout(bank.geo).total();
    Block<A> dz(site.most_separables() * plane), dx_partial(need_x ? n_ * bank.geo.h * bank.geo.w * cp_ : 0);
    Block<A> scratch(size * threads_), grads(need_params ? grads_size * chunks_ : 0);
    clear_borders(bank.geo, scratch.data());
    bank.dx_partial = dx_partial.data();
    at::parallel_for(0, need_params ? chunks_ : 0, 1, [&](int64_t lo, int64_t hi) {
      std::fill(grads.data() + lo * grads_size, grads.data() + hi * grads_size, A(0));
    });

    site.over_edges([&](OpSite<A, T>* begin, OpSite<A, T>* end, const Edge& edge) {
      sum_terms(site, begin, end, g[edge.node]);
      A* row = pointer<A>(dweights) + begin->edge_index * dweights.size(1);
      for (const OpSite<A, T>* o = begin; o != end; ++o) {
        double sum = 0;
        for (int64_t c = 0; c < channels_; ++c) sum += o->sum[c] * (o->y ? double(o->rstd[c]) : 1);
        row[o->op->column] = A(sum);
      }
      if (!need_x && !need_params) return;

      A* next_dz = dz.data();
      for (const OpSite<A, T>* o = begin; o != end; ++o) {
        if (o->branch < 0) continue;
        Branch<A, T>& b = site.branches[o->branch];
        b.g = g[edge.node];
        Stage<A, T>& last = b.separable ? b.second : b.first;
        give_coefficients(last);
        for (int64_t c = 0; c < c_; ++c) set_coefficients(last, c, o->weight, o->sum_g[c], o->sum[c]);
        if (!b.separable) continue;
        b.dz = next_dz;
        next_dz += plane;
        b.chunk_dz = doubles_.zeros(chunks_ * cp_);
        b.chunk_dzy = doubles_.zeros(chunks_ * cp_);
      }
      if (site.separables() > 0)
        over_tiles(bank.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
          kernels_.second_backward(bank, lo, hi, chunk, scratch.data() + thread * size, grads.data() + chunk * grads_size);
        });
      if (bank.finishes) set_pools(site, g);
      for (Branch<A, T>* b = bank.branches; b != bank.branches + bank.count; ++b) {
        if (!b->separable) continue;
        give_coefficients(b->first);
        for (double* sums : {b->chunk_dz, b->chunk_dzy}) join_sums(sums);
        for (int64_t c = 0; c < c_; ++c) set_coefficients(b->first, c, 1, b->chunk_dz[c], b->chunk_dzy[c]);
      }
      over_tiles(bank.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
        kernels_.first_backward(bank, lo, hi, chunk, scratch.data() + thread * size, grads.data() + chunk * grads_size);
      });
    });
    if (need_params) collect_grads(site, grads.data(), grads_size, dparams);
  }

  void set_pools(BankSite<A, T>& site, const std::vector<View<T>>& g) {
    Pools<A, T>& pools = site.bank.pools;
    if (!pools.max_y && !pools.avg_y) return;
    std::vector<const Edge*> edges;
    for (const OpSite<A, T>& o : site.ops)
      if (std::find(edges.begin(), edges.end(), o.edge) == edges.end()) edges.push_back(o.edge);
    pool_g_.clear();
    for (const Edge* edge : edges) pool_g_.push_back(g[edge->node]);
    pools.edges = edges.size();
    pools.g = pool_g_.data();
    for (const Kind kind : {Kind::max_pool, Kind::avg_pool}) {
      A* from_g = arena_.zeros(pools.edges * cp_);
      A *mean = arena_.zeros(cp_), *from_y = arena_.zeros(cp_), *offset = arena_.zeros(cp_);
      for (const OpSite<A, T>& o : site.ops) {
        if (o.op->kind != kind) continue;
        const int64_t e = std::find(edges.begin(), edges.end(), o.edge) - edges.begin();
        for (int64_t c = 0; c < c_; ++c) {
          const double rstd = double(o.rstd[c]), scale = o.weight * rstd;
          mean[c] = o.mean[c];
          from_g[e * cp_ + c] += A(scale);  // an edge may hold the same pool twice
          if (!args_.training) continue;
          from_y[c] += A(-scale * rstd * rstd * o.sum[c] / values());
          offset[c] += A(-scale * o.sum_g[c] / values());
        }
      }
      const bool is_max = kind == Kind::max_pool;
      (is_max ? pools.max_from_g : pools.avg_from_g) = from_g;
      (is_max ? pools.max_mean_a : pools.avg_mean_a) = mean;
      (is_max ? pools.max_from_y : pools.avg_from_y) = from_y;
      (is_max ? pools.max_offset : pools.avg_offset) = offset;
    }
  }

  // Adds the chunks' weight gradients, in order, and brings the sums, which overwrite the first's, into the parameters' layouts.
  void collect_grads(const BankSite<A, T>& site, A* grads, int64_t size, std::vector<at::Tensor>& dparams) const {
    const auto sum = [&](int64_t first, int64_t step) {  // step: from a lane's number to the next one's
      A s = 0;
      over_images([&](int64_t at) { s += grads[first + at * step]; });
      return s;
    };
    const auto collect = [&](const Stage<A, T>& s, int64_t param) {
      A *depthwise = pointer<A>(dparams[param]), *pointwise = pointer<A>(dparams[param + 1]);
      const int64_t taps = s.kernel * s.kernel, half = channels_ / 2, diagonal = cp_ + 1, numbers = (s.k + taps) * cp_;
      join_chunks(grads + s.grad, numbers, chunks_, size);
      if (!s.kernel) {
        for (int64_t o = 0; o < channels_; ++o) {
          A* row = (o < half ? depthwise : pointwise) + o % half * channels_;
          for (int64_t i = 0; i < channels_; ++i) row[i] = sum(s.grad + (o / half * cp_ + i) * cp_ + o, diagonal);
        }
        return;
      }
      for (int64_t i = 0; i < channels_; ++i)
        for (int64_t o = 0; o < channels_; ++o) pointwise[o * channels_ + i] = sum(s.grad + i * cp_ + o, diagonal);
      for (int64_t c = 0; c < channels_; ++c)
        for (int64_t tap = 0; tap < taps; ++tap) depthwise[c * taps + tap] = sum(s.grad + (s.k + tap) * cp_ + c, 1);
    };
    at::parallel_for(0, site.ops.size(), 1, [&](int64_t lo, int64_t hi) {
      for (const OpSite<A, T>* o = &site.ops[lo]; o != &site.ops[lo] + (hi - lo); ++o) {
        if (o->branch < 0) continue;
        collect(site.branches[o->branch].first, o->op->param);
        if (site.branches[o->branch].separable) collect(site.branches[o->branch].second, o->op->param + 2);
      }
    });
  }

  const A* zero() {
    if (!zero_) zero_ = arena_.zeros(cp_);
    return zero_;
  }

  const Args& args_;
  const Plan& plan_;
  const Kernels<A, T>& kernels_;
  at::Tensor out_;
  Norms<A> norms_;
  int64_t n_, c_, cp_, ho_, wo_, threads_, chunks_;
  int64_t channels_;  // of one image; c_ / channels_ images stand side by side
  Arena<A> arena_;
  Arena<double> doubles_;
  std::vector<BankSite<A, T>> banks_;
  std::vector<View<T>> pool_g_;
  A* zero_ = nullptr;
};

// ---- operators -------------------------------------------------------------------------------------------------------

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

// What keeps the kernels inside the tensors; the callers' words for mistakes stand in fastdarts/ops.py.
Shape check(const Plan& plan, at::TensorList states, const at::Tensor& weights, at::TensorList params) {
  TORCH_CHECK_VALUE(int64_t(states.size()) == plan.inputs, "mixed_sum: plan has ", plan.inputs, " inputs; got ", states.size());
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
  TORCH_CHECK_VALUE(weights.dim() == 2 && weights.size(0) == int64_t(plan.edges.size()) && weights.size(1) >= (plan.groups > 1),
                    "mixed_sum: weights must be [edges, ops]; got ", weights.sizes());
  TORCH_CHECK_VALUE(int64_t(params.size()) == plan.params, "mixed_sum: plan needs ", plan.params, " parameters; got ",
                    params.size());
  for (const Edge& edge : plan.edges)
    for (const Op& op : edge.ops) {
      TORCH_CHECK_VALUE(op.column >= 0 && op.column < weights.size(1), "mixed_sum: no column ", op.column, " in weights");
      const int64_t c = shape.c, taps = op.kernel * op.kernel;
      const bool convolves = op.kind == Kind::sep_conv || op.kind == Kind::dil_conv;
      for (int64_t i = 0; convolves && i < (op.kind == Kind::sep_conv ? 4 : 2); ++i)
        TORCH_CHECK_VALUE(params[op.param + i].numel() == (i % 2 ? c * c : c * taps), "mixed_sum: parameter ", op.param + i,
                          " has ", params[op.param + i].numel(), " elements");
      if (op.kind == Kind::skip && edge.stride == 2)
        for (int64_t i = 0; i < 2; ++i)
          TORCH_CHECK_VALUE(c % 2 == 0 && params[op.param + i].numel() == c / 2 * c, "mixed_sum: parameter ", op.param + i,
                            " has ", params[op.param + i].numel(), " elements");
    }
  return shape;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> mixed_sum(at::TensorList states, const at::Tensor& weights, at::TensorList params,
                                                         const std::optional<at::Tensor>& running, at::IntArrayRef code,
                                                         double eps) {
  const Plan plan(code);
  const Shape shape = check(plan, states, weights, params);
  const at::ScalarType dtype = states[0].scalar_type(), compute = compute_type(dtype);
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
  const at::Tensor stats =
      running ? running->to(compute).clone(at::MemoryFormat::Contiguous) : at::empty({plan.norms, 2, shape.c}, states[0].options().dtype(compute));
  TORCH_CHECK_VALUE(stats.dim() == 3 && stats.size(0) == plan.norms && stats.size(2) == shape.c,
                    "mixed_sum: running must be [", plan.norms, ", 2, ", shape.c, "]; got ", stats.sizes());
  at::Tensor saved;
  const Args args{xs, ws, ps, plan, !running, eps, bypass ? &*bypass : nullptr};
  dispatch(dtype, [&](auto a, auto t) {
    using Sum = MixedSum<decltype(a), decltype(t)>;
    saved = empty_in_block({Sum::saved_size(plan, n, c, shape.ho, shape.wo)}, dtype);
    Sum(args, nodes, saved, stats).forward();
  });
  return {bypass ? out : unfold(nodes, plan.nodes, images), saved, stats};
}

std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>> mixed_sum_backward(
    const at::Tensor& grad_out, at::TensorList states, const at::Tensor& weights, at::TensorList params, const at::Tensor& out,
    const at::Tensor& saved, const at::Tensor& stats, at::IntArrayRef code, bool training, double eps, at::IntArrayRef need_states,
    bool need_params) {
  const Plan plan(code);
  const Shape shape = check(plan, states, weights, params);
  const at::ScalarType dtype = states[0].scalar_type(), compute = compute_type(dtype);
  TORCH_CHECK_VALUE(grad_out.sizes() == out.sizes() && int64_t(need_states.size()) == plan.inputs,
                    "mixed_sum_backward: grad_out must have the output's shape ", out.sizes(), "; got ", grad_out.sizes());
  const int64_t images = images_in_line(dtype, shape.n, shape.c), n = shape.n / images, c = shape.c * images;
  const bool reads_nodes = std::any_of(plan.edges.begin(), plan.edges.end(), [&](const Edge& e) { return e.source >= plan.inputs; });
  const auto wholes = all_channels_last(states), xs = all_folded(wholes, plan, images);
  const auto ps = in_compute_type(params, compute);
  const at::Tensor ws = weights.to(compute), out_whole = reads_nodes ? channels_last(out) : out;
  const at::Tensor nodes = reads_nodes ? fold(out_whole, plan.nodes, images, plan.groups) : out;
  const at::Tensor g = plan.groups > 1 ? channels_last(grad_out.to(dtype)) : fold(grad_out.to(dtype), plan.nodes, images);
  std::optional<Bypass> bypass;
  if (plan.groups > 1) bypass.emplace(plan, wholes, out_whole, ws, images);
  at::Tensor dweights = at::zeros_like(ws, at::MemoryFormat::Contiguous);
  std::vector<at::Tensor> dparams, dstates;
  std::vector<bool> need;
  for (const at::Tensor& p : ps) dparams.push_back(need_params ? at::empty_like(p) : at::empty({0}, p.options()));
  for (size_t i = 0; i < xs.size(); ++i) {
    need.push_back(need_states[i] != 0);
    dstates.push_back(need_states[i] ? empty_image_in_block(xs[i].sizes(), dtype) : at::empty({0}, xs[i].options()));
  }
  const Args args{xs, ws, ps, plan, training, eps, bypass ? &*bypass : nullptr};
  dispatch(dtype, [&](auto a, auto t) {
    using Sum = MixedSum<decltype(a), decltype(t)>;
    TORCH_CHECK_VALUE(saved.numel() == Sum::saved_size(plan, n, c, shape.ho, shape.wo), "mixed_sum_backward: saved");
    Sum(args, nodes, saved, stats).backward(g, need_params, need, dweights, dparams, dstates);
  });
  for (size_t i = 0; i < xs.size(); ++i)
    if (need[i] && !bypass) dstates[i] = unfold(dstates[i], 1, images);
  for (size_t i = 0; need_params && i < ps.size(); ++i) dparams[i] = dparams[i].to(params[i].scalar_type());
  return {dweights.to(weights.scalar_type()), dstates, dparams};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) {
  m.impl("mixed_sum", &mixed_sum);
  m.impl("mixed_sum_backward", &mixed_sum_backward);
}

}  // namespace fastdarts
