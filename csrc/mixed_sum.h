// The schedule of fastdarts::mixed_sum and its backward over a plan's states and edges; README.md tells how the passes follow
// each other.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <memory>
#include <vector>

#include "block_cache.h"
#include "bypass.h"
#include "plan.h"
#include "schedule.h"
#include "tile.h"
#include "weights.h"

namespace fastdarts {

// Edges of a state pass together while they have so few convolutions: the state is read once, and its gradient stays in the cache.
constexpr int64_t kBranchesAtOnce = 4;
constexpr int64_t kTileBytes = 192 << 10;  // of one tensor's tile: with the others of a pass it stays in a 1 MiB L2

struct Args {
  at::TensorList states;  // folded (fold.h), as out and all gradients of images
  const at::Tensor& weights;
  at::TensorList params;
  const Plan& plan;
  const at::Tensor& affine;   // [norms, 2, channels], or undefined
  const at::Tensor& factors;  // [edges, images], or undefined
  bool training;
  double eps;
  bool recompute;  // whether the backward runs separable convolutions again, of which nothing is saved
  Bypass* bypass;  // of partial channels: then the tensors here hold the ops' channels alone, those of nodes in slots; or null
};

// Which gradients a backward makes, and where they go: undefined tensors, or empty ones, where none is needed.
struct Gradients {
  bool need_weights, need_params;
  std::vector<bool> need_states;
  at::Tensor weights;
  std::vector<at::Tensor> params, states;
  at::Tensor affine;
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
  Norm<A> norm{};                    // the last; of a pool without norm one that changes nothing
  double* sum = nullptr;             // backward: [chunks, cp] sums of g * (y - mean)
  double* sum_g = nullptr;           // backward: [chunks, cp] sums of g, one array an edge; of both, g times the edge's factors
};

template <class A, class T>
struct BankSite {  // a bank and where its things come from; ops and branches stand edge by edge
  Bank<A, T> bank{};
  int64_t source, stride;
  std::vector<Branch<A, T>> branches;
  std::vector<OpSite<A, T>> ops;
  std::vector<std::unique_ptr<Block<T>>> unsaved;  // forward: y of branches that do not save it, until their nodes are made

  // visit(first op, one past the last) for each group of edges that pass together, with the bank set to its branches.
  template <class F>
  void over_groups(const F& visit) {
    bank.branches = branches.data();
    for (size_t lo = 0, hi; lo < ops.size(); lo = hi, bank.branches += bank.count) {
      bank.count = 0;
      for (hi = lo; hi < ops.size();) {
        const size_t end = end_of_edge(hi);
        const int64_t more = std::count_if(&ops[hi], &ops[hi] + (end - hi), [](const auto& o) { return o.branch >= 0; });
        if (hi > lo && bank.count + more > kBranchesAtOnce) break;
        bank.count += more;
        hi = end;
      }
      bank.starts = lo == 0;
      bank.finishes = hi == ops.size();
      visit(&ops[lo], &ops[lo] + (hi - lo));
    }
  }

  size_t end_of_edge(size_t op) const {
    size_t end = op;
    while (end < ops.size() && ops[end].edge == ops[op].edge) ++end;
    return end;
  }

  int64_t separables() const {  // of the group that is visited
    return std::count_if(bank.branches, bank.branches + bank.count, [](const auto& b) { return b.separable; });
  }

  int64_t most_separables() {
    int64_t most = 0;
    over_groups([&](OpSite<A, T>*, OpSite<A, T>*) { most = std::max(most, separables()); });
    return most;
  }

