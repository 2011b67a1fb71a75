// Cells in eval mode on CPUs: fastdarts::pack_eval_cell folds a cell's batch norms into its weights, fastdarts::eval_cell computes
// the cell from these, fastdarts::checksum tells whether weights have changed since. Schemas and fakes stand in
// fastdarts/ops/eval_cell.py, the arithmetic in tiles/eval.h.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "block_cache.h"
#include "eval.h"
#include "plan.h"
#include "schedule.h"

namespace fastdarts {
namespace {

// Pieces of whole cache lines in one block of numbers, or, without a block, the size that it must have.
template <class A>
class Pieces {
 public:
  explicit Pieces(A* block) : block_(block) {}
  A* take(int64_t count) {
    A* piece = block_ ? block_ + used_ : nullptr;
    used_ += padded_channels<A>(count);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  A* block_;
  int64_t used_ = 0;
};

// A cell: its ops with the places of their weights in a block. Its states are numbered as the plan's.
template <class A, class T>
struct EvalCell {
  const Plan& plan;
  int64_t c, cp;
  std::vector<EvalInput<A, T>> inputs;
  std::vector<EvalOp<A>> ops;   // in the order of the plan's
  std::vector<const A*> biases;  // of nodes: the sums of all their ops'
  int64_t numbers;

  EvalCell(const Plan& p, at::IntArrayRef channels, at::IntArrayRef parts, int64_t size, A* block)
      : plan(p), c(size), cp(padded_channels<A>(size)) {
    Pieces<A> pieces(block);
    for (int64_t i = 0; i < plan.inputs; ++i) {
      EvalInput<A, T> in{};
      in.channels = channels[i];
      in.stride = parts[i];
      in.pw = pieces.take(checked_product("eval_cell: weights", {in.stride, in.channels, cp}));
      in.bias = pieces.take(cp);
      inputs.push_back(in);
    }
    for (int64_t node = 0; node < plan.nodes; ++node) biases.push_back(pieces.take(cp));
    const auto stage = [&](const Op& op, int64_t stride) {
      const bool gathers = op.kind == Kind::skip || op.kind == Kind::pointwise;
      EvalStage<A> s{};
      s.kernel = gathers ? 0 : op.kernel;
      s.dilation = op.dilation;
      s.stride = stride;
      s.pad = gathers ? 0 : op.dilation * (op.kernel - 1) / 2;
      s.parts = op.kind == Kind::skip ? 2 : 1;
      s.dw = pieces.take(s.kernel * s.kernel * cp);
      s.pw = pieces.take(checked_product("eval_cell: weights", {s.parts, c, cp}));
      return s;
    };
    for (const Edge& edge : plan.edges)
      for (const Op& op : edge.ops) {
        EvalOp<A> o{EvalKind::convolution, edge.source, edge.node, edge.stride, op.kind == Kind::sep_conv, {}, {}, nullptr};
        if (op.is_pool()) {
          o.kind = op.kind == Kind::max_pool ? EvalKind::max_pool : EvalKind::avg_pool;
          o.scale = pieces.take(cp);
        } else if (op.params == 0) {
          o.kind = EvalKind::skip;
        } else {
          o.first = stage(op, edge.stride);
          if (o.separable) {
            o.first.bias = pieces.take(cp);
            o.second = stage(op, 1);
          }
        }
        ops.push_back(o);
      }
    numbers = pieces.used();
  }
};

// ---- packing ----

// The scales and shifts that the batch norms of a cell amount to.
template <class A>
class Folded {
 public:
  // running: [norms, 2 (mean, variance), c], affine: [norms, 2 (weight, bias), c] or undefined; both dense, of type A.
  Folded(const at::Tensor& running, const at::Tensor& affine, double eps)
      : running_(pointer<A>(running)), affine_(affine.defined() ? pointer<A>(affine) : nullptr), c_(running.size(2)), eps_(eps) {}

  double scale(int64_t norm, int64_t c) const {
    const int64_t first = 2 * norm * c_ + c;
    return (affine_ ? double(affine_[first]) : 1) / std::sqrt(double(running_[first + c_]) + eps_);
  }
  double shift(int64_t norm, int64_t c) const {
    const int64_t first = 2 * norm * c_ + c;
    return (affine_ ? double(affine_[first + c_]) : 0) - double(running_[first]) * scale(norm, c);
  }

