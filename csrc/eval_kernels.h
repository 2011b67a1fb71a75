// The kernels of a cell in eval mode, written once with vector extensions and compiled once per instruction set: eval_<isa>.cpp
// includes isa/<isa>.h, which sets the target, and this file.
#include "tiles/eval.h"

namespace fastdarts::FASTDARTS_ISA {

template <class A, class T>
constexpr EvalKernels<A, T> eval_table() {
  return {eval_project<A, T>, eval_fill<A>, eval_finish<A>, eval_first<A>, eval_second<A>, eval_store<A, T>};
}

extern const EvalKernels<float, float> eval_f32 = eval_table<float, float>();
extern const EvalKernels<float, bf16> eval_bf16 = eval_table<float, bf16>();
extern const EvalKernels<double, double> eval_f64 = eval_table<double, double>();

}  // namespace fastdarts::FASTDARTS_ISA
