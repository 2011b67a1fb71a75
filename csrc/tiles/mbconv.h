// Inverted bottlenecks (1x1 convolution, depthwise convolution, 1x1 convolution, each with a norm), an image at a time.
//
// The expanded image exists for one block of channels only, in a padded tile; the depthwise output d is what is kept.
#pragma once
#include "../mbconv.h"
#include "depthwise.h"
#include "moments.h"
#include "product.h"

namespace fastdarts::FASTDARTS_ISA {

template <class A>
FD_INLINE Vec<A> activated(Vec<A> v, A limit) {  // relu or relu6; NaN stays NaN
  v = relu<A>(v);
  return v > limit ? Vec<A>{} + limit : v;
}

// The gradient of an activation from its output; NaN lets it pass.
template <class A>
FD_INLINE Vec<A> behind_activation(Vec<A> out, Vec<A> gradient, A limit) {
  return (out <= 0) | (out >= limit) ? Vec<A>{} : gradient;
}

// y[p, :columns] = sum over k of d[p, k] * w[k, :columns], with the sizes of small images' layers known as well.
template <class A>
FD_INLINE void product_of_rows(const A* d, int64_t pixels, const A* w, int64_t k_size, int64_t columns, A* y) {
  if (k_size == 192)
    product_strided<A, A, 192, false>(d, pixels, k_size, 1, w, columns, columns, k_size, y, columns);
  else if (k_size == 112)
    product_strided<A, A, 112, false>(d, pixels, k_size, 1, w, columns, columns, k_size, y, columns);
  else
    pointwise<A, A>(d, pixels, w, k_size, k_size, columns, y, columns);
}

// x - mean in the type that is computed in, channels up to whole cache lines.
template <class A, class T>
void read_image(const T* x, const A* mean, int64_t pixels, int64_t c, int64_t cp, A* dense) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t at = 0; at < cp; at += kLanes<A>) {
      const Vec<A> v = at < c ? load_channels<A, false>(x + p * c, at, c) : Vec<A>{};
      store(dense + p * cp + at, v - load<A>(mean + at));
    }
}

template <class A>
void image_sums(const A* y, int64_t pixels, int64_t cp, A* sums) {
  sum_strip<A>(y, pixels, cp, sums, [](int64_t, Vec<A>) FD_LAMBDA {});
}

// products[i, j] += sum over pixels of x_i x_j
template <class A>
void outer_products(const A* dense, int64_t pixels, int64_t cp, A* products) {
  pointwise_weight_grad<A, A>(dense, pixels, dense, cp, cp, cp, products);
}

// act(norm(1x1 convolution)) of a block of channels, inside the borders of a padded tile; `strip` [kStripPixels + w, mb].
template <class A>
FD_INLINE void fill_expanded(const Bottleneck<A>& b, const LayerShape& s, const A* dense, int64_t block, A* strip, A* tile) {
  const int64_t row = (s.w + 2 * s.pad) * b.mb, together = s.w < kStripPixels ? kStripPixels / s.w : 1;
  const A *weights = b.expand + block * s.cp * b.mb, *bias = b.bias + block * b.mb, limit = A(s.limit);
  for (int64_t first = 0; first < s.h; first += together) {
    const int64_t rows = first + together < s.h ? together : s.h - first;
    product_of_rows(dense + first * s.w * s.cp, rows * s.w, weights, s.cp, b.mb, strip);
    for (int64_t r = 0; r < rows; ++r) {
      const A* from = strip + r * s.w * b.mb;
      A* to = tile + (first + r + s.pad) * row + s.pad * b.mb;
      for (int64_t c = 0; c < b.mb; c += kLanes<A>) {
        const Vec<A> shift = load<A>(bias + c);
        for (int64_t p = c; p < s.w * b.mb; p += b.mb) store(to + p, activated<A>(load<A>(from + p) + shift, limit));
      }
    }
  }
}

// Where the taps of a candidate's first output pixel begin in a tile that is padded for the largest kernel.
template <class A>
FD_INLINE int64_t first_tap(const Bottleneck<A>& b, const LayerShape& s) {
  return (s.pad - b.kernel / 2) * ((s.w + 2 * s.pad) + 1) * b.mb;
}

// d of a block of channels to `out`, and its sums; d has room for the strip of `fill_expanded`, too.
template <class A, class T>
void expand_forward(const Bottleneck<A>& b, const LayerShape& s, const A* dense, int64_t block, A* tile, A* d, T* out, A* sums) {
  fill_expanded(b, s, dense, block, d, tile);
  const auto run = s.stride == 1 ? depthwise<A, 1, false>(b.kernel, 1, b.mb) : depthwise<A, 2, false>(b.kernel, 1, b.mb);
  run(tile + first_tap(b, s), (s.w + 2 * s.pad) * b.mb, b.taps + block * b.kernel * b.kernel * b.mb, d, s.wo * b.mb, s.ho, s.wo, b.mb);
  sum_strip<T>(d, s.out_pixels(), b.mb, sums, [&](int64_t i, Vec<A> v) FD_LAMBDA { stream(out + i, v); });
}

