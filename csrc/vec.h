// Vectors of the width of one instruction set, by the compilers' vector extensions: loads and stores of every dtype,
// and the vectorised exponential. This file is compiled once for each instruction set, each time in another namespace
// LT_ISA: else the linker would merge functions, and a processor could meet instructions that it does not have.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#endif

#ifndef LT_ISA
#define LT_ISA generic
#define LT_BYTES 16
#endif

// For functions that run once per vector: compilers do not inline such a long function that is called in many places.
#define LT_INLINE inline __attribute__((always_inline))

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
template <class A> constexpr A kMinusInfinity = -std::numeric_limits<A>::infinity();
template <class A> using vec = typename Vec<A>::type;
using vfloat = vec<float>;
using vint = Vec<float>::ints;

template <class A> inline vec<A> load(const A* from) {
  vec<A> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class A> inline void store(A* to, vec<A> value) { std::memcpy(to, &value, sizeof value); }
// Keeps the compiler from fusing a product with a sum that it enters, so that it is rounded alike in every kernel.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
template <class V> LT_INLINE V unfused(V product) { return __builtin_assoc_barrier(product); }
#else
template <class V> LT_INLINE V unfused(V product) { return product; }
#endif
template <class A> inline vec<A> splat(A value) { return vec<A>{} + value; }
#if LT_BYTES == 64  // a > b ? a : b in one instruction, which compilers do not always choose
inline vec<float> max(vec<float> a, vec<float> b) { return _mm512_max_ps(a, b); }
inline vec<double> max(vec<double> a, vec<double> b) { return _mm512_max_pd(a, b); }
#elif LT_BYTES == 32
inline vec<float> max(vec<float> a, vec<float> b) { return _mm256_max_ps(a, b); }
inline vec<double> max(vec<double> a, vec<double> b) { return _mm256_max_pd(a, b); }
#else
template <class V> inline V max(V a, V b) { return a > b ? a : b; }
#endif

template <class To, class From> inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits keep their size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// The sign bit of each lane, as one bit each.
inline uint64_t signs(vint value) {
#if LT_BYTES == 64
  return _mm512_movepi32_mask((__m512i)value);
#elif LT_BYTES == 32
  return uint32_t(_mm256_movemask_ps((__m256)value));
#else
  uint64_t word = 0;
  for (int lane = 0; lane < Vec<float>::width; ++lane) word |= uint64_t(uint32_t(value[lane]) >> 31) << lane;
  return word;
#endif
}

// Vectors of 16-bit numbers: widened to 32 bits, narrowed, and converted from and to fp16. These are intrinsics because
// compilers do not find the instructions in plain code.
#if LT_BYTES == 64
inline vint widen(const uint16_t* from) {
  return (vint)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline void narrow(uint16_t* to, vint value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)value));
}
inline vfloat load(const fp16* from) {
  return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline void store(fp16* to, vfloat value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
}
#elif LT_BYTES == 32
inline vint widen(const uint16_t* from) {
  return (vint)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline void narrow(uint16_t* to, vint value) {
  value = value & 0xffff;  // packing saturates
  __m256i packed = _mm256_packus_epi32((__m256i)value, (__m256i)value);  // each half of 128 bits by itself
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8)));
}
inline vfloat load(const fp16* from) {
  return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline void store(fp16* to, vfloat value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline vint widen(const uint16_t* from) {
  Vec<float>::halves half;
  std::memcpy(&half, from, sizeof half);
  return __builtin_convertvector(half, vint);
}
inline void narrow(uint16_t* to, vint value) {
  auto half = __builtin_convertvector(value, Vec<float>::halves);
  std::memcpy(to, &half, sizeof half);
}

// fp16 to float: exponent and fraction are shifted into place, and 112 is added to the exponent. Below 2^-14 the
// fraction is multiplied by 2^-24; infinities and NaN get float's largest exponent. No intermediate value is a denormal
// float, because a process may flush these to zero.
inline vfloat load(const fp16* from) {
  vint half = widen(&from->bits), sign = (half & 0x8000) << 16, rest = (half & 0x7fff) << 13;
  vint steps = bits<vint>(__builtin_convertvector(half & 0x3ff, vfloat) * 5.9604644775390625e-8f);
  vint value = rest < 0x00800000 ? steps : rest + 0x38000000;
  return bits<vfloat>((rest >= 0x0f800000 ? (rest | 0x7f800000) : value) | sign);
}

// Rounds to nearest even, by adding a power of two that leaves ten fraction bits; 65520 and more become infinity.
inline void store(fp16* to, vfloat value) {
  vint word = bits<vint>(value), sign = word & int32_t(0x80000000);
  vint size = word ^ sign;
  vint exponent = size & 0x7f800000;
  vint floor = exponent < 0x38800000 ? vint{} + 0x38800000 : exponent;  // below 2^-14 the step stays 2^-24
  vfloat magic = bits<vfloat>(floor + (13 << 23));
  vfloat rounded = (bits<vfloat>(size) + magic) - magic;
  vint steps = __builtin_convertvector(rounded * 16777216.f, vint);  // of 2^-24
  vint half = rounded < 6.103515625e-05f ? steps : (bits<vint>(rounded) - 0x38000000) >> 13;
  half = size >= 0x477ff000 ? vint{} + 0x7c00 : half;  // 65520; `rounded` may be NaN, where magic is infinite
  half = size > 0x7f800000 ? vint{} + 0x7e00 : half;
  narrow(&to->bits, half | ((sign >> 16) & 0x8000));
}
#endif

inline vfloat load(const bf16* from) { return bits<vfloat>(widen(&from->bits) << 16); }

// Rounds to nearest even; NaN stays NaN.
inline void store(bf16* to, vfloat value) {
  vint word = bits<vint>(value);
  vint round = word + 0x7fff + ((word >> 16) & 1);
  narrow(&to->bits, (value != value ? (word | 0x400000) : round) >> 16);
}

// The constants of exp: adding `magic` rounds to an integer and leaves it in the low bits; ln 2 is split in two parts.
template <class A> struct Exp;
template <> struct Exp<float> {
  using ints = Vec<float>::ints;
  static constexpr float magic = 12582912.f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float least = -86.98f, most = 88.7228394f;  // below: 0; above: infinity
  static constexpr int shift = 23, one = 0x3f800000;         // width of the fraction, and the bits of 1
  static constexpr float factors[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                      4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
};
template <> struct Exp<double> {
  using ints = Vec<double>::ints;
  static constexpr double magic = 6755399441055744.0, ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
  static constexpr double least = -708.04, most = 709.782712893384;
  static constexpr int64_t shift = 52, one = 0x3ff0000000000000;
  static constexpr double factors[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                                       1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                                       1.0 / 120,        1.0 / 24,        1.0 / 6,        0.5};
};

// 2^n * value; 0 for x below the range of exp, infinity above it, and NaN for NaN.
#if LT_BYTES == 64
inline vec<float> scaled(vec<float> x, vec<float>, vec<float> n, vec<float> value) {
  __mmask16 kept = _mm512_cmp_ps_mask(x, splat(Exp<float>::least), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(kept, value, n);
}
inline vec<double> scaled(vec<double> x, vec<double>, vec<double> n, vec<double> value) {
  __mmask8 kept = _mm512_cmp_pd_mask(x, splat(Exp<double>::least), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_pd(kept, value, n);
}
inline vec<float> bounded(vec<float> x) { return _mm512_min_ps(splat(89.f), x); }
inline vec<double> bounded(vec<double> x) { return _mm512_min_pd(splat(710.0), x); }
#else
template <class V> inline V scaled(V x, V shifted, V, V value) {
  using A = typename std::remove_reference<decltype(value[0])>::type;
  using E = Exp<A>;
  V half = bits<V>(((bits<typename E::ints>(shifted) - 1) << E::shift) + E::one);  // 2^(n - 1): n itself may not fit
  value = (value * A(2)) * half;
  value = x < E::least ? V{} : value;
  return x > E::most ? splat(std::numeric_limits<A>::infinity()) : value;
}
template <class V> inline V bounded(V x) { return x; }
#endif

// exp with an error of about one unit in the last place; 0 where 2^(n - 1) would not be a normal number.
template <class A> LT_INLINE vec<A> exp_of(vec<A> input) {
  using E = Exp<A>;
  vec<A> x = bounded(input), shifted = x * A(1.44269504088896340736) + E::magic, n = shifted - E::magic;
  vec<A> r = (x - n * E::ln2_high) - n * E::ln2_low, p = splat(E::factors[0]);
  for (unsigned k = 1; k < sizeof E::factors / sizeof(A); ++k) p = p * r + E::factors[k];
  return scaled(input, shifted, n, p * (r * r) + r + A(1));
}
#if LT_BYTES == 64
// 2^(k / 32): with this table in two registers the polynomial of exp has three coefficients instead of six.
struct Powers {
  alignas(64) float of[32] = {};
  constexpr Powers() {
    double power = 1;
    for (int k = 0; k < 32; ++k, power *= 1.0218971486541166782) of[k] = float(power);
  }
};
constexpr Powers kPowers;

LT_INLINE vec<float> exp(vec<float> input) {
  using E = Exp<float>;
  vec<float> x = bounded(input), shifted = x * 1.44269504088896340736f + E::magic / 32, n = shifted - E::magic / 32;
  vec<float> r = (x - n * 0.693147182464599609375f) - n * -1.904654299957767878e-9f;  // at most ln 2 / 64
  vec<float> power = (vec<float>)_mm512_permutex2var_ps(load(kPowers.of), (__m512i)shifted, load(kPowers.of + 16));
  vec<float> p = (r * 0.166666667f + 0.5f) * r + 1.f;
  return scaled(input, shifted, n, power * r * p + power);  // scalef takes the integer part of n
}
#else
LT_INLINE vec<float> exp(vec<float> x) { return exp_of<float>(x); }
#endif
LT_INLINE vec<double> exp(vec<double> x) { return exp_of<double>(x); }

// 0, 1, 2, ...: a comparison with it selects lanes.
template <class A> inline typename Vec<A>::ints lanes() {
  typename Vec<A>::ints number{};
  for (int lane = 0; lane < Vec<A>::width; ++lane) number[lane] = lane;
  return number;
}

// The sum and the maximum of a vector's lanes. AVX-512 has reductions by a tree of fixed shape, and masks for the rest.
#if LT_BYTES == 64
template <class A> A sum(vec<A> value);
template <class A> A largest(vec<A> value);
template <> inline float sum<float>(vec<float> value) { return _mm512_reduce_add_ps(value); }
template <> inline double sum<double>(vec<double> value) { return _mm512_reduce_add_pd(value); }
template <> inline float largest<float>(vec<float> value) { return _mm512_reduce_max_ps(value); }
template <> inline double largest<double>(vec<double> value) { return _mm512_reduce_max_pd(value); }

inline __mmask16 mask_of(int count) { return __mmask16((1u << count) - 1); }
inline vec<float> masked_load(const float* from, int count) { return _mm512_maskz_loadu_ps(mask_of(count), from); }
inline vec<double> masked_load(const double* from, int count) {
  return _mm512_maskz_loadu_pd(__mmask8(mask_of(count)), from);
}
template <class T> inline vec<float> masked_load(const T* from, int count) {
  T padded[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(padded), _mm256_maskz_loadu_epi16(mask_of(count), from));
  return load(padded);
}
inline void masked_store(float* to, vec<float> value, int count) { _mm512_mask_storeu_ps(to, mask_of(count), value); }
inline void masked_store(double* to, vec<double> value, int count) {
  _mm512_mask_storeu_pd(to, __mmask8(mask_of(count)), value);
}
template <class T> inline void masked_store(T* to, vec<float> value, int count) {
  T padded[16];
  store(padded, value);
  _mm256_mask_storeu_epi16(to, mask_of(count), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(padded)));
}

// Loads and stores `count` elements, fewer than the vector has; the other lanes are 0.
template <class A, class T> inline vec<A> load_part(const T* from, int count) { return masked_load(from, count); }
template <class A, class T> inline void store_part(T* to, vec<A> value, int count) { masked_store(to, value, count); }
#else
template <class A> inline A sum(vec<A> value) {
  A total = 0;
  for (int lane = 0; lane < Vec<A>::width; ++lane) total += value[lane];
  return total;
}
template <class A> inline A largest(vec<A> value) {
  A best = value[0];
  for (int lane = 1; lane < Vec<A>::width; ++lane) best = best > value[lane] ? best : value[lane];
  return best;
}

// Loads and stores `count` elements, fewer than the vector has; the other lanes are 0.
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
#endif

}  // namespace LT_ISA

template <class T> struct Arithmetic { using type = float; };
template <> struct Arithmetic<double> { using type = double; };

}  // namespace lt
