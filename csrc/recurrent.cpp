// fastdarts::recurrent and its backward on CPUs: a recurrent cell over a window. Schema, fakes and autograd: fastdarts/ops/recurrent.py.
//
// The inputs' products of all steps are one matrix product. Within a step, when state j exists, its products for all nodes that
// read it are one more; everything between products is a few passes over rows (tiles/cell.h). Of a step the forward keeps the hidden
// state, the product that makes state 0, and the statistics of norms. The backward goes by groups of steps: since their hidden states
// are known, it makes states and products again for all steps of a group at once, and likewise the matrices' gradients.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "cell.h"

namespace fastdarts {
namespace {

constexpr int64_t kBytesOfRows = 2048;  // of a column of a group's products: as many rows make products nearly as fast as they get

struct Term {
  int64_t source, code, weight;
};

struct Plan {
  bool norm;
  std::vector<int64_t> outputs;
  std::vector<std::vector<Term>> nodes;

  explicit Plan(at::IntArrayRef numbers) {
    size_t at = 0;
    const auto next = [&] {
      TORCH_CHECK_VALUE(at < numbers.size(), "recurrent: the plan ends too early");
      return numbers[at++];
    };
    const auto next_count = [&](const char* what) {
      const int64_t count = next();
      TORCH_CHECK_VALUE(count >= 0 && count <= int64_t(numbers.size()), "recurrent: the plan has ", count, " ", what);
      return count;
    };
    norm = next() != 0;
    outputs.resize(next_count("outputs"));
    for (int64_t& state : outputs) state = next();
    nodes.resize(next_count("nodes"));
    for (auto& terms : nodes) {
      const int64_t count = next_count("terms of a node");
      for (int64_t i = 0; i < count; ++i) {
        const int64_t source = next(), code = next();
        terms.push_back({source, code, next()});
      }
    }
    TORCH_CHECK_VALUE(at == numbers.size(), "recurrent: the plan has ", numbers.size() - at, " numbers too many");
  }

  int64_t states() const { return nodes.size() + 1; }
};

// A node that reads a state: which edge of the node it is, and the columns of its product among those of the state.
struct Reader {
  int64_t node, edge;
};

// One window in one set of types: everything of a forward or backward pass.
template <class A, class T>
class Window {
 public:
  Window(const at::Tensor& x, const std::optional<at::Tensor>& mask_x, const std::optional<at::Tensor>& mask_h, const at::Tensor& W0,
         at::TensorList Ws, const at::Tensor& weights, const Plan& plan, bool half)
      : plan_(plan), kernels_(cell_kernels<A, T>()), steps_(x.size(0)), rows_(x.size(1)), width_(x.size(2)),
        states_(plan.nodes.size() + 1), chunks_((rows_ + kChunkRows - 1) / kChunkRows), options_(x.options()),
        product_options_(x.options().dtype(half ? at::kBFloat16 : x.scalar_type())), mask_x_(data(mask_x)), mask_h_(data(mask_h)),
        readers_(states_), edges_(states_) {
    const A* w = weights.const_data_ptr<A>();
    edges_[0].push_back({});  // state 0: tanh on the edge from the hidden state
    edges_[0][0].weights[0] = 1;
    edges_[0][0].exponential = true;
    added_.assign(states_, A(0));
    has_added_.assign(states_, false);
    sources_.resize(states_);
    for (int64_t node = 0; node + 1 < states_; ++node)
      for (const Term& term : plan.nodes[node]) {
        if (term.code > kActivations) {
          added_[node + 1] += w[term.weight];
          has_added_[node + 1] = true;
          continue;
        }
        auto& sources = sources_[node + 1];
        const auto found = std::find(sources.begin(), sources.end(), term.source);
        const int64_t edge = found - sources.begin();
        if (found == sources.end()) {
          sources.push_back(term.source);
          edges_[node + 1].push_back({});
          readers_[term.source].push_back({node + 1, edge});
        }
        CellEdge<A, T>& e = edges_[node + 1][edge];
        e.weights[term.code - 1] += w[term.weight];
        e.exponential |= term.code == 1 || term.code == 3;
      }
    const auto as_product = [&](const at::Tensor& m) { return m.to(product_options_.dtype()); };
    input_matrix_ = as_product(W0.narrow(0, 0, width_));
    hidden_matrix_ = as_product(W0.narrow(0, width_, width_));
    for (const auto& readers : readers_) {
      std::vector<at::Tensor> parts;
      for (const Reader& reader : readers) parts.push_back(as_product(Ws[reader.node - 1]));
      matrices_.push_back(parts.empty() ? at::Tensor() : parts.size() == 1 ? parts[0] : at::cat(parts, 1));
    }
  }

