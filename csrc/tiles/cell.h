// The recurrent cell: gates, candidates, activations and batch norm of a state in a few passes over rows.
#pragma once
#include "../cell.h"
#include "exponential.h"
#include "vectors.h"

namespace fastdarts::FASTDARTS_ISA {

// What an edge's activations make of h, and of its derivative.
template <class A>
struct Activated {
  Vec<A> value, slope;
};

// sum_k w_k f_k(h) and, with SLOPE, sum_k w_k f_k'(h). One exponential and one division serve tanh and sigmoid.
template <class A, bool EXPONENTIAL, bool SLOPE>
FD_INLINE Activated<A> activate(Vec<A> h, const A* w, Vec<A>* values) {
  const Vec<A> zero{}, positive = relu<A>(h);
  Activated<A> result{w[1] * positive + w[3] * h, zero + w[3]};
  if constexpr (SLOPE) result.slope += h > 0 ? zero + w[1] : zero;
  values[1] = positive;
  values[3] = h;
  if constexpr (EXPONENTIAL) {
    const Sigmoids<A> s = sigmoid_and_tanh<A>(h);
    result.value += w[0] * s.tanh + w[2] * s.sigmoid;
    if constexpr (SLOPE) result.slope += w[0] * (1 - s.tanh * s.tanh) + w[2] * (s.sigmoid * (1 - s.sigmoid));
    values[0] = s.tanh;
    values[2] = s.sigmoid;
  }
  return result;
}

template <class A>
FD_INLINE A total(const A* w) {
  return w[0] + w[1] + w[2] + w[3];
}

template <class A, bool EXPONENTIAL, class T>
FD_INLINE Vec<A> edge_value(const CellEdge<A, T>& e, int64_t row, int64_t c, int64_t width) {
  const T* product = e.product + row * e.stride;
  const Vec<A> s = load_channels<A, false>(e.state + row * width, c, width);
  const Vec<A> gate = sigmoid<A>(load_channels<A, false>(product, c, width));
  Vec<A> values[kActivations];
  const Vec<A> f = activate<A, EXPONENTIAL, false>(load_channels<A, false>(product + width, c, width), e.weights, values).value;
  const Vec<A> kept = total(e.weights) * s;
  return kept + gate * (f - kept);
}

template <class A, class T>
void cell_sum(const CellNode<A, T>& node, int64_t lo, int64_t hi, A* sums) {
  const int64_t width = node.width;
  for (int64_t row = lo; row < hi; ++row)
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      Vec<A> v = Vec<A>{} + node.added;
      for (int64_t i = 0; i < node.count; ++i) {
        const CellEdge<A, T>& e = node.edges[i];
        v += e.exponential ? edge_value<A, true>(e, row, c, width) : edge_value<A, false>(e, row, c, width);
      }
      store_channels<A, false>(node.state + row * width, v, c, width);
      store_channels<A, false>(sums, load_channels<A, false>(sums, c, width) + v, c, width);
    }
}

template <class A, class T>
void cell_squares(const CellNode<A, T>& node, int64_t lo, int64_t hi, const A* mean, A* sums) {
  const int64_t width = node.width;
  for (int64_t row = lo; row < hi; ++row)
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      const Vec<A> away = load_channels<A, false>(node.state + row * width, c, width) - load_channels<A, false>(mean, c, width);
      store_channels<A, false>(sums, load_channels<A, false>(sums, c, width) + away * away, c, width);
    }
}

template <class A, class T>
FD_INLINE void store_masked(T* masked, const A* mask, Vec<A> v, int64_t at, int64_t c, int64_t width) {
  if (mask) v *= load_channels<A, false>(mask + at, c, width);
  store_channels<A, false>(masked + at, v, c, width);
}

template <class A, class T>
void cell_finish(const CellNode<A, T>& node, int64_t lo, int64_t hi, const A* mean, const A* rstd) {
  const int64_t width = node.width;
  for (int64_t row = lo; row < hi; ++row) {
    const int64_t at = row * width;
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      Vec<A> v = load_channels<A, false>(node.state + at, c, width);
      if (mean) {
        v = (v - load_channels<A, false>(mean, c, width)) * load_channels<A, false>(rstd, c, width);
        store_channels<A, false>(node.state + at, v, c, width);
      }
      store_masked<A, T>(node.masked, node.mask, v, at, c, width);
    }
  }
}

template <class A, class T>
void cell_average(const A* const* states, int64_t count, int64_t width, const A* mask, A* out, T* masked, int64_t lo, int64_t hi) {
  const A share = A(1) / A(count);
  for (int64_t row = lo; row < hi; ++row) {
    const int64_t at = row * width;
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      Vec<A> v{};
      for (int64_t i = 0; i < count; ++i) v += load_channels<A, false>(states[i] + at, c, width);
      v *= share;
      store_channels<A, false>(out + at, v, c, width);
      store_masked<A, T>(masked, mask, v, at, c, width);
    }
  }
}

