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