 private:
  const A *running_, *affine_;
  int64_t c_;
  double eps_;
};

template <class A>
class Packing {
 public:
  Packing(const Folded<A>& folded, int64_t c, int64_t cp) : folded_(folded), c_(c), cp_(cp) {}

  void depthwise(const EvalStage<A>& s, const at::Tensor& weight) const {
    const A* from = pointer<A>(weight);
    A* to = const_cast<A*>(s.dw);
    const int64_t taps = s.kernel * s.kernel;
    for (int64_t c = 0; c < c_; ++c)
      for (int64_t tap = 0; tap < taps; ++tap) to[tap * cp_ + c] = from[c * taps + tap];
  }

  // Outputs [first, first + count) of a product [channels, cp] from `weight` [count, channels], times the norm's scale.
  void pointwise(const A* pw, const at::Tensor& weight, int64_t channels, int64_t first, int64_t count, int64_t norm) const {
    const A* from = pointer<A>(weight);
    for (int64_t o = 0; o < count; ++o) {
      const double scale = folded_.scale(norm, first + o);
      A* to = const_cast<A*>(pw) + first + o;
      for (int64_t i = 0; i < channels; ++i) to[i * cp_] = A(scale * double(from[o * channels + i]));
    }
  }

  // One weight, or the two halves of a factorised reduction.
  void product(const A* pw, const at::Tensor* weights, int64_t parts, int64_t channels, int64_t norm) const {
    for (int64_t part = 0; part < parts; ++part)
      pointwise(pw + part * channels * cp_, weights[part], channels, part * c_ / parts, c_ / parts, norm);
  }

  void add_shift(const A* bias, int64_t norm) const {
    for (int64_t c = 0; c < c_; ++c) const_cast<A*>(bias)[c] += A(folded_.shift(norm, c));
  }

  void scale(const A* to, int64_t norm, bool is_one) const {
    for (int64_t c = 0; c < c_; ++c) const_cast<A*>(to)[c] = is_one ? A(1) : A(folded_.scale(norm, c));
  }

 private:
  const Folded<A>& folded_;
  int64_t c_, cp_;
};

template <class A, class T>
void pack(const EvalCell<A, T>& cell, const Folded<A>& folded, const std::vector<at::Tensor>& projections,
          const std::vector<at::Tensor>& params) {
  const Packing<A> packing(folded, cell.c, cell.cp);
  const at::Tensor* projection = projections.data();
  for (int64_t i = 0; i < cell.plan.inputs; ++i) {
    const EvalInput<A, T>& in = cell.inputs[i];
    packing.product(in.pw, projection, in.stride, in.channels, i);
    packing.add_shift(in.bias, i);
    projection += in.stride;
  }
  const EvalOp<A>* o = cell.ops.data();
  for (const Edge& edge : cell.plan.edges)
    for (const Op& op : edge.ops) {
      const A* bias = cell.biases[edge.node - cell.plan.inputs];
      int64_t norm = cell.plan.inputs + op.norm;
      const at::Tensor* weights = params.data() + op.param;
      if (op.is_pool()) packing.scale(o->scale, norm, op.norms == 0);
      if (op.params > 0 && o->first.kernel) packing.depthwise(o->first, *weights++);
      if (op.params > 0) packing.product(o->first.pw, weights, o->first.parts, cell.c, norm);
      if (o->separable) {
        packing.add_shift(o->first.bias, norm++);
        packing.depthwise(o->second, *++weights);
        packing.product(o->second.pw, ++weights, 1, cell.c, norm);
      }
      if (op.norms > 0) packing.add_shift(bias, norm);
      ++o;
    }
}

// ---- computing ----

constexpr size_t kCached = 4 << 20;  // bytes of a cell's output that the caches may still hold when the next cell reads it

template <class A, class T>
class EvalRun {
 public:
  EvalRun(EvalCell<A, T>& cell, at::TensorList xs, const at::Tensor& out, at::IntArrayRef concat)
      : cell_(cell), kernels_(eval_kernels<A, T>()), out_(out), concat_(concat), threads_(at::get_num_threads()) {
    n_ = xs[0].size(0);
    ho_ = out.size(2);
    wo_ = out.size(3);
    for (int64_t i = 0; i < cell.plan.inputs; ++i) {
      EvalInput<A, T>& in = cell.inputs[i];
      in.x = view_of<const T>(xs[i]);
      in.h = xs[i].size(2);
      in.w = xs[i].size(3);
      states_.push_back({ceil_div(in.h, in.stride), ceil_div(in.w, in.stride), 0, cell.c, cell.cp, nullptr, nullptr});
    }
    for (int64_t node = 0; node < cell.plan.nodes; ++node) states_.push_back({ho_, wo_, 0, cell.c, cell.cp, nullptr, nullptr});
    ready_.resize(states_.size(), 0);
    for (const EvalOp<A>& op : cell.ops) {
      EvalState<A>& source = states_[op.source];
      if (op.kind == EvalKind::convolution) source.pad = std::max({source.pad, op.first.pad, int64_t(1)});
      if (op.separable) middle_pad_ = std::max(middle_pad_, op.second.pad);
      ready_[op.node] = std::max(ready_[op.node], ready_[op.source] + 1);
      waves_ = std::max(waves_, ready_[op.node]);
    }
  }

