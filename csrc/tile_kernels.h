// The tile kernels (tiles/), written once with vector extensions and compiled once per instruction set: tile_<isa>.cpp includes
// isa/<isa>.h, which sets the target and defines FASTDARTS_ISA (a namespace) and more, and this file. FASTDARTS_BF16_DOT says that
// the target multiplies pairs of bfloat16 (AVX512-BF16), which the bfloat16 kernels then use for their products, FASTDARTS_AMX that
// it multiplies them in tile registers, which they then use instead.
#include "tiles/backward.h"
#include "tiles/bypass.h"
#include "tiles/forward.h"
#include "tiles/node.h"
#include "tiles/projection.h"

namespace fastdarts::FASTDARTS_ISA {

template <class A, class T>
constexpr Kernels<A, T> table() {
  return {kDots<T>, first_forward<A, T>, second_forward<A, T>, mix<A, T>, term_sums<A, T>, second_backward<A, T>,
          first_backward<A, T>, project_forward<A, T>, project_backward<A, T>, pool_passing<A, T>, join<A, T>, part_node<A, T>,
          part_input<A, T>};
}

extern const Kernels<float, bf16> kernels_bf16 = table<float, bf16>();
#if !FASTDARTS_BF16_DOT
extern const Kernels<float, float> kernels_f32 = table<float, float>();
extern const Kernels<double, double> kernels_f64 = table<double, double>();
#endif

}  // namespace fastdarts::FASTDARTS_ISA
