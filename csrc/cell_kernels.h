// The kernels of the recurrent cell and of the loss, written once with vector extensions and compiled once per instruction set:
// cell_<isa>.cpp includes isa/<isa>.h, which sets the target, and this file.
#include "tiles/cell.h"
#include "tiles/softmax.h"

namespace fastdarts::FASTDARTS_ISA {

template <class A, class T>
constexpr CellKernels<A, T> cell_table() {
  return {cell_sum<A, T>,       cell_squares<A, T>,  cell_finish<A, T>, cell_average<A, T>,  cell_spread<A, T>,
          cell_grad_sums<A, T>, cell_backward<A, T>, cell_masked<A, T>, cell_unmasked<A, T>, row_softmax<A, T>};
}

extern const CellKernels<float, float> cell_f32 = cell_table<float, float>();
extern const CellKernels<float, bf16> cell_bf16 = cell_table<float, bf16>();
extern const CellKernels<double, double> cell_f64 = cell_table<double, double>();

}  // namespace fastdarts::FASTDARTS_ISA
