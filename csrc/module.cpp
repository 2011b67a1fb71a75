// fastdarts._C: importing it registers the CPU implementations of the fastdarts:: operators.
#include <pybind11/pybind11.h>

#include "block_cache.h"
#include "dispatch.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("instruction_set", &fastdarts::instruction_set, "avx512, avx2 or portable: the kernels in use");
  m.def("empty_block_cache", &fastdarts::empty_block_cache, "Frees the kernels' unused memory; returns the bytes freed");
}
