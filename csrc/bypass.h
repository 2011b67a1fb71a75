// Partial channels (PC-DARTS): the ops of an edge see the first 1/K of a state's channels, the others pass them by. Here are the
// sum of what passes, its shuffle with what the ops make of theirs, and the way back; fastdarts/ops/functional.py has the formulas.
//
// The ops' channels of all nodes stand in "slots", folded (fold.h); the nodes themselves are whole, as the cell puts them out.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "plan.h"
#include "tile.h"

namespace fastdarts {

class Bypass {
 public:
  // states and nodes whole: [N, C, H, W] each and [N, nodes * C, H', W'], channels dense. weights: their last column holds the
  // factors of what passes the edges. images: that stand side by side in the lanes.
  Bypass(const Plan& plan, at::TensorList states, const at::Tensor& nodes, const at::Tensor& weights, int64_t images);

  // Makes a node. Its slot holds what its ops made, and then what the ops of later edges see.
  void join(int64_t node, const at::Tensor& slots);

  // The way back, all states in reverse. A node's gradient: from outside (grad, of all nodes), from later nodes, and, if
  // `reached`, from the ops that leave it, in its slot; the slot then holds what goes to the ops that enter it.
  void part_node(int64_t node, const at::Tensor& grad, const at::Tensor& slots, bool reached);
  // An input's, [N, C, H, W], if needed; own: from the ops, folded, if `reached`.
  at::Tensor part_input(int64_t input, const at::Tensor& own, bool reached, bool needed);
  // When all are done: the last column of the weights' gradient.
  void give_factors(const at::Tensor& dweights) const;

 private:
  // All about a state's rows but what a pass reads and writes besides.
  template <class A, class T>
  PartialRows<A, T> rows_of(int64_t state) const;
  // Of the edges for which tensor_of(edge) is not null.
  template <class A, class T, class F>
  std::vector<Passage<A, T>> passages(const F& tensor_of) const;
  // Over a fixed partition of the nodes' rows.
  template <class A, class T>
  void run(typename Kernels<A, T>::Rows* kernel, const PartialRows<A, T>& rows);

  const Plan& plan_;
  int64_t images_, n_, h_, w_, size_, chunks_;
  std::vector<double> factors_;        // [edges]
  std::vector<double> factor_sums_;    // [chunks, edges, kFactorLanes]: their gradients
  std::vector<at::Tensor> states_;     // inputs, then nodes
  std::vector<at::Tensor> passing_;    // of each the channels that pass, [N, C - C / K, H', W']
  std::vector<at::Tensor> gradients_;  // of their sum into a node
};

}  // namespace fastdarts