  bool has_one_group() {
    int64_t groups = 0;
    over_groups([&](OpSite<A, T>*, OpSite<A, T>*) { ++groups; });
    return groups == 1;
  }
};

template <class A, class T>
class MixedSum {
 public:
  MixedSum(const Args& args, const at::Tensor& out, const at::Tensor& saved, const at::Tensor& stats)
      : args_(args), plan_(args.plan), kernels_(kernels<A, T>()), out_(out), norms_(stats, args.affine, args.eps) {
    const at::Tensor& x = args.states[0];
    n_ = x.size(0);
    c_ = x.size(1);
    cp_ = padded_channels<A>(c_);
    lanes_ = {stats.size(2), c_, cp_};
    ho_ = out.size(2);
    wo_ = out.size(3);
    threads_ = at::get_num_threads();
    chunks_ = threads_ * kChunksOfThread;
    factors_.resize(plan_.edges.size(), nullptr);
    make_banks(pointer<T>(saved));
  }

  // Elements of T that `saved` must hold.
  static int64_t saved_size(const Plan& plan, bool recompute, int64_t n, int64_t c, int64_t ho, int64_t wo) {
    int64_t tensors = 0;
    std::vector<std::vector<int64_t>> pools;
    for (const Edge& edge : plan.edges)
      for (const Op& op : edge.ops) {
        if (op.is_pool()) {
          const std::vector<int64_t> key{edge.source, edge.stride, int64_t(op.kind)};
          if (std::find(pools.begin(), pools.end(), key) != pools.end()) continue;
          pools.push_back(key);
          ++tensors;
        } else {
          tensors += op.kind == Kind::sep_conv && recompute ? 0 : op.norms;
        }
      }
    return checked_product("mixed_sum: saved", {tensors, n, ho, wo, padded_channels<A>(c)});
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

  void backward(const at::Tensor& grad_out, Gradients& to) {
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
        const bool need_x = state >= plan_.inputs || to.need_states[state];
        View<T> dx{};
        if (state >= plan_.inputs && args_.bypass) {
          dx = g[state];
        } else if (state >= plan_.inputs) {
          at::Tensor& t = node_grads[state - plan_.inputs];
          t = empty_in_block({n_, ho_, wo_, c_}, kDtype<T>);
          dx = {pointer<T>(t), t.stride(0), t.stride(1), t.stride(2)};
        } else if (need_x) {
          dx = view_of<T>(to.states[state]);
        }
        const View<T> before = has_g[state] ? g[state] : View<T>{};
        back_bank(site, g, before, dx, need_x, to);
        g[state] = dx;
        has_g[state] = true;
      }
      if (args_.bypass && state >= plan_.inputs)
        args_.bypass->part_node(state, grad_out, nodes, has_g[state]);
      else if (args_.bypass)
        to.states[state] = args_.bypass->part_input(state, to.states[state], has_g[state], to.need_states[state]);
      else if (!has_g[state] && to.need_states[state])
        to.states[state].zero_();
    }
    if (args_.bypass) args_.bypass->give_factors(to.weights);
  }

 private:
  // ---- setting up ----

  double weight_of(int64_t edge, int64_t column) const {
    const A* row = pointer<A>(args_.weights) + edge * args_.weights.stride(0);
    return double(row[column * args_.weights.stride(1)]);
  }

  // An edge's factors, [n, cp]: an image's in all its lanes; null where there are none.
  const A* factors_of(int64_t edge) {
    if (!args_.factors.defined() || factors_[edge]) return factors_[edge];
    A* factors = arena_.zeros(n_ * cp_);
    const A* from = pointer<A>(args_.factors) + edge * args_.factors.size(1);
    for (int64_t image = 0; image < n_; ++image)
      for (int64_t c = 0; c < c_; ++c) factors[image * cp_ + c] = from[(image * c_ + c) / lanes_.channels];
    return factors_[edge] = factors;
  }

