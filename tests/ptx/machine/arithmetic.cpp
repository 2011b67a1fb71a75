// Instructions that work lane by lane.

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <type_traits>

#include "machine.h"

namespace ptx {
namespace {

struct Inputs {
  Mask mask;
  Lanes& out;
  const Lanes &a, &b, &c;
};

// out = f(a, b, c) in the numbers of a format. f gets doubles for F64, else floats.
template <class Format, class F>
void floats(const Inputs& x, F f) {
  each_lane(x.mask, [&](int lane) {
    x.out[lane] = Format::put(f(Format::get(x.a[lane]), Format::get(x.b[lane]), Format::get(x.c[lane])));
  });
}

template <class Half, class F>
void packed(const Inputs& x, F f) {
  each_lane(x.mask, [&](int lane) {
    Bits both = 0;
    for (int shift : {0, 16})
      both |=
          (Half::put(f(Half::get(x.a[lane] >> shift), Half::get(x.b[lane] >> shift), Half::get(x.c[lane] >> shift))) &
           0xffff)
          << shift;
    x.out[lane] = both;
  });
}

template <class F>
bool in_floats(Type type, const Inputs& x, F f) {
  switch (type) {
    case Type::f32:
      floats<F32>(x, f);
      return true;
    case Type::f64:
      floats<F64>(x, f);
      return true;
    case Type::f16:
      floats<F16>(x, f);
      return true;
    case Type::bf16:
      floats<BF16>(x, f);
      return true;
    case Type::f16x2:
      packed<F16>(x, f);
      return true;
    case Type::bf16x2:
      packed<BF16>(x, f);
      return true;
    default:
      return false;
  }
}

// out = f(a, b, c) in integers of a type, which wrap.
template <class T, class F>
void integers_as(const Inputs& x, F f) {
  each_lane(x.mask, [&](int lane) {
    x.out[lane] = Bits(std::make_unsigned_t<T>(f(T(x.a[lane]), T(x.b[lane]), T(x.c[lane]))));
  });
}

template <class F>
void integers(Type type, const Inputs& x, F f) {
  switch (type) {
    case Type::s8:
      integers_as<std::int8_t>(x, f);
      break;
    case Type::s16:
      integers_as<std::int16_t>(x, f);
      break;
    case Type::s32:
      integers_as<std::int32_t>(x, f);
      break;
    case Type::s64:
      integers_as<std::int64_t>(x, f);
      break;
    case Type::u8:
    case Type::b8:
      integers_as<std::uint8_t>(x, f);
      break;
    case Type::u16:
    case Type::b16:
      integers_as<std::uint16_t>(x, f);
      break;
    case Type::u64:
    case Type::b64:
      integers_as<std::uint64_t>(x, f);
      break;
    default:
      integers_as<std::uint32_t>(x, f);
  }
}

// A function for floats and one for integers.
template <class F, class G>
void either(Type type, const Inputs& x, F of_floats, G of_integers) {
  if (!in_floats(type, x, of_floats)) integers(type, x, of_integers);
}

template <class T>
T unsigned_sum(T a, T b) {
  using U = std::make_unsigned_t<T>;
  return T(U(a) + U(b));
}

template <class T>
T unsigned_product(T a, T b) {
  return T(std::uint64_t(a) * std::uint64_t(b));
}

template <class T>
T smallest(T a, T b, bool nan) {
  if (std::isnan(a) || std::isnan(b)) return nan ? T(NAN) : std::isnan(a) ? b : a;
  if (a == 0 && b == 0) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}

template <class T>
T largest(T a, T b, bool nan) {
  const T found = -smallest(-a, -b, nan);
  return std::isnan(found) ? T(NAN) : found;
}

template <class T>
bool compared(Compare how, T a, T b, bool unordered) {
  switch (how) {
    case Compare::eq:
      return !unordered && a == b;
    case Compare::ne:
      return !unordered && a != b;
    case Compare::lt:
      return !unordered && a < b;
    case Compare::le:
      return !unordered && a <= b;
    case Compare::gt:
      return !unordered && a > b;
    case Compare::ge:
      return !unordered && a >= b;
    case Compare::equ:
      return unordered || a == b;
    case Compare::neu:
      return unordered || a != b;
    case Compare::ltu:
      return unordered || a < b;
    case Compare::leu:
      return unordered || a <= b;
    case Compare::gtu:
      return unordered || a > b;
    case Compare::geu:
      return unordered || a >= b;
    case Compare::num:
      return !unordered;
    case Compare::nan:
      return unordered;
  }
  return false;
}

double as_float(Type type, Bits bits) {
  switch (type) {
    case Type::f64:
      return F64::get(bits);
    case Type::f16:
      return F16::get(bits);
    case Type::bf16:
      return BF16::get(bits);
    default:
      return F32::get(bits);
  }
}

std::int64_t as_integer(Type type, Bits bits) {
  const int unused = 64 - 8 * bytes_of(type);
  return is_signed(type) ? std::int64_t(bits << unused) >> unused : std::int64_t(bits << unused >> unused);
}

template <class Format>
Bits put(double value) {
  return Format::put(decltype(Format::get(0))(value));
}

Bits from_float(Type type, double value) {
  switch (type) {
    case Type::f64:
      return F64::put(value);
    case Type::f16:
      return put<F16>(value);
    case Type::bf16:
      return put<BF16>(value);
    default:
      return put<F32>(value);
  }
}

double rounded(double value, Rounding how) {
  switch (how) {
    case Rounding::to_int_zero:
      return std::trunc(value);
    case Rounding::to_int_nearest:
      return std::nearbyint(value);
    case Rounding::to_int_down:
      return std::floor(value);
    case Rounding::to_int_up:
      return std::ceil(value);
    default:
      return value;
  }
}

Bits to_integer(Type type, double value) {  // clamped; NaN is 0
  if (std::isnan(value)) return 0;
  const int bits = 8 * bytes_of(type);
  const double low = is_signed(type) ? -std::ldexp(1.0, bits - 1) : 0;
  const double high = std::ldexp(1.0, is_signed(type) ? bits - 1 : bits);
  if (value >= high) return is_signed(type) ? (Bits{1} << (bits - 1)) - 1 : ~Bits{0} >> (64 - bits);
  if (value <= low) return is_signed(type) ? (~Bits{0} << (bits - 1)) & (~Bits{0} >> (64 - bits)) : 0;
  return (value < 0 ? Bits(std::int64_t(value)) : Bits(value)) & (~Bits{0} >> (64 - bits));
}

Bits converted(const Instruction& i, Bits bits) {
  if (is_float(i.from)) {
    const double value = rounded(as_float(i.from, bits), i.rounding);
    if (!is_float(i.type)) return to_integer(i.type, i.rounding == Rounding::zero ? std::trunc(value) : value);
    return from_float(i.type, i.saturates ? std::clamp(value, 0.0, 1.0) : value);
  }
  const std::int64_t value = as_integer(i.from, bits);
  if (is_float(i.type)) return from_float(i.type, i.from == Type::u64 ? double(std::uint64_t(value)) : double(value));
  // A narrower signed result is kept with its sign over the whole register, as the machine does.
  const int bits_out = 8 * bytes_of(i.type);
  return bits_out == 64 ? Bits(value) : Bits(value) & ((Bits{1} << std::max(bits_out, 32)) - 1);
}

Bits permuted(Bits a, Bits b, Bits selector) {
  const Bits bytes = (b << 32) | std::uint32_t(a);
  Bits out = 0;
  for (int k = 0; k < 4; ++k) {
    const int which = int(selector >> (4 * k)) & 15;
    Bits byte = (bytes >> (8 * (which & 7))) & 255;
    if (which & 8) byte = byte & 128 ? 255 : 0;
    out |= byte << (8 * k);
  }
  return out;
}

Bits looked_up(Bits a, Bits b, Bits c, Bits table) {  // lop3: a bit of the table for each bit of the inputs
  Bits out = 0;
  for (int k = 0; k < 8; ++k)
    if (table >> k & 1) out |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  return std::uint32_t(out);
}

}  // namespace

void Machine::arithmetic(Warp& warp, const Instruction& i, Mask mask) {
  static const Lanes zero{};
  Lanes scratch[4], result;
  const Lanes* in[4] = {&zero, &zero, &zero, &zero};
  for (std::size_t k = 0; k < std::min<std::size_t>(i.in.size(), 4); ++k)
    if (i.in[k].kind != Operand::Kind::parameter) in[k] = &value(warp, i.in[k], scratch[k]);
  const Lanes &a = *in[0], &b = *in[1], &c = *in[2], &d = *in[3];
  const Inputs x{mask, result, a, b, c};
  const int width = 8 * bytes_of(i.type);
  const auto set = [&](auto f) { each_lane(mask, [&](int lane) { result[lane] = f(lane); }); };
  switch (i.op) {
    case Op::mov:
      if (i.in[0].kind == Operand::Kind::parameter) {
        const Bits address = parameter_address(*warp.frames.back().function, i);
        set([&](int) { return address; });
      } else {
        set([&](int l) { return a[l]; });
      }
      break;
    case Op::pack: {
      const int part = width / int(i.in.size());
      set([&](int l) {
        Bits bits = 0;
        for (std::size_t k = 0; k < i.in.size(); ++k) bits |= ((*in[k])[l] & (~Bits{0} >> (64 - part))) << (part * k);
        return bits;
      });
      break;
    }
    case Op::unpack: {
      const int part = width / int(i.out.size());
      const Lanes whole = a;
      for (std::size_t k = 0; k < i.out.size(); ++k)
        each_lane(mask, [&](int l) { reg(warp, i.out[k])[l] = (whole[l] >> (part * k)) & (~Bits{0} >> (64 - part)); });
      return;
    }
    case Op::add:
      either(
          i.type, x, [](auto p, auto q, auto) { return p + q; },
          [](auto p, auto q, auto) { return unsigned_sum(p, q); });
      break;
    case Op::sub:
      either(
          i.type, x, [](auto p, auto q, auto) { return p - q; },
          [](auto p, auto q, auto) { return unsigned_sum(p, unsigned_product(q, decltype(q)(-1))); });
      break;
    case Op::mul:
      either(
          i.type, x, [](auto p, auto q, auto) { return p * q; },
          [](auto p, auto q, auto) { return unsigned_product(p, q); });
      break;
    case Op::mad:
    case Op::fma:  // halves in float: their product is exact there, the sum is rounded twice
      either(
          i.type, x, [](auto p, auto q, auto r) { return std::fma(p, q, r); },
          [](auto p, auto q, auto r) { return unsigned_sum(unsigned_product(p, q), r); });
      break;
    case Op::mul_wide:
    case Op::mad_wide:
      set([&](int l) {
        const Bits product = Bits(as_integer(i.type, a[l])) * Bits(as_integer(i.type, b[l]));
        const Bits sum = product + (i.op == Op::mad_wide ? c[l] : 0);
        return width == 32 ? sum : sum & 0xffffffff;
      });
      break;
    case Op::mul_high:
      set([&](int l) {
        if (!is_signed(i.type) && width == 64) return Bits((static_cast<unsigned __int128>(a[l]) * b[l]) >> 64);
        const __int128 product = static_cast<__int128>(as_integer(i.type, a[l])) * as_integer(i.type, b[l]);
        return Bits(product >> width) & (~Bits{0} >> (64 - width));
      });
      break;
    case Op::neg:
      either(
          i.type, x, [](auto p, auto, auto) { return -p; },
          [](auto p, auto, auto) { return unsigned_product(p, decltype(p)(-1)); });
      break;
    case Op::abs:
      either(
          i.type, x, [](auto p, auto, auto) { return std::fabs(p); },
          [](auto p, auto, auto) { return p < decltype(p)(0) ? unsigned_product(p, decltype(p)(-1)) : p; });
      break;
    case Op::min:
      either(
          i.type, x, [&](auto p, auto q, auto) { return smallest(p, q, i.propagates_nan); },
          [](auto p, auto q, auto) { return std::min(p, q); });
      break;
    case Op::max:
      either(
          i.type, x, [&](auto p, auto q, auto) { return largest(p, q, i.propagates_nan); },
          [](auto p, auto q, auto) { return std::max(p, q); });
      break;
    case Op::copysign:
      in_floats(i.type, x, [](auto p, auto q, auto) { return std::copysign(q, p); });
      break;
    case Op::div:
      either(
          i.type, x, [](auto p, auto q, auto) { return p / q; },
          [](auto p, auto q, auto) { return q == 0 ? decltype(p)(-1) : decltype(p)(p / q); });
      break;
    case Op::rem:
      integers(i.type, x, [](auto p, auto q, auto) { return q == 0 ? p : decltype(p)(p % q); });
      break;
    case Op::rsqrt:
      in_floats(i.type, x, [](auto p, auto, auto) { return 1 / std::sqrt(p); });
      break;
    case Op::sqrt:
      in_floats(i.type, x, [](auto p, auto, auto) { return std::sqrt(p); });
      break;
    case Op::rcp:
      in_floats(i.type, x, [](auto p, auto, auto) { return 1 / p; });
      break;
    case Op::ex2:
      in_floats(i.type, x, [](auto p, auto, auto) { return std::exp2(p); });
      break;
    case Op::lg2:
      in_floats(i.type, x, [](auto p, auto, auto) { return std::log2(p); });
      break;
    case Op::sin:
      in_floats(i.type, x, [](auto p, auto, auto) { return std::sin(p); });
      break;
    case Op::cos:
      in_floats(i.type, x, [](auto p, auto, auto) { return std::cos(p); });
      break;
    case Op::tanh:
      in_floats(i.type, x, [](auto p, auto, auto) { return std::tanh(p); });
      break;
    case Op::and_:
      set([&](int l) { return a[l] & b[l]; });
      break;
    case Op::or_:
      set([&](int l) { return a[l] | b[l]; });
      break;
    case Op::xor_:
      set([&](int l) { return a[l] ^ b[l]; });
      break;
    case Op::not_:
      set([&](int l) { return (i.type == Type::pred ? a[l] ^ 1 : ~a[l]) & (~Bits{0} >> (64 - width)); });
      break;
    case Op::shl:
      set([&](int l) {
        const auto by = std::uint32_t(b[l]);
        return by >= std::uint32_t(width) ? 0 : (a[l] << by) & (~Bits{0} >> (64 - width));
      });
      break;
    case Op::shr:
      set([&](int l) {
        const auto by = std::min(std::uint32_t(b[l]), 63u);
        const std::int64_t number = as_integer(i.type, a[l]);
        const Bits shifted = is_signed(i.type) ? Bits(number >> by) : Bits(number) >> by;
        return std::uint32_t(b[l]) >= 64 && !is_signed(i.type) ? 0 : shifted & (~Bits{0} >> (64 - width));
      });
      break;
    case Op::shf:  // of two registers, a the lower
      set([&](int l) {
        const Bits both = (b[l] << 32) | std::uint32_t(a[l]);
        const int by = int(c[l]) & 31;
        return i.flavour == 0 ? Bits(std::uint32_t(both << by >> 32)) : Bits(std::uint32_t(both >> by));
      });
      break;
    case Op::lop3:
      set([&](int l) { return looked_up(a[l], b[l], c[l], d[l]); });
      break;
    case Op::bfe:
      set([&](int l) {
        const int start = int(b[l]) & 255, count = int(c[l]) & 255;
        if (count == 0 || start >= width) return Bits{0};
        const Bits field = (a[l] & (~Bits{0} >> (64 - width))) >> start & (~Bits{0} >> (64 - std::min(count, 64)));
        const bool negative = is_signed(i.type) && (field >> (std::min(count, width - start) - 1) & 1);
        return (negative ? field | (~Bits{0} << std::min(count, 63)) : field) & (~Bits{0} >> (64 - width));
      });
      break;
    case Op::bfi:  // a into b from bit c on, d bits
      set([&](int l) {
        const int start = int(c[l]) & 255, count = int(d[l]) & 255;
        const Bits field = count == 0 || start >= width ? 0 : (~Bits{0} >> (64 - std::min(count, 64))) << start;
        return ((b[l] & ~field) | ((a[l] << start) & field)) & (~Bits{0} >> (64 - width));
      });
      break;
    case Op::prmt:
      set([&](int l) { return permuted(a[l], b[l], c[l]); });
      break;
    case Op::popc:
      set([&](int l) { return Bits(std::popcount(a[l] & (~Bits{0} >> (64 - width)))); });
      break;
    case Op::clz:
      set([&](int l) { return Bits(std::countl_zero(a[l] & (~Bits{0} >> (64 - width))) - (64 - width)); });
      break;
    case Op::brev:
      set([&](int l) {
        Bits out = 0;
        for (int k = 0; k < width; ++k) out |= (a[l] >> k & 1) << (width - 1 - k);
        return out;
      });
      break;
    case Op::selp:
      set([&](int l) { return c[l] & 1 ? a[l] : b[l]; });
      break;
    case Op::setp: {
      if (i.type == Type::bf16x2 || i.type == Type::f16x2) {  // a predicate for each half
        const Type half = i.type == Type::bf16x2 ? Type::bf16 : Type::f16;
        const Lanes left = a, right = b;
        for (std::size_t k = 0; k < i.out.size(); ++k)
          each_lane(mask, [&](int l) {
            const double p = as_float(half, left[l] >> (16 * k)), q = as_float(half, right[l] >> (16 * k));
            reg(warp, i.out[k])[l] = compared(i.compare, p, q, std::isnan(p) || std::isnan(q));
          });
        return;
      }
      const auto holds = [&](int l) -> bool {
        if (is_float(i.type)) {
          const double p = as_float(i.type, a[l]), q = as_float(i.type, b[l]);
          return compared(i.compare, p, q, std::isnan(p) || std::isnan(q));
        }
        if (is_signed(i.type)) return compared(i.compare, as_integer(i.type, a[l]), as_integer(i.type, b[l]), false);
        return compared(i.compare, Bits(as_integer(i.type, a[l])), Bits(as_integer(i.type, b[l])), false);
      };
      set([&](int l) {
        const bool other = c[l] & 1, mine = holds(l);
        return Bits(i.flavour == 1   ? mine && other
                    : i.flavour == 2 ? mine || other
                    : i.flavour == 3 ? mine != other
                                     : mine);
      });
      if (i.out.size() > 1) each_lane(mask, [&](int l) { reg(warp, i.out[1])[l] = result[l] ^ 1; });
      break;
    }
    case Op::cvt:
      if (i.type == Type::bf16x2 || i.type == Type::f16x2) {  // the second number is the lower half
        const bool half = i.type == Type::f16x2;
        const auto one = [half](Bits bits) { return half ? F16::put(F32::get(bits)) : BF16::put(F32::get(bits)); };
        set([&](int l) { return one(a[l]) << 16 | one(b[l]); });
      } else {
        set([&](int l) { return converted(i, a[l]); });
      }
      break;
    default:
      throw std::runtime_error("not made yet: " + i.text);
  }
  each_lane(mask, [&](int lane) { reg(warp, i.out[0])[lane] = result[lane]; });
}

}  // namespace ptx