  // An image to a thread; those that are left over by rows, to all threads together.
  void run() {
    const int64_t alone = n_ / threads_ * threads_;
    if (alone > 0) {
      const int64_t size = scratch_size(1);
      Block<A> scratch(size * threads_);
      std::atomic<int64_t> next{0};
      at::parallel_for(0, threads_, 1, [&](int64_t first, int64_t last) {
        for (int64_t thread = first; thread < last; ++thread) {
          const Team team = place(scratch.data() + thread * size, 1);
          for (int64_t image; (image = next.fetch_add(1)) < alone;) run_alone(team, image);
        }
      });
    }
    if (alone == n_) return;
    const int64_t middles = most_separables(), size = scratch_size(middles), parts = threads_;
    Block<A> scratch(size + (parts - 1) * strip_size());
    const Team team = place(scratch.data(), middles);
    for (int64_t image = alone; image < n_; ++image) run_together(team, image, parts);
  }

 private:
  // The states of one image, and where one or more threads work on it.
  struct Team {
    std::vector<EvalState<A>> states, middles;
    A* strip;
  };

  int64_t strip_size() const {
    int64_t w = wo_;
    for (const EvalState<A>& s : states_) w = std::max(w, s.w);
    return padded_channels<A>(EvalScratch::size(w, cell_.cp, out_.size(1)));
  }

  int64_t scratch_size(int64_t middles) const {
    int64_t size = strip_size() + middles * padded_size(ho_, wo_, middle_pad_);
    for (const EvalState<A>& s : states_) size += s.h * s.w * cell_.cp + padded_size(s.h, s.w, s.pad);
    return size;
  }

  // Of states that no convolution reads, none.
  int64_t padded_size(int64_t h, int64_t w, int64_t pad) const { return pad ? (h + 2 * pad) * (w + 2 * pad) * cell_.cp : 0; }

  Team place(A* scratch, int64_t middles) const {
    Team team{states_, {}, nullptr};
    for (EvalState<A>& s : team.states) {
      s.raw = scratch;
      scratch += s.h * s.w * cell_.cp;
      s.padded = s.pad ? scratch : nullptr;
      scratch += padded_size(s.h, s.w, s.pad);
    }
    for (int64_t i = 0; i < middles; ++i) {
      team.middles.push_back({ho_, wo_, middle_pad_, cell_.c, cell_.cp, nullptr, scratch});
      scratch += padded_size(ho_, wo_, middle_pad_);
    }
    team.strip = scratch;
    return team;
  }

  int64_t most_separables() const {
    int64_t most = 1;
    for (int64_t wave = 0; wave < waves_; ++wave)
      most = std::max<int64_t>(most, std::count_if(cell_.ops.begin(), cell_.ops.end(),
                                                   [&](const EvalOp<A>& op) { return op.separable && ready_[op.source] == wave; }));
    return most;
  }

  // Rows of part `part` of a state.
  static int64_t row(int64_t h, int64_t part, int64_t parts) { return h * part / parts; }

  void begin(const Team& team, int64_t image, int64_t part, int64_t parts, A* strip) const {
    for (int64_t i = 0; i < cell_.plan.inputs; ++i) {
      const EvalState<A>& s = team.states[i];
      kernels_.project(cell_.inputs[i], s, image, row(s.h, part, parts), row(s.h, part + 1, parts), strip);
    }
    for (int64_t node = 0; node < cell_.plan.nodes; ++node)
      kernels_.fill(team.states[cell_.plan.inputs + node], cell_.biases[node], row(ho_, part, parts), row(ho_, part + 1, parts));
    complete(team, image, 0, part, parts);
  }