  void forward(const at::Tensor& x, const at::Tensor& hidden, const std::optional<at::Tensor>& running, double eps, bool keep,
               const at::Tensor& out, const at::Tensor& gates, const at::Tensor& stats) {
    const at::Tensor states = at::empty({states_, rows_, width_}, options_);
    const Parts products = new_products(1);
    const at::Tensor entering = masked(x.view({steps_ * rows_, width_}), mask_x_);
    at::Tensor inputs = at::mm(entering, input_matrix_).view({steps_, rows_, 2 * width_});
    at::Tensor carried = masked(hidden, mask_h_);
    const at::Tensor read = at::empty({rows_, width_}, product_options_);
    const A* before = hidden.const_data_ptr<A>();
    for (int64_t t = 0; t < steps_; ++t) {
      at::Tensor gate = gates[keep ? t : 0], input = inputs[t];
      at::addmm_out(gate, input, carried, hidden_matrix_);
      for (int64_t j = 0; j < states_; ++j) {
        point_forward(j, before, states, products, 0, gate);
        const CellNode<A, T> node = node_of(j, states, read);
        const at::Tensor used = plan_.norm ? stats[t][j] : stats;
        measure(node, running, used);
        finish(node, used, eps);
        if (readers_[j].empty()) continue;
        at::Tensor product = products[j][0];
        at::mm_out(product, read, matrices_[j]);
      }
      std::vector<const A*> averaged;
      for (int64_t state : plan_.outputs) averaged.push_back(states[state].template const_data_ptr<A>());
      A* h = out[t].template data_ptr<A>();
      T* next = reinterpret_cast<T*>(carried.data_ptr());
      over_chunks([&](int64_t, int64_t lo, int64_t hi) {
        kernels_.average(averaged.data(), averaged.size(), width_, mask_h_, h, next, lo, hi);
      });
      before = h;
    }
  }

  struct Gradients {
    at::Tensor x, hidden, W0, weights;
    std::vector<at::Tensor> Ws;
  };

