// Weights between the layouts of parameters and those that the tile kernels read.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "schedule.h"
#include "tile.h"

namespace fastdarts {

// Channels in a vector's lanes: those of images side by side (fold.h), and zeros up to whole cache lines.
struct Lanes {
  int64_t channels, used, padded;

  // body(first lane) for the images that stand side by side: the same weights for each.
  template <class F>
  void over_images(const F& body) const {
    for (int64_t at = 0; at < used; at += channels) body(at);
  }
};

// A matrix [rows, columns] as pairs of bfloat16 along its (even number of) rows: [rows / 2, columns].
template <class A>
void pack_pairs(const A* matrix, int64_t rows, int64_t columns, uint32_t* out) {
  const auto bits = [](A v) { return uint32_t(c10::BFloat16(float(v)).x); };
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t c = 0; c < columns; ++c)
      *out++ = bits(matrix[r * columns + c]) | bits(matrix[(r + 1) * columns + c]) << 16;
}

// The taps of a stride-2 stage, phase after phase.
template <class A, class T>
void pack_phases(const Lanes& lanes, const Stage<A, T>& s, A* flipped) {
  for (int64_t part = 0; part < 4; ++part) {
    const Phase down(s.kernel, s.dilation, s.pad, part / 2), across(s.kernel, s.dilation, s.pad, part % 2);
    for (int64_t i = 0; i < down.taps * across.taps; ++i, flipped += lanes.padded) {
      const int64_t ky = down.last - down.step * (i / across.taps), kx = across.last - across.step * (i % across.taps);
      std::copy(s.dw + (ky * s.kernel + kx) * lanes.padded, s.dw + (ky * s.kernel + kx + 1) * lanes.padded, flipped);
    }
  }
}

template <class A, class T>
void pack_depthwise(const Lanes& lanes, const Stage<A, T>& s, const at::Tensor& depthwise) {
  const A* d = pointer<A>(depthwise);
  const int64_t taps = s.kernel * s.kernel;
  A *dw = const_cast<A*>(s.dw), *flipped = const_cast<A*>(s.dw_flipped);
  if (lanes.used < lanes.padded) std::fill(dw, dw + taps * lanes.padded, A(0));
  lanes.over_images([&](int64_t at) {
    for (int64_t c = 0; c < lanes.channels; ++c)
      for (int64_t tap = 0; tap < taps; ++tap) dw[tap * lanes.padded + at + c] = d[c * taps + tap];
  });
  if (flipped && s.stride == 1)
    for (int64_t tap = 0; tap < taps; ++tap) std::copy_n(dw + tap * lanes.padded, lanes.padded, flipped + (taps - 1 - tap) * lanes.padded);
  if (flipped && s.stride == 2) pack_phases(lanes, s, flipped);
}

template <class A, class T>
void pack_pointwise(const Lanes& lanes, const Stage<A, T>& s, const at::Tensor& pointwise) {
  const A* p = pointer<A>(pointwise);
  const bool partly = lanes.channels < lanes.padded;  // the rest are zeros
  if (A* pw = const_cast<A*>(s.pw)) {
    if (partly) std::fill(pw, pw + s.k * lanes.padded, A(0));
    lanes.over_images([&](int64_t at) {
      for (int64_t o = 0; o < lanes.channels; ++o)
        for (int64_t i = 0; i < lanes.channels; ++i) pw[(at + i) * lanes.padded + at + o] = p[o * lanes.channels + i];
    });
  }
  if (A* pw_t = const_cast<A*>(s.pw_t)) {
    if (partly) std::fill(pw_t, pw_t + s.k * lanes.padded, A(0));
    lanes.over_images([&](int64_t at) {
      for (int64_t o = 0; o < lanes.channels; ++o) std::copy_n(p + o * lanes.channels, lanes.channels, pw_t + (at + o) * s.k + at);
    });
  }
}

// A factorised reduction as one product: the first half of the outputs from one pixel, the second from its neighbour.
template <class A, class T>
void pack_reduction(const Lanes& lanes, const Stage<A, T>& s, const at::Tensor& conv_1, const at::Tensor& conv_2) {
  const int64_t half = lanes.channels / 2;
  A *pw = const_cast<A*>(s.pw), *pw_t = const_cast<A*>(s.pw_t);
  if (pw) std::fill(pw, pw + s.k * lanes.padded, A(0));
  if (pw_t) std::fill(pw_t, pw_t + s.k * lanes.padded, A(0));
  for (int64_t part = 0; part < 2; ++part) {
    const A* p = pointer<A>(part ? conv_2 : conv_1);
    lanes.over_images([&](int64_t at) {
      for (int64_t o = 0; o < half; ++o)
        for (int64_t i = 0; i < lanes.channels; ++i) {
          if (pw) pw[(part * lanes.padded + at + i) * lanes.padded + at + part * half + o] = p[o * lanes.channels + i];
          if (pw_t) pw_t[(at + part * half + o) * s.k + part * lanes.padded + at + i] = p[o * lanes.channels + i];
        }
    });
  }
}

// A stage's weight gradients, [s.k + taps, padded] at `grads`, into the layouts of its parameters: depthwise and pointwise, the two
// halves of a factorised reduction, or a pointwise convolution's one.
template <class A, class T>
void collect_stage(const Lanes& lanes, const Stage<A, T>& s, const A* grads, const at::Tensor* params) {
  const auto sum = [&](int64_t first, int64_t step) {  // step: from a lane's number to the next one's
    A total = 0;
    lanes.over_images([&](int64_t at) { total += grads[first + at * step]; });
    return total;
  };
  const int64_t taps = s.kernel * s.kernel, diagonal = lanes.padded + 1;
  if (s.k > lanes.padded) {
    const int64_t half = lanes.channels / 2;
    for (int64_t o = 0; o < lanes.channels; ++o) {
      A* row = pointer<A>(params[o / half]) + o % half * lanes.channels;
      for (int64_t i = 0; i < lanes.channels; ++i) row[i] = sum((o / half * lanes.padded + i) * lanes.padded + o, diagonal);
    }
    return;
  }
  A* pw = pointer<A>(params[s.kernel ? 1 : 0]);
  for (int64_t i = 0; i < lanes.channels; ++i)
    for (int64_t o = 0; o < lanes.channels; ++o) pw[o * lanes.channels + i] = sum(i * lanes.padded + o, diagonal);
  if (!s.kernel) return;
  A* dw = pointer<A>(params[0]);
  for (int64_t c = 0; c < lanes.channels; ++c)
    for (int64_t tap = 0; tap < taps; ++tap) dw[c * taps + tap] = sum((s.k + tap) * lanes.padded + c, 1);
}

}  // namespace fastdarts
