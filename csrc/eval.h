// What the schedule of a cell in eval mode (eval_cell.cpp) hands to its kernels (tiles/eval.h): plain data, no PyTorch.
//
// Batch norms are part of the weights, so an image goes through a cell by itself, in a scratch that stays in the second-level
// cache. A and T as in tile.h; "cp" likewise is the number of channels c rounded up to 64 bytes of A.
#pragma once
#include <cstdint>

#include "tile.h"

namespace fastdarts {

// A state of one image, or what stands between the stages of a separable convolution.
template <class A>
struct EvalState {
  int64_t h, w, pad, c, cp;
  A* raw;     // [h, w, cp]; null between stages
  A* padded;  // relu of it, [h + 2 pad, w + 2 pad, cp], zeros around; null where no convolution reads it
};

template <class A, class T>
struct EvalInput {  // relu -> 1x1 convolution (stride 1) or factorised reduction (stride 2) -> batch norm: a cell's preprocessing
  View<const T> x;
  int64_t h, w, channels, stride;  // of x
  const A *pw, *bias;              // [stride * channels, cp], [cp]
};

template <class A>
struct EvalStage {  // depthwise convolution or gather, pointwise convolution and batch norm
  int64_t kernel, dilation, stride, pad;  // kernel == 0: a gather of `parts` pixels, see Stage
  int64_t parts;
  const A *dw, *pw;  // [kernel * kernel, cp], [parts * c, cp]
  const A* bias;     // [cp]: of a stage before another; the last stages' are the node's
};

enum class EvalKind { convolution, max_pool, avg_pool, skip };

template <class A>
struct EvalOp {
  EvalKind kind;
  int64_t source, node;     // states
  int64_t stride;
  bool separable;           // two stages
  EvalStage<A> first, second;
  const A* scale;           // [cp], of a pool
};

// Each works on rows [lo, hi) of what it makes. Scratch: EvalScratch::size.
template <class A, class T>
struct EvalKernels {
  void (*project)(const EvalInput<A, T>& from, const EvalState<A>& to, int64_t image, int64_t lo, int64_t hi, A* scratch);
  void (*fill)(const EvalState<A>& state, const A* bias, int64_t lo, int64_t hi);  // raw = bias
  void (*finish)(const EvalState<A>& state, int64_t lo, int64_t hi);               // padded = relu(raw)
  // The op's only stage, added to a node, or its first one, which makes `to`.
  void (*first)(const EvalOp<A>& op, const EvalState<A>& source, const EvalState<A>& to, int64_t lo, int64_t hi, A* scratch);
  void (*second)(const EvalOp<A>& op, const EvalState<A>& middle, const EvalState<A>& node, int64_t lo, int64_t hi, A* scratch);
  // `count` states, side by side in `out`.
  void (*store)(const EvalState<A>* states, int64_t count, const View<T>& out, bool past_caches, int64_t image, int64_t lo,
                int64_t hi, A* scratch);
};

// Strips of whole rows of some 64 pixels: few enough for the first-level cache, enough to use a weight several times.
struct EvalScratch {
  static constexpr int64_t kPixels = 64;
  static constexpr int64_t kInner = 160;  // the most channels of a projection's input that are multiplied at a time
  __attribute__((always_inline)) static int64_t rows(int64_t w) { return w < kPixels ? kPixels / w : 1; }
  // For outputs of up to `w` pixels a row, and a cell's output of up to `channels`.
  static int64_t size(int64_t w, int64_t cp, int64_t channels) {
    const int64_t pixels = w < kPixels ? kPixels : w, inner = 2 * cp < kInner ? kInner : 2 * cp;
    return (pixels + 1) * ((inner < channels ? channels : inner) + 64);
  }
};

// The table for this machine.
template <class A, class T>
const EvalKernels<A, T>& eval_kernels();

}  // namespace fastdarts