  // `saved`: where the stage's y goes, moved on; or null where it is made in a block.
  Stage<A, T> stage_of(const Op& op, int64_t stride, T** saved) {
    const bool gathers = op.kind == Kind::skip || op.kind == Kind::pointwise;
    Stage<A, T> s{};
    s.kernel = gathers ? 0 : op.kernel;
    s.dilation = op.dilation;
    s.stride = stride;
    s.pad = gathers ? 0 : op.dilation * (op.kernel - 1) / 2;
    s.k = op.kind == Kind::skip ? 2 * cp_ : cp_;
    s.used_k = s.k - cp_ + c_;
    s.used_c = c_;
    if (saved) {
      s.y = *saved;
      *saved += n_ * ho_ * wo_ * cp_;
    }
    s.norm = make_norm(arena_, cp_);
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
        if (op.params > 0) {
          Branch<A, T> b{};
          b.separable = op.kind == Kind::sep_conv;
          b.factors = factors_of(e);
          T** const y = b.separable && args_.recompute ? nullptr : &saved;
          b.first = stage_of(op, edge.stride, y);
          if (b.separable) b.second = stage_of(op, 1, y);
          const Stage<A, T>& last = b.separable ? b.second : b.first;
          o.branch = site->branches.size();
          o.y = last.y;
          o.norm = last.norm;
          site->branches.push_back(b);
        } else if (op.is_pool()) {
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
          o.norm = make_norm(arena_, cp_);
          if (!op.norms) std::fill(o.norm.scale, o.norm.scale + cp_, A(1));
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

  // Weights in the layouts the kernels read.
  void pack(bool for_backward) {
    std::vector<std::pair<BankSite<A, T>*, OpSite<A, T>*>> work;
    for (BankSite<A, T>& site : banks_)
      for (OpSite<A, T>& o : site.ops)
        if (o.branch >= 0) work.emplace_back(&site, &o);
    for (auto& [site, o] : work) {
      Branch<A, T>& b = site->branches[o->branch];
      for (Stage<A, T>* s : {&b.first, &b.second}) {
        if (s->k == 0) continue;
        const bool runs_forward = !for_backward || (b.separable && args_.recompute);
        s->dw = arena_.take(s->kernel * s->kernel * cp_);
        s->pw = runs_forward ? arena_.take(s->k * cp_) : nullptr;
        s->dw_flipped = for_backward ? arena_.take(s->kernel * s->kernel * cp_) : nullptr;
        s->pw_t = for_backward ? arena_.take(s->k * cp_) : nullptr;
        if (!kernels_.pairs) continue;
        if (runs_forward) s->pw_pairs = reinterpret_cast<uint32_t*>(arena_.take(s->k * cp_ / 2));
        if (for_backward) s->pw_t_pairs = reinterpret_cast<uint32_t*>(arena_.take(s->k * cp_ / 2));
      }
    }
    at::parallel_for(0, work.size(), 4, [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi; ++i) {
        Branch<A, T>& b = work[i].first->branches[work[i].second->branch];
        const Op& op = *work[i].second->op;
        if (op.kind == Kind::skip) {
          pack_reduction(lanes_, b.first, args_.params[op.param], args_.params[op.param + 1]);
        } else {
          if (b.first.kernel) pack_depthwise(lanes_, b.first, args_.params[op.param]);
          pack_pointwise(lanes_, b.first, args_.params[op.param + (b.first.kernel ? 1 : 0)]);
        }
        if (b.separable) {
          pack_depthwise(lanes_, b.second, args_.params[op.param + 2]);
          pack_pointwise(lanes_, b.second, args_.params[op.param + 3]);
        }
        for (const Stage<A, T>* s : {&b.first, &b.second}) {
          if (s->pw_pairs) pack_pairs(s->pw, s->k, cp_, const_cast<uint32_t*>(s->pw_pairs));
          if (s->pw_t_pairs) pack_pairs(s->pw_t, cp_, s->k, const_cast<uint32_t*>(s->pw_t_pairs));
        }
      }
    });
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

  void finish_norm(const Geometry& geo, int64_t norm, const double* chunk_mean, const double* chunk_m2, const Norm<A>& to) const {
    if (args_.training) norms_.join(geo, chunks_, cp_, norm, chunk_mean, chunk_m2);
    norms_.read(norm, c_, to);
  }

  // A tensor for each of the separable convolutions that pass together: blocks of one size, which serve again.
  std::deque<Block<T>> make_planes(BankSite<A, T>& site) const {
    std::deque<Block<T>> planes;
    for (int64_t most = site.most_separables(); int64_t(planes.size()) < most;) planes.emplace_back(n_ * ho_ * wo_ * cp_);
    return planes;
  }

  void run_bank(BankSite<A, T>& site) {
    const Bank<A, T>& bank = site.bank;
    const int64_t size = ScratchLayout(bank.geo).total();
    Block<A> scratch(size * threads_);
    clear_borders(bank.geo, scratch.data());
    const std::deque<Block<T>> planes = make_planes(site);
    site.unsaved.resize(site.branches.size());
    site.over_groups([&](OpSite<A, T>* begin, OpSite<A, T>* end) {
      auto plane = planes.begin();
      for (OpSite<A, T>* o = begin; o != end; ++o) {
        if (o->branch < 0 || !site.branches[o->branch].separable) continue;
        Branch<A, T>& b = site.branches[o->branch];
        (args_.recompute ? b.first.y : b.first.soon) = plane++->data();
        if (!args_.recompute) continue;
        site.unsaved[o->branch] = std::make_unique<Block<T>>(n_ * ho_ * wo_ * cp_);
        o->y = b.second.y = site.unsaved[o->branch]->data();
      }
      over_tiles(bank.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
        kernels_.first_forward(bank, lo, hi, chunk, scratch.data() + thread * size);
      });
      for (Branch<A, T>* b = bank.branches; b != bank.branches + bank.count; ++b)
        if (b->separable) b->first.soon = args_.recompute ? b->first.y : b->first.soon;
      for (OpSite<A, T>* o = begin; o != end; ++o)
        if (o->branch >= 0) {
          const Stage<A, T>& first = site.branches[o->branch].first;
          finish_norm(bank.geo, o->op->norm, first.chunk_mean, first.chunk_m2, first.norm);
        } else if (o->op->is_pool() && o->op->norms) {
          const bool is_max = o->op->kind == Kind::max_pool;
          finish_norm(bank.geo, o->op->norm, is_max ? bank.pools.max_mean : bank.pools.avg_mean,
                      is_max ? bank.pools.max_m2 : bank.pools.avg_m2, o->norm);
        }
      if (site.separables() == 0) return;
      over_tiles(bank.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
        kernels_.second_forward(bank, lo, hi, chunk, scratch.data() + thread * size);
      });
      for (OpSite<A, T>* o = begin; o != end; ++o)
        if (o->branch >= 0 && site.branches[o->branch].separable) {
          const Stage<A, T>& s = site.branches[o->branch].second;
          finish_norm(bank.geo, o->op->norm + 1, s.chunk_mean, s.chunk_m2, s.norm);
        }
    });
  }

