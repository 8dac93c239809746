// Vectors as wide as the instruction set of the object that includes this, by the compilers' vector extensions:
// loads and stores of every dtype, and exp. Everything is in the namespace LT_ISA, so that no object shares code.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#ifndef LT_ISA
#define LT_ISA generic
#define LT_BYTES 16
#endif

namespace lt {

struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

namespace LT_ISA {

template <class A> struct Vec;
template <> struct Vec<float> {
  typedef float type __attribute__((vector_size(LT_BYTES)));
  typedef int32_t ints __attribute__((vector_size(LT_BYTES)));
  typedef uint16_t halves __attribute__((vector_size(LT_BYTES / 2)));
  static constexpr int width = LT_BYTES / 4;
};
template <> struct Vec<double> {
  typedef double type __attribute__((vector_size(LT_BYTES)));
  typedef int64_t ints __attribute__((vector_size(LT_BYTES)));
  static constexpr int width = LT_BYTES / 8;
};
template <class A> using vec = typename Vec<A>::type;
using vfloat = vec<float>;
using vint = Vec<float>::ints;

template <class A> inline vec<A> load(const A* from) {
  vec<A> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class A> inline void store(A* to, vec<A> value) { std::memcpy(to, &value, sizeof value); }
template <class A> inline vec<A> splat(A value) { return vec<A>{} + value; }
template <class V> inline V max(V a, V b) { return a > b ? a : b; }

template <class To, class From> inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits keep their size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// The widened bits of a vector of 16-bit numbers.
inline vint widen(const uint16_t* from) {
  Vec<float>::halves half;
  std::memcpy(&half, from, sizeof half);
  return __builtin_convertvector(half, vint);
}

inline vfloat load(const bf16* from) { return bits<vfloat>(widen(&from->bits) << 16); }

// fp16 to float: shift the exponent into place, scale by 2^112; infinities and NaN get float's largest exponent.
inline vfloat load(const fp16* from) {
  vint half = widen(&from->bits), sign = (half & 0x8000) << 16, rest = (half & 0x7fff) << 13;
  vfloat value = bits<vfloat>(rest) * 5.192296858534828e33f;
  vint special = rest >= 0x0f800000;
  return bits<vfloat>((special ? (rest | 0x7f800000) : bits<vint>(value)) | sign);
}

inline void narrow(uint16_t* to, vint value) {
  auto half = __builtin_convertvector(value, Vec<float>::halves);
  std::memcpy(to, &half, sizeof half);
}

// Round to nearest even; a NaN stays one.
inline void store(bf16* to, vfloat value) {
  vint word = bits<vint>(value);
  vint round = word + 0x7fff + ((word >> 16) & 1);
  narrow(&to->bits, ((value != value ? (word | 0x400000) : round) >> 16) & 0xffff);
}

// Round to nearest even by adding a power of two that leaves ten fraction bits; too large becomes infinity.
inline void store(fp16* to, vfloat value) {
  vint word = bits<vint>(value), sign = word & int32_t(0x80000000);
  vint size = word ^ sign;
  vint exponent = size & 0x7f800000;
  vint floor = exponent < 0x38800000 ? vint{} + 0x38800000 : exponent;  // below 2^-14 the step stays 2^-24
  vfloat magic = bits<vfloat>(floor + (13 << 23));
  vfloat rounded = (bits<vfloat>(size) + magic) - magic;
  vint half = bits<vint>(rounded * 1.925929944387236e-34f) >> 13;  // * 2^-112
  half = rounded >= 65520.f ? vint{} + 0x7c00 : half;
  half = size > 0x7f800000 ? vint{} + 0x7e00 : half;
  narrow(&to->bits, half | ((sign >> 16) & 0x8000));
}

// exp to about one unit in the last place; 0 where the result would not be a normal number.
inline vfloat exp(vfloat x) {
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  vfloat shifted = x * 1.44269504088896341f + magic, n = shifted - magic;
  vfloat r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  vfloat p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  vfloat half = bits<vfloat>(((bits<vint>(shifted) - 1) << 23) + 0x3f800000);  // 2^(n - 1): n = 128 would not fit
  vfloat value = (p * half) * 2.f;
  value = x < -87.3365448f ? vfloat{} : value;
  return x > 88.7228394f ? splat(std::numeric_limits<float>::infinity()) : value;
}

inline vec<double> exp(vec<double> x) {
  typedef Vec<double>::ints ints;
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  vec<double> shifted = x * 1.4426950408889634074 + magic, n = shifted - magic;
  vec<double> r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
  vec<double> p = splat(1.0 / 6227020800.0);
  const double inverse_factorials[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                       1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,     1.0 / 6,
                                       0.5};
  for (double factor : inverse_factorials) p = p * r + factor;
  p = p * r * r + r + 1.0;
  vec<double> half = bits<vec<double>>(((bits<ints>(shifted) - 1) << 52) + 0x3ff0000000000000);
  vec<double> value = (p * half) * 2.0;
  value = x < -708.396418532264 ? vec<double>{} : value;
  return x > 709.782712893384 ? splat(std::numeric_limits<double>::infinity()) : value;
}

template <class A> inline A sum(vec<A> value) {
  A total = 0;
  for (int lane = 0; lane < Vec<A>::width; ++lane) total += value[lane];
  return total;
}
template <class A> inline A top(vec<A> value) {
  A best = value[0];
  for (int lane = 1; lane < Vec<A>::width; ++lane) best = best > value[lane] ? best : value[lane];
  return best;
}

// A vector from fewer elements than it has, the others 0; and back.
template <class A, class T> inline vec<A> load_part(const T* from, int count) {
  T padded[Vec<A>::width] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return load(padded);
}
template <class A, class T> inline void store_part(T* to, vec<A> value, int count) {
  T padded[Vec<A>::width];
  store(padded, value);
  std::memcpy(to, padded, count * sizeof(T));
}

}  // namespace LT_ISA

template <class T> struct Arithmetic { using type = float; };
template <> struct Arithmetic<double> { using type = double; };

}  // namespace lt