// h = act(norm(d)) of pixels [first, first + count), block by block: [mp / mb][count][mb].
template <class A, class T>
FD_INLINE void fill_hidden(const Bottleneck<A>& b, const LayerShape& s, const T* d, int64_t first, int64_t count, A* h) {
  const int64_t pixels = s.out_pixels();
  const A limit = A(s.limit);
  for (int64_t m = 0; m < b.mp; m += kLanes<A>) {
    const Vec<A> scale = load<A>(b.scale + m), shift = load<A>(b.shift + m), mean = load<A>(b.mean + m);
    const int64_t block = m / b.mb, lane = m % b.mb;
    const T* from = d + (block * pixels + first) * b.mb + lane;
    A* to = h + block * count * b.mb + lane;
    for (int64_t p = 0; p < count * b.mb; p += b.mb)
      store(to + p, activated<A>((load<A>(from + p) - mean) * scale + shift, limit));
  }
}

// y[p, :columns] (+)= sum over the channels of a block of h[p, k] * w[k, :columns]
template <class A, bool ADD>
FD_INLINE void product_of_block(const A* h, int64_t pixels, const A* w, int64_t mb, int64_t columns, A* y) {
  with_known<A, A>(mb, [&](auto known) FD_LAMBDA {
    product_strided<A, A, known.value, ADD>(h, pixels, mb, 1, w, columns, columns, mb, y, columns);
  });
}

template <class F>
FD_INLINE void over_pixel_strips(int64_t pixels, const F& f) {
  for (int64_t first = 0; first < pixels; first += kStripPixels)
    f(first, first + kStripPixels < pixels ? kStripPixels : pixels - first);
}

template <class A, class T>
void project_forward_image(const Bottleneck<A>& b, const LayerShape& s, const T* d, A* h, A* y) {
  over_pixel_strips(s.out_pixels(), [&](int64_t first, int64_t count) FD_LAMBDA {
    fill_hidden(b, s, d, first, count, h);
    A* to = y + first * s.op;
    product_of_block<A, false>(h, count, b.project, b.mb, s.op, to);
    for (int64_t block = 1; block < b.blocks(); ++block)
      product_of_block<A, true>(h + block * count * b.mb, count, b.project + block * b.mb * s.op, b.mb, s.op, to);
  });
}

// out = shortcut + shift + sum of scale * (y - mean)
template <class A, class T>
void mix_image(const A* const* ys, const A* const* means, const A* const* scales, int64_t count, const A* shift,
               const A* shortcut, int64_t pixels, int64_t o, int64_t op, T* out) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < op; c += kLanes<A>) {
      Vec<A> sum = load<A>(shift + c);
      if (shortcut) sum += load<A>(shortcut + p * op + c);
      for (int64_t i = 0; i < count; ++i) sum += load<A>(scales[i] + c) * (load<A>(ys[i] + p * op + c) - load<A>(means[i] + c));
      store_channels<A, false>(out + p * o, sum, c, o);
    }
}

template <class A>
void gradient_sums(const A* g, const A* y, const A* mean, int64_t pixels, int64_t op, double* sum_g, double* sum_gy) {
  for (int64_t c = 0; c < op; c += kLanes<A>) {
    const Vec<A> origin = load<A>(mean + c);
    Vec<A> sum[2] = {}, product[2] = {};
    for (int64_t p = 0; p < pixels; ++p) {
      const Vec<A> gradient = load<A>(g + p * op + c);
      sum[p % 2] += gradient;
      product[p % 2] += gradient * (load<A>(y + p * op + c) - origin);
    }
    add_lanes<A>(sum_g + c, sum[0] + sum[1]);
    add_lanes<A>(sum_gy + c, product[0] + product[1]);
  }
}

template <class A>
FD_INLINE Vec<A> through_norm(const NormBack<A>& n, Vec<A> g, Vec<A> y, int64_t c) {
  return load<A>(n.from_g + c) * g + load<A>(n.from_y + c) * (y - load<A>(n.mean + c)) + load<A>(n.offset + c);
}

