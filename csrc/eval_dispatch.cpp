// Chooses the kernels of a cell in eval mode for the machine at hand, as dispatch.cpp does for the tile kernels.
#include "eval.h"
#include "dispatch.h"

namespace fastdarts {

#define FASTDARTS_DECLARE(isa)                          \
  namespace isa {                                       \
  extern const EvalKernels<float, float> eval_f32;      \
  extern const EvalKernels<float, bf16> eval_bf16;      \
  extern const EvalKernels<double, double> eval_f64;    \
  }
FASTDARTS_DECLARE(portable)
#if defined(__x86_64__)
FASTDARTS_DECLARE(avx2)
FASTDARTS_DECLARE(avx512)
#endif

template <>
const EvalKernels<float, float>& eval_kernels<float, float>() {
  FASTDARTS_PICK(eval_f32)
}
template <>
const EvalKernels<float, bf16>& eval_kernels<float, bf16>() {
  FASTDARTS_PICK(eval_bf16)
}
template <>
const EvalKernels<double, double>& eval_kernels<double, double>() {
  FASTDARTS_PICK(eval_f64)
}

}  // namespace fastdarts
