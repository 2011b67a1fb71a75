// Chooses the kernels of inverted bottlenecks for the machine at hand, as dispatch.cpp does for the tile kernels.
#include "mbconv.h"
#include "dispatch.h"

namespace fastdarts {

#define FASTDARTS_DECLARE(isa)                          \
  namespace isa {                                       \
  extern const MbconvKernels<float, float> mbconv_f32;      \
  extern const MbconvKernels<float, bf16> mbconv_bf16;      \
  extern const MbconvKernels<double, double> mbconv_f64;    \
  }
FASTDARTS_DECLARE(portable)
#if defined(__x86_64__)
FASTDARTS_DECLARE(avx2)
FASTDARTS_DECLARE(avx512)
#endif

template <>
const MbconvKernels<float, float>& mbconv_kernels<float, float>() {
  FASTDARTS_PICK(mbconv_f32)
}
template <>
const MbconvKernels<float, bf16>& mbconv_kernels<float, bf16>() {
  FASTDARTS_PICK(mbconv_bf16)
}
template <>
const MbconvKernels<double, double>& mbconv_kernels<double, double>() {
  FASTDARTS_PICK(mbconv_f64)
}

}  // namespace fastdarts
