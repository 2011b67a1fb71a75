// The loss of rows of logits, and its gradient in their place.
#pragma once
#include "../cell.h"
#include "exponential.h"
#include "vectors.h"

namespace fastdarts::FASTDARTS_ISA {

template <class A>
FD_INLINE A largest_lane(Vec<A> v) {
  A found = v[0];
  for (int i = 1; i < kLanes<A>; ++i) found = v[i] > found || v[i] != v[i] ? v[i] : found;
  return found;
}

template <class A>
FD_INLINE double sum_of_lanes(Vec<A> v) {
  double sum = 0;
  for (int i = 0; i < kLanes<A>; ++i) sum += double(v[i]);
  return sum;
}

// exp(x - largest) for x not above it; those that a sum with 1 would not show are as small as they may be.
template <class A>
FD_INLINE Vec<A> below_one(Vec<A> x) {
  return exponential(between<A>(x, A(-86), A(86)));
}

template <class A, class T>
FD_INLINE Vec<A> biased(const T* row, const A* bias, int64_t c, int64_t columns) {
  return load_channels<A, false>(row, c, columns) + load_channels<A, false>(bias, c, columns);
}

template <class A, class T>
void row_softmax(T* logits, const A* bias, const int64_t* targets, int64_t columns, bool gradients, const A* shares, A* losses,
                 int64_t lo, int64_t hi) {
  const int64_t full = columns / kLanes<A> * kLanes<A>;
  for (int64_t row = lo; row < hi; ++row) {
    T* x = logits + row * columns;
    Vec<A> best = Vec<A>{} + (load_part<A>(x, 1)[0] + bias[0]);
    for (int64_t c = 0; c < full; c += kLanes<A>) best = larger<A>(biased(x, bias, c, columns), best);
    A top = largest_lane<A>(best);
    for (int64_t c = full; c < columns; ++c) {
      const A v = load_part<A>(x + c, 1)[0] + bias[c];
      top = v > top || v != v ? v : top;
    }
    double sum = 0;
    for (int64_t c = 0; c < full; c += 8 * kLanes<A>) {
      Vec<A> part{};
      for (int64_t i = c; i < full && i < c + 8 * kLanes<A>; i += kLanes<A>) part += below_one<A>(biased(x, bias, i, columns) - top);
      sum += sum_of_lanes<A>(part);
    }
    for (int64_t c = full; c < columns; ++c) sum += double(below_one<A>(Vec<A>{} + (load_part<A>(x + c, 1)[0] + bias[c] - top))[0]);
    const int64_t target = targets[row];
    const A at_target = load_part<A>(x + target, 1)[0] + bias[target];
    losses[row] = A(__builtin_log(sum) + double(top) - double(at_target));
    if (!gradients) continue;
    const A scale = shares[row], share = scale / A(sum);
    for (int64_t c = 0; c < columns; c += kLanes<A>)
      store_channels<A, false>(x, below_one<A>(biased(x, bias, c, columns) - top) * share, c, columns);
    store_part<A>(x + target, load_part<A>(x + target, 1) - scale, 1);
  }
}

}  // namespace fastdarts::FASTDARTS_ISA