  Gradients backward(const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& hidden, const at::Tensor& weights,
                     const at::Tensor& out, const at::Tensor& gates, const at::Tensor& stats, bool training, double eps, bool need_x,
                     bool need_matrices) {
    const int64_t most = kBytesOfRows / int64_t(sizeof(T)), group = std::min(steps_, (most + rows_ - 1) / rows_);
    const at::Tensor states = at::empty({group, states_, rows_, width_}, options_);
    const Parts products = new_products(group);  // in the end their gradients
    std::vector<at::Tensor> state_grads(states_), masked_grads(states_), matrix_grads(states_ - 1), read(states_);
    for (at::Tensor& grad : matrix_grads) grad = need_matrices ? at::zeros({width_, 2 * width_}, options_) : at::empty({0}, options_);
    std::vector<A*> grads;
    for (int64_t j = 0; j < states_; ++j) {
      state_grads[j] = at::empty({rows_, width_}, options_);
      grads.push_back(state_grads[j].data_ptr<A>());
      read[j] = at::empty({group * rows_, width_}, product_options_);
      if (readers_[j].empty()) continue;
      masked_grads[j] = at::empty({rows_, width_}, product_options_);
    }
    const bool all_gates = need_x || need_matrices;
    const at::Tensor grad_gates = at::empty({all_gates ? steps_ : 1, rows_, 2 * width_}, product_options_);
    const at::Tensor carried = at::zeros({rows_, width_}, options_);
    at::Tensor grad_carried = at::zeros({rows_, width_}, product_options_);
    allocate_sums();
    std::vector<A> scale(states_, A(0));
    for (const int64_t state : plan_.outputs) scale[state] = A(1) / A(plan_.outputs.size());

    for (int64_t first = (steps_ - 1) / group * group; first >= 0; first -= group) {
      const int64_t count = std::min(group, steps_ - first);
      make_again(first, count, hidden, out, gates, stats, eps, states, products, read);
      for (int64_t t = first + count - 1; t >= first; --t) {
        const int64_t slot = t - first;
        const at::Tensor previous = t ? out[t - 1] : hidden, from_out = grad_out[t], grad_gate = grad_gates[all_gates ? t : 0];
        over_chunks([&](int64_t, int64_t lo, int64_t hi) {
          kernels_.spread(from_out.const_data_ptr<A>(), carried.const_data_ptr<A>(), product_data(grad_carried), mask_h_, grads.data(),
                          scale.data(), states_, width_, lo, hi);
        });
        carried.zero_();
        for (int64_t j = states_ - 1; j >= 0; --j) {
          CellNode<A, T> node = node_of(j, states[slot], {});
          node.grad = grads[j];
          if (!readers_[j].empty()) {
            at::mm_out(masked_grads[j], products[j][slot], matrices_[j].t());
            node.grad_masked = product_data(masked_grads[j]);
          }
          point_forward(j, previous.const_data_ptr<A>(), states[slot], products, slot, gates[t]);
          point_backward(j, grads, carried, products, slot, grad_gate);
          node_backward(node, plan_.norm ? stats[t][j] : stats, training, eps);
          if (has_added_[j]) added_sums_[j] += state_grads[j].sum(at::kDouble).template item<double>();
        }
        at::mm_out(grad_carried, grad_gate, hidden_matrix_.t());
      }
      for (int64_t j = 0; j < states_ && need_matrices; ++j)
        for (size_t i = 0; i < readers_[j].size(); ++i) {
          const at::Tensor of_node = products[j].narrow(0, 0, count).narrow(2, i * 2 * width_, 2 * width_);
          add_product(matrix_grads[readers_[j][i].node - 1], read[j].narrow(0, 0, count * rows_), of_node.flatten(0, 1));
        }
    }
    return collect(x, hidden, weights, out, carried, grad_carried, grad_gates, std::move(matrix_grads), need_x, need_matrices);
  }

 private:
  using Parts = std::vector<at::Tensor>;  // of each state [steps, rows, columns]: its products for all nodes that read it

  Parts new_products(int64_t steps) const {
    Parts parts;
    for (const auto& readers : readers_)
      parts.push_back(at::empty({steps, rows_, int64_t(readers.size()) * 2 * width_}, product_options_));
    return parts;
  }

  // Computes states and products of the steps from `first`, and what the products read, from what the forward kept.
  void make_again(int64_t first, int64_t count, const at::Tensor& hidden, const at::Tensor& out, const at::Tensor& gates,
                  const at::Tensor& stats, double eps, const at::Tensor& states, const Parts& products,
                  const std::vector<at::Tensor>& read) {
    for (int64_t j = 0; j < states_; ++j) {
      for (int64_t slot = 0; slot < count; ++slot) {
        const int64_t t = first + slot;
        const at::Tensor before = t ? out[t - 1] : hidden;
        point_forward(j, before.const_data_ptr<A>(), states[slot], products, slot, gates[t]);
        const CellNode<A, T> node = node_of(j, states[slot], read[j].narrow(0, slot * rows_, rows_));
        sum(node);
        finish(node, plan_.norm ? stats[t][j] : stats, eps);
      }
      if (readers_[j].empty()) continue;
      at::Tensor product = products[j].narrow(0, 0, count).flatten(0, 1);
      at::mm_out(product, read[j].narrow(0, 0, count * rows_), matrices_[j]);
    }
  }

  template <class F>
  void over_chunks(const F& body) const {
    at::parallel_for(0, chunks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) body(c, c * kChunkRows, std::min(rows_, (c + 1) * kChunkRows));
    });
  }

