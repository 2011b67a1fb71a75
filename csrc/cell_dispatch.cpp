// Chooses the kernels of the recurrent cell for the machine at hand, as dispatch.cpp does for the tile kernels.
#include "cell.h"
#include "dispatch.h"

namespace fastdarts {

#define FASTDARTS_DECLARE(isa)                          \
  namespace isa {                                       \
  extern const CellKernels<float, float> cell_f32;      \
  extern const CellKernels<float, bf16> cell_bf16;      \
  extern const CellKernels<double, double> cell_f64;    \
  }
FASTDARTS_DECLARE(portable)
#if defined(__x86_64__)
FASTDARTS_DECLARE(avx2)
FASTDARTS_DECLARE(avx512)
#endif

template <>
const CellKernels<float, float>& cell_kernels<float, float>() {
  FASTDARTS_PICK(cell_f32)
}
template <>
const CellKernels<float, bf16>& cell_kernels<float, bf16>() {
  FASTDARTS_PICK(cell_bf16)
}
template <>
const CellKernels<double, double>& cell_kernels<double, double>() {
  FASTDARTS_PICK(cell_f64)
}

}  // namespace fastdarts
