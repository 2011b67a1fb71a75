// Bits of registers as numbers, and back.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

namespace ptx {

using Bits = std::uint64_t;
using Mask = std::uint32_t;          // a bit for each lane of a warp
using Lanes = std::array<Bits, 32>;  // a register of a warp
constexpr Mask kAll = ~Mask{0};

// Each reads a number from the low bits of a register and rounds one to them.
struct F32 {
  static float get(Bits bits) { return std::bit_cast<float>(std::uint32_t(bits)); }
  static Bits put(float value) { return std::bit_cast<std::uint32_t>(value); }
};

struct F64 {
  static double get(Bits bits) { return std::bit_cast<double>(bits); }
  static Bits put(double value) { return std::bit_cast<Bits>(value); }
};

struct F16 {
  static float get(Bits bits) { return float(std::bit_cast<_Float16>(std::uint16_t(bits))); }
  static Bits put(float value) { return std::bit_cast<std::uint16_t>(_Float16(value)); }
};

struct BF16 {
  static float get(Bits bits) { return F32::get(Bits(std::uint16_t(bits)) << 16); }
  static Bits put(float value) {
    const auto bits = std::uint32_t(F32::put(value));
    if (std::isnan(value)) return 0x7fff;
    return std::uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
  }
};

template <class F>
void each_lane(Mask mask, F f) {
  if (mask == kAll) {
    for (int lane = 0; lane < 32; ++lane) f(lane);
  } else {
    for (Mask left = mask; left; left &= left - 1) f(std::countr_zero(left));
  }
}

}  // namespace ptx
