// The kernels of inverted bottlenecks, written once with vector extensions and compiled once per instruction set: mbconv_<isa>.cpp
// includes isa/<isa>.h, which sets the target, and this file.
#include "tiles/mbconv.h"

namespace fastdarts::FASTDARTS_ISA {

template <class A, class T>
constexpr MbconvKernels<A, T> mbconv_table() {
  return {read_image<A, T>,
          image_sums<A>,
          outer_products<A>,
          expand_forward<A, T>,
          project_forward_image<A, T>,
          mix_image<A, T>,
          gradient_sums<A>,
          project_backward_image<A, T>,
          expand_backward_image<A, T>,
          finish_image<A, T>};
}

extern const MbconvKernels<float, float> mbconv_f32 = mbconv_table<float, float>();
extern const MbconvKernels<float, bf16> mbconv_bf16 = mbconv_table<float, bf16>();
extern const MbconvKernels<double, double> mbconv_f64 = mbconv_table<double, double>();

}  // namespace fastdarts::FASTDARTS_ISA
