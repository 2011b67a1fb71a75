// What the scheduler (mixed_sum.cpp) hands to the tile kernels (tiles/): plain data, no PyTorch.
//
// T is the type tensors are stored in (float, double, bfloat16 as uint16_t), A the one everything is computed in (float,
// double). All kernel-side tensors are NHWC. "cp" is the channel count rounded up to 64 bytes of A; padding channels hold 0.
// A tile is a band of output rows of one image; tiles are numbered image by image.
#pragma once
#include <cstdint>

namespace fastdarts {

using bf16 = uint16_t;  // bit pattern

template <class T>
struct View {  // [N, H, W, C] with the channels dense
  T* data;
  int64_t sn, sh, sw;
};

struct Geometry {
  int64_t n, h, w;    // source state
  int64_t ho, wo;     // its edges' outputs: ceil(h / stride), ceil(w / stride)
  int64_t c, cp;
  int64_t stride;
  int64_t pad;        // of the padded source tile: the largest any branch needs
  int64_t rows;       // output rows of a tile
  int64_t bands;      // tiles of an image
};

template <class A>
struct Norm {  // a batch norm's numbers, [cp] each: of y it makes (y - mean) * scale + shift
  A *mean, *rstd;
  A *scale, *shift;  // rstd times its weight, and its bias; rstd and 0 where it learns none
};

// depthwise convolution -> pointwise convolution -> batch norm. kernel == 0 puts a gather in the place of the depthwise
// convolution: the pixel itself, or (k = 2 cp) also its lower right neighbour, for a factorised reduction.
template <class A, class T>
struct Stage {
  int64_t kernel, dilation, stride, pad;
  int64_t k;             // inner size of the pointwise product: cp, 2 cp for a factorised reduction
  int64_t used_k, used_c;  // k and cp without the padding at their ends
  const A* dw;           // [kernel * kernel, cp]
  const A* dw_flipped;   // the same, taps in reverse order; at stride 2 phase after phase, each phase's taps in reverse order
  const A* pw;           // [k, cp]
  const A* pw_t;         // [cp, k]
  const uint32_t *pw_pairs, *pw_t_pairs;  // the same as pairs of bfloat16 along the rows: [k / 2, cp], [cp / 2, k]
  T* y;                  // [n, ho, wo, cp]: what the batch norm sees
  Norm<A> norm;
  A *from_g, *from_y, *offset;  // [cp]: dy = from_g * g + from_y * (y - mean) + offset
  int64_t grad;          // where in a thread's gradient scratch: pw [k, cp], then dw [kernel * kernel, cp]
  double *chunk_mean, *chunk_m2;  // [chunks, cp]: moments of y, per chunk of tiles
  T* soon;               // the same as y in memory that stays in the cache until the next pass; or null
};

// Which taps of a stride-2 convolution join an input coordinate 2 i + odd to its outputs: tap `last` to output i + first, tap
// last - step to the next, and so on.
struct Phase {
  int64_t taps, first, last, step;
  __attribute__((always_inline)) Phase(int64_t kernel, int64_t dilation, int64_t pad, int64_t odd) {
    const int64_t tap = dilation == 1 ? (odd + pad) % 2 : 0;  // the first
    step = dilation == 1 ? 2 : 1;
    taps = dilation == 2 && odd ? 0 : (kernel - tap + step - 1) / step;
    last = tap + step * (taps - 1);
    first = (odd + pad - dilation * tap) / 2 - (taps - 1);
  }
};

template <class A, class T>
struct Branch {  // one convolutional candidate of one edge
  bool separable;      // two stages
  Stage<A, T> first, second;
  View<T> g;           // gradient of the node the edge enters
  const A* factors;    // [n, cp]: of the edge, an image's in all its lanes; null: 1
  T* dz;               // separable: [n, ho, wo, cp], gradient of what the relu between the stages sees
  double *chunk_dz, *chunk_dzy;  // [chunks, cp]: sums of dz and dz * (y - mean) where the relu passes
};

template <class A, class T>
struct Pools {  // the pools of a state, shared by all its edges; null y: not used
  T *max_y, *avg_y;    // [n, ho, wo, cp]
  double *max_mean, *max_m2, *avg_mean, *avg_m2;  // [chunks, cp]
  // backward: d pooled = sum_j from_g[j] * g_j + from_y * (y - mean) + offset
  int64_t edges;
  const View<T>* g;    // [edges]
  const A* const* factors;  // [edges]: see Branch
  const A *max_from_g, *avg_from_g;  // [edges, cp]
  const A *max_mean_a, *avg_mean_a, *max_from_y, *avg_from_y, *max_offset, *avg_offset;  // [cp]
};

template <class A, class T>
struct Bank {  // everything that leaves one state at one stride; a pass runs over the branches of one edge, or a few, at a time
  Geometry geo;
  View<const T> x;
  Branch<A, T>* branches;
  int64_t count;
  Pools<A, T> pools;
  bool starts, finishes;      // whether the bank's first edge is among these, and its last
  // backward
  bool need_params, need_x;
  A* dx_partial;              // [n, h, w, cp]: the sum over the edges so far; not used where all pass at once
  const View<T>* skip_g;      // [skips] stride-1 skip connections
  const A* skip_weight;       // [skips]
  const A* const* skip_factors;  // [skips]: see Branch
  int64_t skips;
  View<const T> g_before;     // gradient the state has from elsewhere; null data: none
  View<T> dx;                 // [n, h, w, c or cp]
  int64_t dx_channels;        // channels of dx to write
};

template <class A, class T>
struct Term {  // a tensor that enters a node, or is reduced against its gradient
  View<const T> t;
  int64_t channels;       // c where the tensor is a state, cp where it is scratch
  const A *scale, *mean;  // [cp]
  const A* factors;       // see Branch; of a sum's terms the first's are all's, and belong to g
  double* chunk_sum;      // [chunks, cp]: sum of g * (t - mean)
};

template <class A, class T>
struct Mix {  // node = sum of scale * (t - mean) + shift, or the sums of g * (t - mean)
  Geometry geo;  // of the node: h = ho, w = wo
  const Term<A, T>* terms;
  int64_t count;          // at least 1
  View<T> node;           // mix: written; term_sums: the gradient
  const A* shift;         // [cp], an image's shift_step after the one before: cp or 0
  int64_t shift_step;
  double* chunk_g;        // [chunks, cp]: sum of g
};

template <class A, class T>
struct Projection {  // relu -> 1x1 convolution (stride 1) or factorised reduction (stride 2) -> batch norm: a cell's preprocessing
  Geometry geo;                     // c, cp: of the output
  int64_t in_channels, in_padded;   // of x; stage.k = stride * in_padded
  View<const T> x;
  Stage<A, T> stage;
  View<const T> g;
  View<T> dx;
  bool need_params, need_x;
};

// Partial channels (bypass.h): what an edge lets pass its ops, or the gradient of that.
template <class A, class T>
struct Passage {
  View<const T> view;
  A factor;
  int64_t edge;
};

constexpr int64_t kFactorLanes = 16;  // sums of a factor's gradient, one a lane

template <class A, class T>
struct PartialRows {
  int64_t h, w, channels;         // of a node
  int64_t padded;                 // channels rounded up to 64 bytes of A
  int64_t images;                 // side by side in the lanes of `own`
  int64_t size, groups;           // channels that an op sees, and K
  int64_t step, state_h, state_w;  // the state; a pixel of a node belongs to step x step of its pixels
  const Passage<A, T>* terms;
  int64_t count;
  View<T> own;                    // the channels that the ops see, folded
  bool reached;                   // whether their gradient is there
  View<const T> whole;            // the state; for part_node the gradient from outside
  View<const T> passed;           // the state's channels that pass, of the nodes' size
  View<T> to;                     // what is made: a node, the channels or the gradient that pass, an input's gradient (or null)
};

template <class A, class T>
struct Kernels {
  bool pairs;  // whether pw_pairs and pw_t_pairs are read, in the place of pw and pw_t
  // Each works on tiles [lo, hi) as chunk number `chunk`; scratch, a thread's, holds what ScratchLayout says.
  void (*first_forward)(const Bank<A, T>&, int64_t lo, int64_t hi, int64_t chunk, A* scratch);
  void (*second_forward)(const Bank<A, T>&, int64_t lo, int64_t hi, int64_t chunk, A* scratch);
  void (*mix)(const Mix<A, T>&, int64_t lo, int64_t hi, int64_t chunk, A* scratch);
  void (*term_sums)(const Mix<A, T>&, int64_t lo, int64_t hi, int64_t chunk);
  void (*second_backward)(const Bank<A, T>&, int64_t lo, int64_t hi, int64_t chunk, A* scratch, A* grads);
  void (*first_backward)(const Bank<A, T>&, int64_t lo, int64_t hi, int64_t chunk, A* scratch, A* grads);
  // Scratch: three times a tile's pixels and twice kSparePixels, by the larger of k and cp.
  void (*project_forward)(const Projection<A, T>&, int64_t lo, int64_t hi, int64_t chunk, A* scratch);
  void (*project_backward)(const Projection<A, T>&, int64_t lo, int64_t hi, int64_t chunk, A* scratch, A* grads);
  // Rows [lo, hi) of all lines of images. Scratch: two rows and a pixel of `padded` channels.
  // factor_sums: [edges, kFactorLanes].
  using Rows = void(const PartialRows<A, T>&, int64_t lo, int64_t hi, A* scratch, double* factor_sums);
  Rows *pool_passing, *join, *part_node, *part_input;
};

// Products may round pixels up to whole registers, in one array or another.
constexpr int64_t kSparePixels = 48;

// A thread's scratch: the padded source, the padded gradient of depthwise outputs, a padded middle, depthwise outputs and their
// gradients, gradients of pointwise outputs, sums, rows of pools' windows, the source's gradient; each in elements of A.
struct ScratchLayout {
  int64_t source, middle, d, dy, sums, windows, dx;
  __attribute__((always_inline)) explicit ScratchLayout(const Geometry& g) {
    const int64_t reach = 2 * g.pad, out = g.rows * g.wo * g.cp;
    source = (g.stride * g.rows + reach) * (g.w + reach) * g.cp;
    middle = (g.rows + reach) * (g.wo + reach) * g.cp;
    d = 2 * out + kSparePixels * g.cp;
    dy = out;
    sums = 3 * g.cp;
    windows = 2 * 3 * g.wo * g.cp;
    dx = g.stride * g.rows * g.w * g.cp;
  }
  // The padded ones, which come first. They keep borders of zeros: whoever makes a scratch clears them, once.
  __attribute__((always_inline)) int64_t bordered() const { return source + 2 * middle; }
  __attribute__((always_inline)) int64_t total() const { return source + 2 * (middle + d) + dy + sums + windows + dx; }
};

// The kernels for this machine's instruction set, or the one FASTDARTS_CPU names (amx, avx512, avx2, portable).
template <class A, class T>
const Kernels<A, T>& kernels();

}  // namespace fastdarts