// dn2, the gradient of the second norm's output, [mp / mb][pixels][mb]; its sums, and the projection's weight gradient.
template <class A, class T>
void project_backward_image(const Bottleneck<A>& b, const LayerShape& s, const NormBack<A>& norm, const T* d, const A* g, const A* y,
                            const ProjectBack<A>& to, A* dn) {
  const int64_t pixels = s.out_pixels();
  const A limit = A(s.limit);
  over_pixel_strips(pixels, [&](int64_t first, int64_t count) FD_LAMBDA {
    fill_hidden(b, s, d, first, count, to.h);
    for (int64_t p = 0; p < count; ++p)
      for (int64_t c = 0; c < s.op; c += kLanes<A>) {
        const int64_t at = (first + p) * s.op + c;
        store(to.dy + p * s.op + c, through_norm(norm, load<A>(g + at), load<A>(y + at), c));
      }
    for (int64_t block = 0; block < b.blocks(); ++block) {
      const A* h = to.h + block * count * b.mb;
      if (to.weight) pointwise_weight_grad<A, A>(h, count, to.dy, s.op, b.mb, b.mb, to.weight + block * b.mb * s.op);
      product_of_rows<A>(to.dy, count, b.project_back + block * s.op * b.mb, s.op, b.mb, to.dh);
      const T* from = d + (block * pixels + first) * b.mb;
      A* out = dn + (block * pixels + first) * b.mb;
      for (int64_t c = 0; c < b.mb; c += kLanes<A>) {
        const int64_t m = block * b.mb + c;
        const Vec<A> mean = load<A>(b.mean + m);
        Vec<A> sum = load<A>(to.sums + m), product = load<A>(to.sums + b.mp + m);
        for (int64_t p = 0; p < count; ++p) {
          const Vec<A> v = behind_activation<A>(load<A>(h + p * b.mb + c), load<A>(to.dh + p * b.mb + c), limit);
          store(out + p * b.mb + c, v);
          sum += v;
          product += v * (load<A>(from + p * b.mb + c) - mean);
        }
        store(to.sums + m, sum);
        store(to.sums + b.mp + m, product);
      }
    }
  });
}

// Gradients of a block of channels: of the taps, of the 1x1 convolution (dn1 x' and the sum of dn1), and dx as far as it is linear
// in dn1.
template <class A, class T>
void expand_backward_image(const Bottleneck<A>& b, const LayerShape& s, const NormBack<A>& norm, const A* dense, const T* d,
                           const A* dn, int64_t block, const ExpandBack<A>& to) {
  const int64_t row = (s.w + 2 * s.pad) * b.mb, taps = b.kernel * b.kernel * b.mb, at = block * b.mb;
  const bool strided = s.stride != 1;
  fill_expanded(b, s, dense, block, to.grad, to.tile);
  for (int64_t c = 0; c < b.mb; c += kLanes<A>)
    for (int64_t r = 0; r < s.ho; ++r) {
      A* into = to.grad_tile + (s.stride * r + s.pad) * row + s.pad * b.mb + c;
      for (int64_t p = 0; p < s.wo; ++p) {
        const int64_t i = (r * s.wo + p) * b.mb + c;
        const Vec<A> v = through_norm(norm, load<A>(dn + i), load<A>(d + i), at + c);
        store(into + s.stride * p * b.mb, v);
        if (strided) store(to.dense_grad + i, v);
      }
    }
  const A *tile = to.tile + first_tap(b, s), *inside = to.grad_tile + s.pad * row + s.pad * b.mb;
  if (to.weights) {
    if (strided)
      depthwise_weight<A, 2>(b.kernel, 1, b.mb)(tile, row, to.dense_grad, s.wo * b.mb, to.taps, s.ho, s.wo, b.mb);
    else
      depthwise_weight<A, 1>(b.kernel, 1, b.mb)(tile, row, inside, row, to.taps, s.ho, s.wo, b.mb);
  }
  // The gradient stands at every stride-th pixel of its tile, zeros between.
  depthwise<A, 1, false>(b.kernel, 1, b.mb)(to.grad_tile + first_tap(b, s), row, b.taps_flipped + block * taps, to.grad, s.w * b.mb,
                                            s.h, s.w, b.mb);
  const A limit = A(s.limit);
  for (int64_t c = 0; c < b.mb; c += kLanes<A>) {
    Vec<A> sum = load<A>(to.sum + c);
    for (int64_t r = 0; r < s.h; ++r) {
      const A* out = to.tile + (r + s.pad) * row + s.pad * b.mb + c;
      A* g = to.grad + r * s.w * b.mb + c;
      for (int64_t p = 0; p < s.w * b.mb; p += b.mb) {
        const Vec<A> v = behind_activation<A>(load<A>(out + p), load<A>(g + p), limit);
        store(g + p, v);
        sum += v;
      }
    }
    store(to.sum + c, sum);
  }
  pointwise_weight_grad<A, A>(dense, s.pixels(), to.grad, b.mb, s.cp, s.cp, to.outer);
  product_of_block<A, true>(to.grad, s.pixels(), b.expand_back + at * s.cp, b.mb, s.cp, to.dx);
}

// out = dx - x matrix + constant + shortcut
template <class A, class T>
void finish_image(const A* dense, const A* matrix, const A* constant, const A* dx, const A* shortcut, int64_t pixels, int64_t c,
                  int64_t cp, A* strip, T* out) {
  over_pixel_strips(pixels, [&](int64_t first, int64_t count) FD_LAMBDA {
    product_of_rows(dense + first * cp, count, matrix, cp, cp, strip);
    for (int64_t p = 0; p < count; ++p)
      for (int64_t i = 0; i < cp; i += kLanes<A>) {
        const int64_t at = (first + p) * cp + i;
        Vec<A> v = load<A>(dx + at) - load<A>(strip + p * cp + i) + load<A>(constant + i);
        if (shortcut) v += load<A>(shortcut + at);
        store_channels<A, false>(out + (first + p) * c, v, i, c);
      }
  });
}

}  // namespace fastdarts::FASTDARTS_ISA
