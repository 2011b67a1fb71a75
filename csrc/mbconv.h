// What the schedule of a layer of inverted bottlenecks (mbconv.cpp) hands to its kernels (tiles/mbconv.h): plain structs, no PyTorch.
#pragma once
#include <cstdint>

#include "tile.h"

namespace fastdarts {

// A layer: x [h, w, c] of an image to [ho, wo, o]. cp and op are c and o up to whole cache lines, `pad` is that of the largest kernel.
struct LayerShape {
  int64_t h, w, ho, wo, c, cp, o, op, stride, pad;
  double limit;  // of the activation: 6, or infinity

  int64_t pixels() const { return h * w; }
  int64_t out_pixels() const { return ho * wo; }
};

// A candidate: `mp` channels inside (up to whole blocks), `mb` of them at a time.
template <class A>
struct Bottleneck {
  int64_t kernel, m, mp, mb;
  A *expand, *bias;        // [mp / mb][cp][mb], [mp]: the 1x1 convolution with its norm in it
  A* expand_back;          // [mp][cp]
  A *taps, *taps_flipped;  // [mp / mb][kernel * kernel][mb]
  A *mean, *scale, *shift;  // [mp] of the second norm
  A *project, *project_back;  // [mp][op], [mp / mb][op][mb]

  int64_t blocks() const { return mp / mb; }
};

// dy = from_g * g + from_y * (y - mean) + offset: a norm's backward, channel by channel.
template <class A>
struct NormBack {
  A *mean, *from_g, *from_y, *offset;
};

// A thread's scratch and sums in the backward of one block of channels.
template <class A>
struct ExpandBack {
  A *tile, *grad_tile, *grad;  // padded e, padded dd, de
  A* dense_grad;               // dd [ho * wo, mb] where the stride is 2
  A *taps, *outer, *sum;       // gradients: [kernel * kernel][mb], [cp][mb], and the sum of dn1 [mb]
  A* dx;                       // [h * w, cp], added to
  bool weights;                // whether taps and outer are wanted
};

template <class A>
struct ProjectBack {
  A *h, *dy, *dh;       // strips
  A *weight, *sums;     // gradients: [mp][op] or null; [2 (dn2, dn2 * (d - mean))][mp]
};

template <class A, class T>
struct MbconvKernels {
  void (*read)(const T* x, const A* mean, int64_t pixels, int64_t c, int64_t cp, A* dense);
  void (*sums)(const A* y, int64_t pixels, int64_t cp, A* sums);
  void (*outer)(const A* dense, int64_t pixels, int64_t cp, A* products);
  void (*expand)(const Bottleneck<A>&, const LayerShape&, const A* dense, int64_t block, A* tile, A* d, T* out, A* sums);
  void (*project)(const Bottleneck<A>&, const LayerShape&, const T* d, A* h, A* y);
  void (*mix)(const A* const* ys, const A* const* means, const A* const* scales, int64_t count, const A* shift,
              const A* shortcut, int64_t pixels, int64_t o, int64_t op, T* out);
  void (*grad_sums)(const A* g, const A* y, const A* mean, int64_t pixels, int64_t op, double* sum_g, double* sum_gy);
  void (*project_back)(const Bottleneck<A>&, const LayerShape&, const NormBack<A>&, const T* d, const A* g, const A* y,
                       const ProjectBack<A>&, A* dn);
  void (*expand_back)(const Bottleneck<A>&, const LayerShape&, const NormBack<A>&, const A* dense, const T* d, const A* dn,
                      int64_t block, const ExpandBack<A>&);
  void (*finish)(const A* dense, const A* matrix, const A* constant, const A* dx, const A* shortcut, int64_t pixels, int64_t c,
                 int64_t cp, A* strip, T* out);
};

template <class A, class T>
const MbconvKernels<A, T>& mbconv_kernels();

constexpr int64_t kStripPixels = 32;  // of products that go from strip to strip

}  // namespace fastdarts