  // Finishes the states that are whole from a wave on, and after the last wave the cell.
  void complete(const Team& team, int64_t image, int64_t wave, int64_t part, int64_t parts) const {
    for (size_t i = 0; i < team.states.size(); ++i) {
      const EvalState<A>& s = team.states[i];
      if (ready_[i] == wave) kernels_.finish(s, row(s.h, part, parts), row(s.h, part + 1, parts));
    }
    if (wave < waves_) return;
    std::vector<EvalState<A>> whole;
    for (const int64_t state : concat_) whole.push_back(team.states[state]);
    kernels_.store(whole.data(), whole.size(), view_of<T>(out_), out_.nbytes() > kCached, image, row(ho_, part, parts),
                   row(ho_, part + 1, parts), team.strip + part * strip_size());
  }

  void run_alone(const Team& team, int64_t image) const {
    begin(team, image, 0, 1, team.strip);
    for (int64_t wave = 0; wave < waves_; ++wave) {
      for (const EvalOp<A>& op : cell_.ops) {
        if (ready_[op.source] != wave) continue;
        const EvalState<A>& node = team.states[op.node];
        kernels_.first(op, team.states[op.source], op.separable ? team.middles[0] : node, 0, ho_, team.strip);
        if (op.separable) kernels_.second(op, team.middles[0], node, 0, ho_, team.strip);
      }
      complete(team, image, wave + 1, 0, 1);
    }
  }

  void run_together(const Team& team, int64_t image, int64_t parts) const {
    const auto together = [&](const auto& body) {
      at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part)
          body(part, row(ho_, part, parts), row(ho_, part + 1, parts), team.strip + part * strip_size());
      });
    };
    together([&](int64_t part, int64_t, int64_t, A* strip) { begin(team, image, part, parts, strip); });
    for (int64_t wave = 0; wave < waves_; ++wave) {
      // visit(op, its middle)
      const auto over_ops = [&](const auto& visit) {
        int64_t separables = 0;
        for (const EvalOp<A>& op : cell_.ops)
          if (ready_[op.source] == wave) visit(op, team.middles[op.separable ? separables++ : 0]);
        return separables;
      };
      int64_t separables = 0;
      together([&](int64_t part, int64_t lo, int64_t hi, A* strip) {
        const int64_t seen = over_ops([&](const EvalOp<A>& op, const EvalState<A>& middle) {
          kernels_.first(op, team.states[op.source], op.separable ? middle : team.states[op.node], lo, hi, strip);
        });
        if (part == 0) separables = seen;
        if (seen == 0) complete(team, image, wave + 1, part, parts);
      });
      if (separables == 0) continue;
      together([&](int64_t part, int64_t lo, int64_t hi, A* strip) {
        over_ops([&](const EvalOp<A>& op, const EvalState<A>& middle) {
          if (op.separable) kernels_.second(op, middle, team.states[op.node], lo, hi, strip);
        });
        complete(team, image, wave + 1, part, parts);
      });
    }
  }

  EvalCell<A, T>& cell_;
  const EvalKernels<A, T>& kernels_;
  at::Tensor out_;
  at::IntArrayRef concat_;
  int64_t threads_, n_, ho_, wo_, middle_pad_ = 1, waves_ = 0;
  std::vector<EvalState<A>> states_;  // without memory
  std::vector<int64_t> ready_;        // the wave from which on a state is whole
};

// ---- operators ----

void check_parts(const Plan& plan, at::IntArrayRef parts, int64_t c) {
  TORCH_CHECK_VALUE(plan.groups == 1, "eval_cell takes no partial channels; got K = ", plan.groups);
  TORCH_CHECK_VALUE(int64_t(parts.size()) == plan.inputs, "eval_cell: parts must have ", plan.inputs, " numbers; got ", parts.size());
  for (const int64_t part : parts)
    TORCH_CHECK_VALUE(part == 1 || (part == 2 && c % 2 == 0),
                      "eval_cell: parts must be 1, or 2 where C is even; got ", part, " for C = ", c);
}

