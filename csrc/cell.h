// What the schedules of the recurrent cell (recurrent.cpp) and of the loss (linear_nll.cpp) hand to their kernels (tiles/cell.h,
// tiles/softmax.h): plain data, no PyTorch.
//
// A is the type states are kept and everything is computed in (float, double), T the one that matrix products read and write
// (A, or bfloat16 as uint16_t). Matrices are row-major; a row is an example of the batch.
#pragma once
#include <cstdint>

#include "tile.h"

namespace fastdarts {

constexpr int64_t kActivations = 4;  // tanh, relu, sigmoid, identity: codes 1 to 4 of a plan
constexpr int64_t kChunkRows = 32;   // rows of a partial sum, whatever the number of threads

// The edges from one state into a node: sum_k w_k (s + sigmoid(c) (f_k(h) - s)), with c and h side by side in a product.
template <class A, class T>
struct CellEdge {
  const A* state;        // [rows, width]: s
  const T* product;      // [rows, stride]: c, then h
  int64_t stride;
  A weights[kActivations];
  bool exponential;      // whether tanh or sigmoid has a weight
  // backward
  A* grad_state;         // [rows, width], added to
  T* grad_product;       // [rows, grad_stride]
  int64_t grad_stride;
  double* grad_weights;  // [chunks, kActivations], added to; or null
};

// A state of the cell at one step of a window.
template <class A, class T>
struct CellNode {
  int64_t width;
  const CellEdge<A, T>* edges;
  int64_t count;
  A added;            // a number that is added to all values
  const A* mask;      // [rows, width], of what products read; or null
  A* state;           // [rows, width]
  T* masked;          // [rows, width]: state * mask
  // backward
  A* grad;            // [rows, width]: gradient of the state, in the end that before the norm
  const T* grad_masked;  // [rows, width]: gradient of `masked`; or null
};

template <class A, class T>
struct CellKernels {
  // state = sum of the edges + added; sums[width] of its columns
  void (*sum)(const CellNode<A, T>& node, int64_t lo, int64_t hi, A* sums);
  // sums[width] of (state - mean)^2
  void (*squares)(const CellNode<A, T>& node, int64_t lo, int64_t hi, const A* mean, A* sums);
  // state = (state - mean) * rstd, or state where mean is null; masked = state * mask
  void (*finish)(const CellNode<A, T>& node, int64_t lo, int64_t hi, const A* mean, const A* rstd);
  // out = mean of the states; masked = out * mask
  void (*average)(const A* const* states, int64_t count, int64_t width, const A* mask, A* out, T* masked, int64_t lo, int64_t hi);
  // grad of each state = (from_out + carried + product * mask) * scale[state], where scale is 0 or 1 / number of outputs; any of
  // carried and product may be null
  void (*spread)(const A* from_out, const A* carried, const T* product, const A* mask, A* const* grads, const A* scale,
                 int64_t count, int64_t width, int64_t lo, int64_t hi);
  // grad += grad_masked * mask; sums[2 width] of grad and of grad * state
  void (*grad_sums)(const CellNode<A, T>& node, int64_t lo, int64_t hi, A* sums);
  // grad = rstd * (grad - mean_g - state * mean_gs), each where not null; then the gradients of the edges. `chunk`: for grad_weights
  void (*backward)(const CellNode<A, T>& node, int64_t lo, int64_t hi, const A* rstd, const A* mean_g, const A* mean_gs,
                   int64_t chunk);
  // out = a * mask (mask [mask_rows, width], repeated; or null)
  void (*masked)(const A* a, const A* mask, int64_t mask_rows, int64_t width, T* out, int64_t lo, int64_t hi);
  // out = a * mask
  void (*unmasked)(const T* a, const A* mask, int64_t mask_rows, int64_t width, A* out, int64_t lo, int64_t hi);
  // Of each row of logits + bias: losses[row] = logsumexp - that of the target; with `gradients`, logits become
  // (softmax - onehot) * shares[row]
  void (*softmax)(T* logits, const A* bias, const int64_t* targets, int64_t columns, bool gradients, const A* shares, A* losses,
                  int64_t lo, int64_t hi);
};

// The table for this machine.
template <class A, class T>
const CellKernels<A, T>& cell_kernels();

}  // namespace fastdarts