  static const A* data(const std::optional<at::Tensor>& t) { return t ? t->const_data_ptr<A>() : nullptr; }
  static const T* product_data(const at::Tensor& t) { return reinterpret_cast<const T*>(t.const_data_ptr()); }

  at::Tensor masked(const at::Tensor& a, const A* mask) const {
    at::Tensor result = at::empty(a.sizes(), product_options_);
    const A* from = a.const_data_ptr<A>();
    T* to = reinterpret_cast<T*>(result.data_ptr());
    at::parallel_for(0, a.size(0), kChunkRows, [&](int64_t lo, int64_t hi) {
      kernels_.masked(from, mask, rows_, width_, to, lo, hi);
    });
    return result;
  }

  at::Tensor unmasked(const at::Tensor& a, const A* mask) const {
    at::Tensor result = at::empty(a.sizes(), options_);
    const T* from = product_data(a);
    A* to = result.data_ptr<A>();
    at::parallel_for(0, a.size(0), kChunkRows, [&](int64_t lo, int64_t hi) {
      kernels_.unmasked(from, mask, rows_, width_, to, lo, hi);
    });
    return result;
  }

  Gradients collect(const at::Tensor& x, const at::Tensor& hidden, const at::Tensor& weights, const at::Tensor& out,
                    const at::Tensor& carried, const at::Tensor& grad_carried, const at::Tensor& grad_gates,
                    std::vector<at::Tensor> matrix_grads, bool need_x, bool need_matrices) const {
    const at::Tensor none = at::empty({0}, options_);
    Gradients result{none, carried.add(unmasked(grad_carried, mask_h_)), none, weight_gradients(weights), std::move(matrix_grads)};
    const at::Tensor flat_gates = grad_gates.flatten(0, 1);
    if (need_x) result.x = unmasked(at::mm(flat_gates, input_matrix_.t()), mask_x_).view(x.sizes());
    if (!need_matrices) return result;
    const at::Tensor before = at::cat({hidden.unsqueeze(0), out.narrow(0, 0, steps_ - 1)}).flatten(0, 1);
    result.W0 = at::zeros({2 * width_, 2 * width_}, options_);
    at::Tensor of_inputs = result.W0.narrow(0, 0, width_), of_hidden = result.W0.narrow(0, width_, width_);
    add_product(of_inputs, masked(x.flatten(0, 1), mask_x_), flat_gates);
    add_product(of_hidden, masked(before, mask_h_), flat_gates);
    return result;
  }

  // sum += a^T b, in the type of sum
  static void add_product(at::Tensor sum, const at::Tensor& a, const at::Tensor& b) {
    if (b.scalar_type() == sum.scalar_type())
      at::addmm_out(sum, sum, a.t(), b);
    else
      sum.add_(at::mm(a.t(), b));
  }

  // read: where the state goes for products, times the mask; undefined for a backward pass
  CellNode<A, T> node_of(int64_t j, const at::Tensor& states, const at::Tensor& read) const {
    CellNode<A, T> node{};
    node.width = width_;
    node.edges = edges_[j].data();
    node.count = edges_[j].size();
    node.added = added_[j];
    node.mask = mask_h_;
    node.state = states[j].template data_ptr<A>();
    node.masked = read.defined() ? reinterpret_cast<T*>(read.data_ptr()) : nullptr;
    return node;
  }

  // Lets the edges into state j point to what they read at a step.
  void point_forward(int64_t j, const A* before, const at::Tensor& states, const Parts& products, int64_t t,
                     const at::Tensor& gate) {
    if (j == 0) {
      edges_[0][0].state = before;
      edges_[0][0].product = product_data(gate);
      edges_[0][0].stride = 2 * width_;
      return;
    }
    for (size_t i = 0; i < edges_[j].size(); ++i) {
      const int64_t source = sources_[j][i];
      edges_[j][i].state = states[source].template const_data_ptr<A>();
      edges_[j][i].stride = products[source].size(2);
      edges_[j][i].product = product_data(products[source]) + t * rows_ * edges_[j][i].stride + column_of(source, j);
    }
  }

