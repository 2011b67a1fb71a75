// Chooses the tile kernels for the machine at hand, once.
#include <c10/util/Exception.h>

#include <cstdlib>
#include <string>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "dispatch.h"
#include "tile.h"

namespace fastdarts {

FASTDARTS_DECLARE_ALL(Kernels, kernels)
#if defined(__x86_64__)
namespace avx512_bf16 {
extern const Kernels<float, bf16> kernels_bf16;
}
namespace amx {
extern const Kernels<float, bf16> kernels_bf16;
}
#endif

namespace {

bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

// AVX-512 may or may not multiply bfloat16; asking for "avx512" takes it along.
bool multiplies_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Linux gives a process the memory of tile registers when it asks; a sandbox may refuse.
bool has_amx() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  constexpr unsigned kTiles = 1u << 24, kBf16 = 1u << 22;  // of leaf 7's edx; older compilers do not know their names
  unsigned eax, ebx, ecx, edx;
  return has_avx512() && multiplies_bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kTiles) && (edx & kBf16) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

std::string supported() {
  if (has_amx()) return "amx";
  if (has_avx512()) return "avx512";
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
  return "portable";
}

int rank(const std::string& name) {
  return name == "amx" ? 3 : name == "avx512" ? 2 : name == "avx2" ? 1 : name == "portable" ? 0 : -1;
}

std::string choose() {
  const char* wish = std::getenv("FASTDARTS_CPU");
  if (!wish || !*wish) return supported();
  TORCH_CHECK_VALUE(rank(wish) >= 0, "FASTDARTS_CPU must be amx, avx512, avx2 or portable; got ", wish);
  TORCH_CHECK_VALUE(rank(wish) <= rank(supported()), "FASTDARTS_CPU=", wish, ", but this machine's best is ", supported());
  return wish;
}

}  // namespace

const std::string& instruction_set() {
  static const std::string chosen = choose();
  return chosen;
}

template <>
const Kernels<float, float>& kernels<float, float>() {
  FASTDARTS_PICK(kernels_f32)
}
template <>
const Kernels<float, bf16>& kernels<float, bf16>() {
#if defined(__x86_64__)
  if (instruction_set() == "amx") return amx::kernels_bf16;
  if (instruction_set() == "avx512" && multiplies_bf16()) return avx512_bf16::kernels_bf16;
#endif
  FASTDARTS_PICK(kernels_bf16)
}
template <>
const Kernels<double, double>& kernels<double, double>() {
  FASTDARTS_PICK(kernels_f64)
}

}  // namespace fastdarts
