#pragma once
#include <string>

namespace fastdarts {

// amx, avx512, avx2 or portable: the best this machine has, or what the environment variable FASTDARTS_CPU asks for.
const std::string& instruction_set();

}  // namespace fastdarts

// Returns `name` of the namespace of the instruction set; AMX's is AVX-512's.
#if defined(__x86_64__)
#define FASTDARTS_PICK(name)                              \
  if (instruction_set() == "amx") return avx512::name;    \
  if (instruction_set() == "avx512") return avx512::name; \
  if (instruction_set() == "avx2") return avx2::name;     \
  return portable::name;
#else
#define FASTDARTS_PICK(name) return portable::name;
#endif

// Declares the kernels `prefix`_f32, _bf16 and _f64 of type Kernels in the namespace of an instruction set.
#define FASTDARTS_DECLARE(isa, Kernels, prefix)                         \
  namespace isa {                                                       \
  extern const Kernels<float, float> prefix##_f32;                      \
  extern const Kernels<float, bf16> prefix##_bf16;                      \
  extern const Kernels<double, double> prefix##_f64;                    \
  }
#if defined(__x86_64__)
#define FASTDARTS_DECLARE_ALL(Kernels, prefix)                          \
  FASTDARTS_DECLARE(portable, Kernels, prefix)                          \
  FASTDARTS_DECLARE(avx2, Kernels, prefix)                              \
  FASTDARTS_DECLARE(avx512, Kernels, prefix)
#else
#define FASTDARTS_DECLARE_ALL(Kernels, prefix) FASTDARTS_DECLARE(portable, Kernels, prefix)
#endif

// Defines `prefix`_kernels<compute, storage>(), which choose the kernels for the machine at hand.
#define FASTDARTS_CHOOSE(Kernels, prefix)                               \
  FASTDARTS_DECLARE_ALL(Kernels, prefix)                                \
  template <>                                                           \
  const Kernels<float, float>& prefix##_kernels<float, float>() {       \
    FASTDARTS_PICK(prefix##_f32)                                        \
  }                                                                     \
  template <>                                                           \
  const Kernels<float, bf16>& prefix##_kernels<float, bf16>() {         \
    FASTDARTS_PICK(prefix##_bf16)                                       \
  }                                                                     \
  template <>                                                           \
  const Kernels<double, double>& prefix##_kernels<double, double>() {   \
    FASTDARTS_PICK(prefix##_f64)                                        \
  }