  void point_backward(int64_t j, const std::vector<A*>& grads, const at::Tensor& carried, const Parts& products, int64_t slot,
                      const at::Tensor& grad_gate) {
    for (size_t i = 0; i < edges_[j].size(); ++i) {
      CellEdge<A, T>& e = edges_[j][i];
      if (j == 0) {
        e.grad_state = carried.data_ptr<A>();
        e.grad_product = const_cast<T*>(product_data(grad_gate));
        e.grad_stride = 2 * width_;
        continue;
      }
      const int64_t source = sources_[j][i];
      e.grad_state = grads[source];
      e.grad_stride = products[source].size(2);
      e.grad_product = const_cast<T*>(product_data(products[source])) + slot * rows_ * e.grad_stride + column_of(source, j);
    }
  }

  int64_t column_of(int64_t source, int64_t node) const {
    const auto& readers = readers_[source];
    const auto found = std::find_if(readers.begin(), readers.end(), [&](const Reader& r) { return r.node == node; });
    return (found - readers.begin()) * 2 * width_;
  }

  // Computes a state before the norm; returns the sums of its columns, of each chunk of rows.
  std::vector<A> sum(const CellNode<A, T>& node) const {
    std::vector<A> sums(chunks_ * width_, A(0));
    over_chunks([&](int64_t c, int64_t lo, int64_t hi) { kernels_.sum(node, lo, hi, sums.data() + c * width_); });
    return sums;
  }

  // Computes a state before the norm, and the statistics [2, width] to normalise it by.
  void measure(const CellNode<A, T>& node, const std::optional<at::Tensor>& running, const at::Tensor& stats) const {
    std::vector<A> sums = sum(node);
    if (!plan_.norm) return;
    A* used = stats.data_ptr<A>();
    if (running) {
      std::copy_n(running->const_data_ptr<A>(), 2 * width_, used);
      return;
    }
    combine(sums, width_, used);
    std::fill(sums.begin(), sums.end(), A(0));
    over_chunks([&](int64_t c, int64_t lo, int64_t hi) { kernels_.squares(node, lo, hi, used, sums.data() + c * width_); });
    combine(sums, width_, used + width_);
  }

  // Normalises a state, where the cell has a norm, and masks it for the products.
  void finish(const CellNode<A, T>& node, const at::Tensor& stats, double eps) const {
    const A* mean = plan_.norm ? stats.const_data_ptr<A>() : nullptr;
    std::vector<A> rstd(width_);
    for (int64_t c = 0; mean && c < width_; ++c) rstd[c] = A(1 / std::sqrt(double(mean[width_ + c]) + eps));
    over_chunks([&](int64_t, int64_t lo, int64_t hi) { kernels_.finish(node, lo, hi, mean, rstd.data()); });
  }

