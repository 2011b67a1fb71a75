#pragma once
#include <string>

namespace fastdarts {

// avx512, avx2 or portable: the best this machine has, or what the environment variable FASTDARTS_CPU asks for.
const std::string& instruction_set();

}  // namespace fastdarts