at::Tensor pack_eval_cell(at::TensorList projections, at::IntArrayRef parts, at::TensorList params, const at::Tensor& running,
                          at::IntArrayRef code, double eps, const std::optional<at::Tensor>& affine, at::ScalarType dtype) {
  const Plan plan(code);
  check_eps("pack_eval_cell", eps);
  check_tensors("pack_eval_cell", "projections", projections);
  check_tensors("pack_eval_cell", "params", params);
  check_tensor("pack_eval_cell", "running", running);
  TORCH_CHECK_VALUE(running.dim() == 3 && running.size(0) == plan.inputs + plan.norms && running.size(1) == 2 && running.size(2) > 0,
                    "pack_eval_cell: running must be [", plan.inputs + plan.norms, ", 2, C]; got ", running.sizes());
  const int64_t c = running.size(2);
  check_parts(plan, parts, c);
  TORCH_CHECK_VALUE(int64_t(params.size()) == plan.params, "pack_eval_cell: plan needs ", plan.params, " parameters; got ", params.size());
  for (const Edge& edge : plan.edges)
    for (const Op& op : edge.ops) {
      TORCH_CHECK_VALUE(op.kind != Kind::skip || edge.stride == 1 || c % 2 == 0,
                        "pack_eval_cell: a factorised reduction needs an even number of channels; got ", c);
      for (int64_t i = 0; i < op.params; ++i)
        TORCH_CHECK_VALUE(params[op.param + i].numel() == op.param_size(i, c), "pack_eval_cell: parameter ", op.param + i, " has ",
                          params[op.param + i].numel(), " elements, not ", op.param_size(i, c));
    }
  std::vector<int64_t> channels;
  size_t next = 0;
  for (const int64_t part : parts)
    for (int64_t i = 0; i < part; ++i, ++next) {
      TORCH_CHECK_VALUE(next < projections.size() && projections[next].dim() == 4 && projections[next].size(0) == c / part &&
                            projections[next].numel() == c / part * projections[next].size(1),
                        "pack_eval_cell: projections must be ", c / part, " x C_in each, as many as parts say");
      if (i == 0) channels.push_back(projections[next].size(1));
      TORCH_CHECK_VALUE(projections[next].size(1) == channels.back(), "pack_eval_cell: an input's projections differ in C_in");
    }
  TORCH_CHECK_VALUE(next == projections.size(), "pack_eval_cell: parts tell of ", next, " projections; got ", projections.size());
  const at::ScalarType compute = compute_type(dtype);
  const auto from = in_compute_type(projections, compute), ps = in_compute_type(params, compute);
  const at::Tensor affines = read_affine("pack_eval_cell", affine, running.size(0), c, compute);
  const at::Tensor statistics = running.to(compute).contiguous();
  at::Tensor packed;
  dispatch(compute, [&](auto a, auto t) {
    using A = decltype(a);
    using Cell = EvalCell<A, decltype(t)>;
    packed = at::zeros({Cell(plan, channels, parts, c, nullptr).numbers}, running.options().dtype(compute));
    const Folded<A> folded(statistics, affines, eps);
    pack(Cell(plan, channels, parts, c, pointer<A>(packed)), folded, from, ps);
  });
  return packed;
}