template <class A, class T>
void cell_spread(const A* from_out, const A* carried, const T* product, const A* mask, A* const* grads, const A* scale,
                 int64_t count, int64_t width, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; ++row) {
    const int64_t at = row * width;
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      Vec<A> v = load_channels<A, false>(from_out + at, c, width);
      if (carried) v += load_channels<A, false>(carried + at, c, width);
      if (product) {
        Vec<A> p = load_channels<A, false>(product + at, c, width);
        if (mask) p *= load_channels<A, false>(mask + at, c, width);
        v += p;
      }
      for (int64_t i = 0; i < count; ++i) store_channels<A, false>(grads[i] + at, v * scale[i], c, width);
    }
  }
}

template <class A, class T>
void cell_grad_sums(const CellNode<A, T>& node, int64_t lo, int64_t hi, A* sums) {
  const int64_t width = node.width;
  for (int64_t row = lo; row < hi; ++row) {
    const int64_t at = row * width;
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      Vec<A> g = load_channels<A, false>(node.grad + at, c, width);
      if (node.grad_masked) {
        Vec<A> p = load_channels<A, false>(node.grad_masked + at, c, width);
        if (node.mask) p *= load_channels<A, false>(node.mask + at, c, width);
        g += p;
        store_channels<A, false>(node.grad + at, g, c, width);
      }
      const Vec<A> gs = g * load_channels<A, false>(node.state + at, c, width);
      store_channels<A, false>(sums, load_channels<A, false>(sums, c, width) + g, c, width);
      store_channels<A, false>(sums + width, load_channels<A, false>(sums + width, c, width) + gs, c, width);
    }
  }
}

// Gradients through one edge, given that of the node, for a few rows.
template <class A, bool EXPONENTIAL, class T>
FD_INLINE void edge_backward(const CellEdge<A, T>& e, const A* grad, int64_t lo, int64_t hi, int64_t width, double* sums) {
  const A whole = total(e.weights);
  Vec<A> found[kActivations] = {};
  for (int64_t row = lo; row < hi; ++row) {
    const T* product = e.product + row * e.stride;
    T* grad_product = e.grad_product + row * e.grad_stride;
    A* grad_state = e.grad_state + row * width;
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      const Vec<A> g = load_channels<A, false>(grad + row * width, c, width);
      const Vec<A> s = load_channels<A, false>(e.state + row * width, c, width);
      const Vec<A> gate = sigmoid<A>(load_channels<A, false>(product, c, width));
      Vec<A> values[kActivations] = {};
      const Activated<A> f =
          activate<A, EXPONENTIAL, true>(load_channels<A, false>(product + width, c, width), e.weights, values);
      const Vec<A> through = g * gate;
      store_channels<A, false>(grad_product, through * (1 - gate) * (f.value - whole * s), c, width);
      store_channels<A, false>(grad_product + width, through * f.slope, c, width);
      store_channels<A, false>(grad_state, load_channels<A, false>(grad_state, c, width) + whole * (g - through), c, width);
      if (sums) {
        const Vec<A> kept = g * s - through * s;
        FD_UNROLL
        for (int k = 0; k < kActivations; ++k) found[k] += kept + through * values[k];
      }
    }
  }
  if (!sums) return;
  for (int k = 0; k < kActivations; ++k)
    for (int lane = 0; lane < kLanes<A>; ++lane) sums[k] += double(found[k][lane]);
}

constexpr int64_t kRowsOfSum = 8;  // before partial sums go from A to double

template <class A, class T>
void cell_backward(const CellNode<A, T>& node, int64_t lo, int64_t hi, const A* rstd, const A* mean_g, const A* mean_gs,
                   int64_t chunk) {
  const int64_t width = node.width;
  for (int64_t row = lo; rstd && row < hi; ++row) {
    const int64_t at = row * width;
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      Vec<A> g = load_channels<A, false>(node.grad + at, c, width);
      if (mean_g)
        g -= load_channels<A, false>(mean_g, c, width) +
             load_channels<A, false>(node.state + at, c, width) * load_channels<A, false>(mean_gs, c, width);
      store_channels<A, false>(node.grad + at, g * load_channels<A, false>(rstd, c, width), c, width);
    }
  }
  for (int64_t i = 0; i < node.count; ++i) {
    const CellEdge<A, T>& e = node.edges[i];
    double* sums = e.grad_weights ? e.grad_weights + chunk * kActivations : nullptr;
    for (int64_t row = lo; row < hi; row += kRowsOfSum) {
      const int64_t end = row + kRowsOfSum < hi ? row + kRowsOfSum : hi;
      if (e.exponential || sums)
        edge_backward<A, true>(e, node.grad, row, end, width, sums);
      else
        edge_backward<A, false>(e, node.grad, row, end, width, sums);
    }
  }
}

template <class A, class T>
void cell_masked(const A* a, const A* mask, int64_t mask_rows, int64_t width, T* out, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; ++row)
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      Vec<A> v = load_channels<A, false>(a + row * width, c, width);
      if (mask) v *= load_channels<A, false>(mask + row % mask_rows * width, c, width);
      store_channels<A, false>(out + row * width, v, c, width);
    }
}

template <class A, class T>
void cell_unmasked(const T* a, const A* mask, int64_t mask_rows, int64_t width, A* out, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; ++row)
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      Vec<A> v = load_channels<A, false>(a + row * width, c, width);
      if (mask) v *= load_channels<A, false>(mask + row % mask_rows * width, c, width);
      store_channels<A, false>(out + row * width, v, c, width);
    }
}

}  // namespace fastdarts::FASTDARTS_ISA