  // The mean over rows of sums of chunks.
  void combine(const std::vector<A>& sums, int64_t count, A* mean) const {
    for (int64_t c = 0; c < count; ++c) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) sum += double(sums[chunk * count + c]);
      mean[c] = A(sum / double(rows_));
    }
  }

  // node.grad becomes the gradient before the norm, and goes through the edges.
  void node_backward(const CellNode<A, T>& node, const at::Tensor& stats, bool training, double eps) {
    std::vector<A> sums(chunks_ * 2 * width_, A(0)), means(2 * width_), rstd(width_);
    over_chunks([&](int64_t c, int64_t lo, int64_t hi) { kernels_.grad_sums(node, lo, hi, sums.data() + c * 2 * width_); });
    combine(sums, 2 * width_, means.data());
    for (int64_t c = 0; plan_.norm && c < width_; ++c)
      rstd[c] = A(1 / std::sqrt(double(stats.const_data_ptr<A>()[width_ + c]) + eps));
    const bool centred = plan_.norm && training;
    over_chunks([&](int64_t c, int64_t lo, int64_t hi) {
      kernels_.backward(node, lo, hi, plan_.norm ? rstd.data() : nullptr, centred ? means.data() : nullptr, means.data() + width_, c);
    });
  }

  void allocate_sums() {
    size_t count = 0;
    for (int64_t j = 1; j < states_; ++j) count += edges_[j].size();
    sums_.assign(count * chunks_ * kActivations, 0.0);
    added_sums_.assign(states_, 0.0);
    double* at = sums_.data();
    for (int64_t j = 1; j < states_; ++j)
      for (CellEdge<A, T>& e : edges_[j]) {
        e.grad_weights = at;
        at += chunks_ * kActivations;
      }
  }

  at::Tensor weight_gradients(const at::Tensor& weights) const {
    const at::Tensor result = at::zeros_like(weights);
    A* g = result.data_ptr<A>();
    for (int64_t j = 1; j < states_; ++j)
      for (const Term& term : plan_.nodes[j - 1]) {
        double sum = added_sums_[j];
        if (term.code <= kActivations) {
          const auto& sources = sources_[j];
          const double* of_edge = edges_[j][std::find(sources.begin(), sources.end(), term.source) - sources.begin()].grad_weights;
          sum = 0;
          for (int64_t c = 0; c < chunks_; ++c) sum += of_edge[c * kActivations + term.code - 1];
        }
        g[term.weight] += A(sum);
      }
    return result;
  }

  const Plan& plan_;
  const CellKernels<A, T>& kernels_;
  int64_t steps_, rows_, width_, states_, chunks_;
  at::TensorOptions options_, product_options_;
  const A *mask_x_, *mask_h_;
  std::vector<std::vector<Reader>> readers_;          // of each state
  std::vector<std::vector<CellEdge<A, T>>> edges_;    // into each state
  std::vector<std::vector<int64_t>> sources_;         // of these edges
  std::vector<A> added_;
  std::vector<bool> has_added_;
  at::Tensor input_matrix_, hidden_matrix_;
  std::vector<at::Tensor> matrices_;                  // those of a state's readers, side by side
  std::vector<double> sums_, added_sums_;
};

// body(A{}, T{}) for the types of x and of the products.
template <class F>
void dispatch_cell(const at::Tensor& x, bool half, const F& body) {
  if (x.scalar_type() == at::kDouble && !half) return body(double{}, double{});
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, "recurrent: x must be float32, or float64 without bfloat16 products; got ",
                   x.scalar_type());
  if (half) return body(float{}, bf16{});
  return body(float{}, float{});
}

void check_like(const at::Tensor& x, const char* name, const at::Tensor& t, at::IntArrayRef sizes, at::ScalarType type) {
  TORCH_CHECK_VALUE(t.sizes() == sizes, "recurrent: ", name, " must be ", sizes, "; got ", t.sizes());
  TORCH_CHECK_TYPE(t.scalar_type() == type && t.device() == x.device() && t.is_contiguous(), "recurrent: ", name,
                   " must be contiguous ", type, " on the device of x, ", x.device(), "; got ", t.scalar_type(), " on ", t.device());
}

void check(const at::Tensor& x, const at::Tensor& hidden, const std::optional<at::Tensor>& mask_x,
           const std::optional<at::Tensor>& mask_h, const at::Tensor& W0, at::TensorList Ws, const at::Tensor& weights,
           const Plan& plan, double eps) {
  TORCH_CHECK_VALUE(std::isfinite(eps) && eps >= 0, "recurrent: eps must be a finite number, 0 or more; got ", eps);
  TORCH_CHECK_VALUE(x.dim() == 3 && x.numel() > 0, "recurrent: x must be a non-empty [T, B, d]; got ", x.sizes());
  const int64_t rows = x.size(1), width = x.size(2), states = plan.nodes.size() + 1;
  const auto wants = [&](const char* name, const at::Tensor& t, at::IntArrayRef sizes) {
    check_like(x, name, t, sizes, x.scalar_type());
  };
  wants("x", x, x.sizes());
  wants("hidden", hidden, {rows, width});
  if (mask_x) wants("mask_x", *mask_x, {rows, width});
  if (mask_h) wants("mask_h", *mask_h, {rows, width});
  wants("W0", W0, {2 * width, 2 * width});
  wants("weights", weights, weights.sizes());
  TORCH_CHECK_VALUE(int64_t(Ws.size()) == states - 1, "recurrent: the plan has ", states - 1, " nodes; got ", Ws.size(), " matrices");
  for (const at::Tensor& W : Ws) wants("Ws", W, {width, 2 * width});
  TORCH_CHECK_VALUE(!plan.outputs.empty(), "recurrent: the plan has no output");
  for (const int64_t state : plan.outputs)
    TORCH_CHECK_VALUE(state >= 0 && state < states, "recurrent: output ", state, " is no state");
  for (int64_t node = 0; node + 1 < states; ++node)
    for (const Term& term : plan.nodes[node])
      TORCH_CHECK_VALUE(term.source >= 0 && term.source <= node && term.code >= 1 && term.code <= kActivations + 1 &&
                            term.weight >= 0 && term.weight < weights.numel(),
                        "recurrent: node ", node, " has a term (", term.source, ", ", term.code, ", ", term.weight, ")");
}