  // The tensor of an op that enters its node, with its scale.
  Term<A, T> term_of(const BankSite<A, T>& site, const OpSite<A, T>& o, A* scale) {
    if (!o.y) {
      std::fill(scale, scale + cp_, A(o.weight));
      return {site.bank.x, c_, scale, zero(), factors_of(o.edge_index), nullptr};
    }
    for (int64_t c = 0; c < cp_; ++c) scale[c] = A(o.weight * double(o.norm.scale[c]));
    return {{o.y, ho_ * wo_ * cp_, wo_ * cp_, cp_}, cp_, scale, o.norm.mean, factors_of(o.edge_index), nullptr};
  }

  // What a node is beside its terms' sum of scale * (t - mean): the batch norms' shifts. An array for each image where edges have
  // factors.
  void set_shift(Mix<A, T>& m, const std::vector<const OpSite<A, T>*>& ops) {
    const bool alike = !args_.factors.defined();
    A* shift = arena_.zeros(alike ? cp_ : n_ * cp_);
    std::vector<double> sums(cp_);
    for (int64_t image = 0; image < (alike ? 1 : n_); ++image) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t t = 0; t < m.count; ++t) {
        if (!ops[t]->y) continue;
        const A* factors = m.terms[t].factors;
        for (int64_t c = 0; c < c_; ++c) {
          const double own = ops[t]->weight * double(ops[t]->norm.shift[c]);
          sums[c] += factors ? double(factors[image * cp_ + c]) * own : own;
        }
      }
      std::copy(sums.begin(), sums.end(), shift + image * cp_);
    }
    m.shift = shift;
    m.shift_step = alike ? 0 : cp_;
  }

  void make_node(int64_t state) {
    std::vector<Term<A, T>> terms;
    std::vector<const OpSite<A, T>*> ops;
    for (BankSite<A, T>& site : banks_)
      for (const OpSite<A, T>& o : site.ops) {
        if (o.edge->node != state) continue;
        terms.push_back(term_of(site, o, arena_.take(cp_)));
        ops.push_back(&o);
      }
    const int64_t first_channel = (state - plan_.inputs) * c_;
    if (terms.empty()) {
      out_.narrow(1, first_channel, c_).zero_();
      return;
    }
    Mix<A, T> m{};
    m.geo = geometry(ho_, wo_, 1, 0);
    m.terms = terms.data();
    m.count = terms.size();
    m.node = view_of<T>(out_, first_channel);
    set_shift(m, ops);
    const int64_t size = m.geo.rows * wo_ * cp_;
    Block<A> scratch(size * threads_);
    over_tiles(m.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
      kernels_.mix(m, lo, hi, chunk, scratch.data() + thread * size);
    });
    for (BankSite<A, T>& site : banks_)
      for (const OpSite<A, T>& o : site.ops)
        if (o.edge->node == state && o.branch >= 0) site.unsaved[o.branch].reset();
  }

  // ---- backward ----

  void load_stats() {
    for (BankSite<A, T>& site : banks_)
      for (OpSite<A, T>& o : site.ops) {
        if (o.branch >= 0 && site.branches[o.branch].separable) {
          const Branch<A, T>& b = site.branches[o.branch];
          norms_.read(o.op->norm, c_, b.first.norm);
          norms_.read(o.op->norm + 1, c_, b.second.norm);
        } else if (o.op->norms) {
          norms_.read(o.op->norm, c_, o.norm);
        }
      }
  }

  // The first chunk's [cp] become the sums of all chunks', and of a channel in all images' lanes.
  void join_sums(double* sums) const {
    join_chunks(sums, cp_, chunks_, cp_);
    for (int64_t c = 0; c < lanes_.channels && lanes_.channels < c_; ++c) {
      double sum = 0;
      lanes_.over_images([&](int64_t at) { sum += sums[at + c]; });
      lanes_.over_images([&](int64_t at) { sums[at + c] = sum; });
    }
  }

  double values() const { return double(n_ * (c_ / lanes_.channels) * ho_ * wo_); }  // that a batch norm averages over

  // Sums over a node's gradient: what the op weights of an edge, if needed, and all its last batch norms need.
  void sum_terms(const BankSite<A, T>& site, OpSite<A, T>* begin, OpSite<A, T>* end, const View<T>& g, bool need_weights) {
    std::vector<OpSite<A, T>*> ops;
    for (OpSite<A, T>* o = begin; o != end; ++o)
      if (need_weights || o->op->norms) ops.push_back(o);
    if (ops.empty()) return;
    std::vector<Term<A, T>> terms;
    Mix<A, T> m{};
    m.geo = geometry(ho_, wo_, 1, 0);
    m.node = g;
    m.chunk_g = doubles_.zeros(chunks_ * cp_);
    A* scale = arena_.take(cp_);
    for (OpSite<A, T>* o : ops) {
      o->sum = doubles_.zeros(chunks_ * cp_);
      o->sum_g = m.chunk_g;
      terms.push_back(term_of(site, *o, scale));
      terms.back().chunk_sum = o->sum;
    }
    m.terms = terms.data();
    m.count = terms.size();
    over_tiles(m.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t) { kernels_.term_sums(m, lo, hi, chunk); });
    join_sums(m.chunk_g);
    for (const OpSite<A, T>* o : ops) join_sums(o->sum);
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
                 Gradients& to) {
    Bank<A, T>& bank = site.bank;
    const bool need_params = to.need_params;
    bank.need_x = need_x;
    bank.need_params = need_params;
    bank.g_before = as_const(before);
    bank.dx = dx;
    bank.dx_channels = c_;

    int64_t grads_size = 0;
    std::vector<View<T>> skip_g;
    std::vector<A> skip_weight;
    std::vector<const A*> skip_factors;
    for (const OpSite<A, T>& o : site.ops) {
      if (o.branch >= 0) {
        for (Stage<A, T>* s : {&site.branches[o.branch].first, &site.branches[o.branch].second}) {
          s->grad = grads_size;
          grads_size += (s->k + s->kernel * s->kernel) * cp_;
        }
      } else if (!o.y) {
        skip_g.push_back(g[o.edge->node]);
        skip_weight.push_back(A(o.weight));
        skip_factors.push_back(factors_of(o.edge_index));
      }
    }
    bank.skip_g = skip_g.data();
    bank.skip_weight = skip_weight.data();
    bank.skip_factors = skip_factors.data();
    bank.skips = skip_g.size();

    const int64_t size = ScratchLayout(bank.geo).total();
    std::deque<Block<T>> firsts, seconds;
    if (args_.recompute) {
      firsts = make_planes(site);
      seconds = make_planes(site);
    }
    const std::deque<Block<T>> dz = make_planes(site);
    Block<A> dx_partial(need_x && !site.has_one_group() ? n_ * bank.geo.h * bank.geo.w * cp_ : 0);
    Block<A> scratch(size * threads_), grads(need_params ? grads_size * chunks_ : 0);
    clear_borders(bank.geo, scratch.data());
    bank.dx_partial = dx_partial.data();
    at::parallel_for(0, need_params ? chunks_ : 0, 1, [&](int64_t lo, int64_t hi) {
      std::fill(grads.data() + lo * grads_size, grads.data() + hi * grads_size, A(0));
    });

    site.over_groups([&](OpSite<A, T>* begin, OpSite<A, T>* end) {
      if (args_.recompute) make_again(site, begin, end, firsts, seconds, scratch.data());
      for (OpSite<A, T>*o = begin, *next; o != end; o = next) {
        for (next = o; next != end && next->edge == o->edge;) ++next;
        sum_terms(site, o, next, g[o->edge->node], to.need_weights);
      }
      for (const OpSite<A, T>* o = begin; o != end; ++o) {
        if (to.need_weights) pointer<A>(to.weights)[o->edge_index * to.weights.size(1) + o->op->column] = A(sum_of(*o));
        if (o->op->norms) norms_.give(to.affine, o->op->norm + o->op->norms - 1, o->norm, o->weight, o->sum_g, o->sum);
      }
      if (!need_x && !need_params) return;

      auto next_dz = dz.begin();
      for (const OpSite<A, T>* o = begin; o != end; ++o) {
        if (o->branch < 0) continue;
        Branch<A, T>& b = site.branches[o->branch];
        b.g = g[o->edge->node];
        Stage<A, T>& last = b.separable ? b.second : b.first;
        give_coefficients(last);
        for (int64_t c = 0; c < c_; ++c) set_coefficients(last, c, o->weight, o->sum_g[c], o->sum[c]);
        if (!b.separable) continue;
        b.dz = next_dz++->data();
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
      for (const OpSite<A, T>* o = begin; o != end; ++o) {
        if (o->branch < 0 || !site.branches[o->branch].separable) continue;
        const Branch<A, T>& b = site.branches[o->branch];
        norms_.give(to.affine, o->op->norm, b.first.norm, 1, b.chunk_dz, b.chunk_dzy);
      }
      over_tiles(bank.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
        kernels_.first_backward(bank, lo, hi, chunk, scratch.data() + thread * size, grads.data() + chunk * grads_size);
      });
    });
    if (need_params) collect_grads(site, grads.data(), grads_size, to.params);
  }

  // y of both stages of a group's separable convolutions, which was not saved. The moments that come along are not read.
  void make_again(BankSite<A, T>& site, OpSite<A, T>* begin, OpSite<A, T>* end, const std::deque<Block<T>>& firsts,
                  const std::deque<Block<T>>& seconds, A* scratch) const {
    std::vector<Branch<A, T>> separable;
    for (OpSite<A, T>* o = begin; o != end; ++o) {
      if (o->branch < 0 || !site.branches[o->branch].separable) continue;
      Branch<A, T>& b = site.branches[o->branch];
      b.first.y = firsts[separable.size()].data();
      o->y = b.second.y = seconds[separable.size()].data();
      separable.push_back(b);
    }
    if (separable.empty()) return;
    Bank<A, T> part = site.bank;
    part.branches = separable.data();
    part.count = separable.size();
    part.pools = {};
    const int64_t size = ScratchLayout(part.geo).total();
    over_tiles(part.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
      kernels_.first_forward(part, lo, hi, chunk, scratch + thread * size);
    });
    for (Branch<A, T>& b : separable) b.first.soon = b.first.y;
    over_tiles(part.geo, [&](int64_t lo, int64_t hi, int64_t chunk, int64_t thread) {
      kernels_.second_forward(part, lo, hi, chunk, scratch + thread * size);
    });
  }

  // The gradient of an op's weight: the sum of g times what the op puts out.
  double sum_of(const OpSite<A, T>& o) const {
    double sum = 0;
    for (int64_t c = 0; c < lanes_.channels; ++c)
      sum += o.y ? o.sum[c] * double(o.norm.scale[c]) + o.sum_g[c] * double(o.norm.shift[c]) : o.sum[c];
    return sum;
  }

  void set_pools(BankSite<A, T>& site, const std::vector<View<T>>& g) {
    Pools<A, T>& pools = site.bank.pools;
    if (!pools.max_y && !pools.avg_y) return;
    std::vector<const Edge*> edges;
    for (const OpSite<A, T>& o : site.ops)
      if (std::find(edges.begin(), edges.end(), o.edge) == edges.end()) edges.push_back(o.edge);
    pool_g_.clear();
    pool_factors_.clear();
    for (const Edge* edge : edges) {
      pool_g_.push_back(g[edge->node]);
      pool_factors_.push_back(factors_of(edge - plan_.edges.data()));
    }
    pools.edges = edges.size();
    pools.g = pool_g_.data();
    pools.factors = pool_factors_.data();
    for (const Kind kind : {Kind::max_pool, Kind::avg_pool}) {
      A* from_g = arena_.zeros(pools.edges * cp_);
      A *mean = arena_.zeros(cp_), *from_y = arena_.zeros(cp_), *offset = arena_.zeros(cp_);
      for (const OpSite<A, T>& o : site.ops) {
        if (o.op->kind != kind) continue;
        const int64_t e = std::find(edges.begin(), edges.end(), o.edge) - edges.begin();
        for (int64_t c = 0; c < c_; ++c) {
          const double rstd = double(o.norm.rstd[c]), scale = o.weight * double(o.norm.scale[c]);
          from_g[e * cp_ + c] += A(scale);  // an edge may hold the same pool twice
          if (!o.op->norms) continue;
          mean[c] = o.norm.mean[c];
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
    const auto collect = [&](const Stage<A, T>& s, int64_t param) {
      join_chunks(grads + s.grad, (s.k + s.kernel * s.kernel) * cp_, chunks_, size);
      collect_stage(lanes_, s, grads + s.grad, &dparams[param]);
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
  Lanes lanes_;
  Arena<A> arena_;
  Arena<double> doubles_;
  std::vector<BankSite<A, T>> banks_;
  std::vector<const A*> factors_;  // see factors_of
  std::vector<View<T>> pool_g_;
  std::vector<const A*> pool_factors_;
  A* zero_ = nullptr;
};

}  // namespace fastdarts
