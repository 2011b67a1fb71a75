// exp, sigmoid and tanh of vectors.
#pragma once
#include "vectors.h"

namespace fastdarts::FASTDARTS_ISA {

// Beyond these a sigmoid is 0 or 1, and a tanh -1 or 1, to the last bit of a sum with 1; cubes of exponentials stay finite.
template <class A>
constexpr A kSaturated = sizeof(A) == 4 ? A(20) : A(40);

template <class A>
FD_INLINE Vec<A> between(Vec<A> v, A low, A high) {  // NaN stays NaN
  v = v < low ? Vec<A>{} + low : v;
  return v > high ? Vec<A>{} + high : v;
}

// Taylor's coefficients of exp, the last first. |x| <= ln 2 / 2: the rest is below half a unit in the last place.
constexpr float kTaylorFloat[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
constexpr double kTaylorDouble[] = {1.0 / 6227020800.0, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                    1.0 / 40320,        1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,
                                    1.0 / 6,            0.5,             1.0,            1.0};

FD_INLINE Vec<float> exponential(Vec<float> x) {  // for |x| up to 87
  const Vec<float> shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number in the lowest bits
  const Vec<float> whole = shifted - 12582912.0f;
  const Vec<float> rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vec<float> sum = Vec<float>{} + kTaylorFloat[0];
  FD_UNROLL
  for (int i = 1; i < 8; ++i) sum = sum * rest + kTaylorFloat[i];
  const auto power = ((Vectors<float>::Mask)shifted << 23) + (127 << 23);
  return sum * (Vec<float>)power;
}

FD_INLINE Vec<double> exponential(Vec<double> x) {  // for |x| up to 700
  const Vec<double> shifted = x * 1.4426950408889634 + 6755399441055744.0;  // 1.5 * 2^52
  const Vec<double> whole = shifted - 6755399441055744.0;
  const Vec<double> rest = (x - whole * 6.93145751953125e-1) - whole * 1.42860682030941723212e-6;
  Vec<double> sum = Vec<double>{} + kTaylorDouble[0];
  FD_UNROLL
  for (int i = 1; i < 14; ++i) sum = sum * rest + kTaylorDouble[i];
  const auto power = ((Vectors<double>::Mask)shifted << 52) + (int64_t(1023) << 52);
  return sum * (Vec<double>)power;
}

template <class A>
FD_INLINE Vec<A> sigmoid(Vec<A> x) {
  return 1 / (1 + exponential(-between<A>(x, -kSaturated<A>, kSaturated<A>)));
}

template <class A>
struct Sigmoids {
  Vec<A> sigmoid, tanh;
};
template <class A>
FD_INLINE Sigmoids<A> sigmoid_and_tanh(Vec<A> x) {
  const Vec<A> e = exponential(-between<A>(x, -kSaturated<A>, kSaturated<A>)), square = e * e;
  const Vec<A> inverse = 1 / ((1 + e) * (1 + square));
  return {(1 + square) * inverse, (1 - square) * (1 + e) * inverse};
}

}  // namespace fastdarts::FASTDARTS_ISA