using Saved = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Saved recurrent(const at::Tensor& x, const at::Tensor& hidden, const std::optional<at::Tensor>& mask_x,
                const std::optional<at::Tensor>& mask_h, const at::Tensor& W0, at::TensorList Ws, const at::Tensor& weights,
                const std::optional<at::Tensor>& running, at::IntArrayRef numbers, double eps, bool half, bool keep) {
  const Plan plan(numbers);
  check(x, hidden, mask_x, mask_h, W0, Ws, weights, plan, eps);
  if (running) check_like(x, "running", *running, {2, x.size(2)}, x.scalar_type());
  const int64_t rows = x.size(1), width = x.size(2), kept = keep ? x.size(0) : 1;
  const at::TensorOptions products = half ? x.options().dtype(at::kBFloat16) : x.options();
  Saved saved{at::empty_like(x), at::empty({0}, x.options()), at::empty({0}, products), at::empty({kept, rows, 2 * width}, products),
              at::empty({plan.norm ? x.size(0) : 0, plan.states(), 2, width}, x.options())};
  auto& [out, states, parts, gates, stats] = saved;
  dispatch_cell(x, half, [&](auto a, auto t) {
    Window<decltype(a), decltype(t)>(x, mask_x, mask_h, W0, Ws, weights, plan, half)
        .forward(x, hidden, running, eps, keep, out, gates, stats);
  });
  return saved;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>, at::Tensor> recurrent_backward(
    const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& hidden, const std::optional<at::Tensor>& mask_x,
    const std::optional<at::Tensor>& mask_h, const at::Tensor& W0, at::TensorList Ws, const at::Tensor& weights, const at::Tensor& out,
    const at::Tensor& states, const at::Tensor& products, const at::Tensor& gates, const at::Tensor& stats, at::IntArrayRef numbers,
    bool training, double eps, bool half, bool need_x, bool need_matrices) {
  const Plan plan(numbers);
  check(x, hidden, mask_x, mask_h, W0, Ws, weights, plan, eps);
  const int64_t steps = x.size(0), rows = x.size(1), width = x.size(2);
  TORCH_CHECK_VALUE(gates.dim() == 3 && gates.size(0) == steps, "recurrent_backward: the forward kept nothing");
  check_like(x, "gates", gates, {steps, rows, 2 * width}, half ? at::kBFloat16 : x.scalar_type());
  check_like(x, "stats", stats, {plan.norm ? steps : 0, plan.states(), 2, width}, x.scalar_type());
  check_like(x, "out", out, x.sizes(), x.scalar_type());
  const at::Tensor g = grad_out.contiguous();
  check_like(x, "grad_out", g, x.sizes(), x.scalar_type());
  std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>, at::Tensor> result;
  dispatch_cell(x, half, [&](auto a, auto t) {
    auto found = Window<decltype(a), decltype(t)>(x, mask_x, mask_h, W0, Ws, weights, plan, half)
                     .backward(g, x, hidden, weights, out, gates, stats, training, eps, need_x, need_matrices);
    result = {found.x, found.hidden, found.W0, found.Ws, found.weights};
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) {
  m.impl("recurrent", &recurrent);
  m.impl("recurrent_backward", &recurrent_backward);
}

}  // namespace fastdarts