at::Tensor eval_cell(at::TensorList states, const at::Tensor& packed, at::IntArrayRef parts, at::IntArrayRef code,
                     at::IntArrayRef concat, int64_t c) {
  const Plan plan(code);
  TORCH_CHECK_VALUE(int64_t(states.size()) == plan.inputs, "eval_cell: plan has ", plan.inputs, " inputs; got ", states.size());
  TORCH_CHECK_VALUE(c >= 1 && c <= kMostOfPlan, "eval_cell: C must be from 1 to ", kMostOfPlan, "; got ", c);
  check_parts(plan, parts, c);
  check_tensors("eval_cell", "states", states);
  check_tensor("eval_cell", "packed", packed);
  std::vector<int64_t> channels, h, w;
  for (size_t i = 0; i < states.size(); ++i) {
    const at::Tensor& s = states[i];
    TORCH_CHECK_VALUE(s.dim() == 4 && s.numel() > 0 && s.size(0) == states[0].size(0) && s.scalar_type() == states[0].scalar_type(),
                      "eval_cell: states must be [N, C, H, W], share N and dtype and not be empty; got ", s.sizes());
    channels.push_back(s.size(1));
    h.push_back(ceil_div(s.size(2), parts[i]));
    w.push_back(ceil_div(s.size(3), parts[i]));
  }
  int64_t ho = -1, wo = -1;
  for (const Edge& edge : plan.edges) {
    if (edge.source >= plan.inputs) continue;
    const int64_t rows = ceil_div(h[edge.source], edge.stride), columns = ceil_div(w[edge.source], edge.stride);
    TORCH_CHECK_VALUE(ho < 0 || (ho == rows && wo == columns), "eval_cell: the edges from the inputs end in different sizes");
    ho = rows;
    wo = columns;
  }
  TORCH_CHECK_VALUE(ho > 0, "eval_cell: no edge leaves an input");
  TORCH_CHECK_VALUE(!concat.empty(), "eval_cell: concat must name a state");
  for (const int64_t state : concat)
    TORCH_CHECK_VALUE(state >= 0 && state < plan.inputs + plan.nodes && (state >= plan.inputs || (h[state] == ho && w[state] == wo)),
                      "eval_cell: concat must name states of the nodes' size; got ", state);
  const at::ScalarType dtype = states[0].scalar_type(), compute = compute_type(dtype);
  const int64_t n = states[0].size(0);
  checked_product("eval_cell: out", {n, int64_t(concat.size()), c, ho, wo});
  std::vector<at::Tensor> xs;
  for (const at::Tensor& s : states) xs.push_back(channels_last(s));
  const at::Tensor out = empty_image_in_block({n, int64_t(concat.size()) * c, ho, wo}, dtype);
  dispatch(dtype, [&](auto a, auto t) {
    using A = decltype(a);
    using T = decltype(t);
    TORCH_CHECK_VALUE(packed.scalar_type() == compute && packed.is_contiguous(), "eval_cell: packed must be dense ", compute, "; got ",
                      packed.scalar_type());
    EvalCell<A, T> cell(plan, channels, parts, c, pointer<A>(packed));
    TORCH_CHECK_VALUE(packed.numel() == cell.numbers, "eval_cell: packed must hold ", cell.numbers, " numbers; got ", packed.numel());
    EvalRun<A, T>(cell, xs, out, concat).run();
  });
  return out;
}

// Two sums of 64-bit words, the second of the first's values (Fletcher): of contents and their order.
uint64_t sum_words(const char* bytes, int64_t count) {
  constexpr int kLanes = 8;
  uint64_t sums[kLanes] = {}, orders[kLanes] = {};
  int64_t at = 0;
  for (; at + 8 * kLanes <= count; at += 8 * kLanes) {
    uint64_t words[kLanes];
    std::memcpy(words, bytes + at, sizeof words);
    for (int lane = 0; lane < kLanes; ++lane) {
      sums[lane] += words[lane];
      orders[lane] += sums[lane];
    }
  }
  uint64_t rest[kLanes] = {};
  std::memcpy(rest, bytes + at, count - at);
  uint64_t hash = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    for (const uint64_t word : {sums[lane], orders[lane], rest[lane]}) hash = (hash ^ word ^ (hash >> 29)) * 0x9e3779b97f4a7c15u;
  return hash;
}

int64_t checksum(at::TensorList tensors) {
  std::vector<at::Tensor> dense;
  for (const at::Tensor& t : tensors) {
    check_tensor("checksum", "tensors", t);
    dense.push_back(t.is_non_overlapping_and_dense() ? t : t.contiguous());
  }
  std::vector<uint64_t> sums(dense.size());
  at::parallel_for(0, dense.size(), 16, [&](int64_t lo, int64_t hi) {
    for (int64_t i = lo; i < hi; ++i) sums[i] = sum_words(static_cast<const char*>(dense[i].data_ptr()), dense[i].nbytes());
  });
  uint64_t hash = 0;
  const auto add = [&](uint64_t word) { hash = (hash ^ word ^ (hash >> 29)) * 0x9e3779b97f4a7c15u; };
  for (size_t i = 0; i < dense.size(); ++i) {
    add(sums[i]);
    add(uint64_t(dense[i].scalar_type()));
    for (const int64_t size : dense[i].sizes()) add(size);
    for (const int64_t stride : dense[i].strides()) add(stride);
  }
  return int64_t(hash);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) {
  m.impl("pack_eval_cell", &pack_eval_cell);
  m.impl("eval_cell", &eval_cell);
  m.impl("checksum", &checksum);
}

}  // namespace fastdarts
