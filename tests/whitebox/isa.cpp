// The internals of one instruction set, made callable: compiled once with each -DLT_ISA and -DLT_BYTES.
#include "probe.h"

#include "gram.h"
#include "rows.h"
#include "short.h"
#include "transpose.h"

#define LT_TEXT(x) #x
#define LT_NAME(x) LT_TEXT(x)

namespace lt {
namespace LT_ISA {

template <class A, vec<A> F(vec<A>)> void all(const A* from, A* to, int64_t count) {
  constexpr int W = Vec<A>::width;
  for (int64_t k = 0; k < count; k += W) {
    int part = int(count - k < W ? count - k : W);
    store_part<A>(to + k, F(load_part<A>(from + k, part)), part);
  }
}
template <class A> vec<A> exp_once(vec<A> x) { return exp(x); }
template <class A> A sum_of(const A* vector) { return sum<A>(load(vector)); }
template <class A> A largest_of(const A* vector) { return largest<A>(load(vector)); }

// log-sum-exp by blocks of these sizes.
template <class A> A merge(const A* u, const int64_t* sizes, int64_t blocks) {
  Rows args{};
  args.logits = u, args.scale = 1;
  for (int64_t b = 0; b < blocks; ++b) args.c += sizes[b];
  const LogitRow<A, A> line(args, 0);
  const Block<A, A> block(line);
  Online<A> online;
  for (int64_t b = 0, first = 0; b < blocks; first += sizes[b++])
    online.template add<kSum>(block, first, int(sizes[b]), nullptr);
  return online.shift() + online.value();
}

// The floats with the bits first + k stride, ...: a vector of them.
struct Floats {
  vint lanes;
  uint32_t first, stride;
  Floats(uint32_t first, uint32_t stride) : first(first), stride(stride) {
    for (int lane = 0; lane < Vec<float>::width; ++lane) lanes[lane] = int32_t(uint32_t(lane) * stride);
  }
  vfloat at(int64_t k) const { return bits<vfloat>(lanes + int32_t(first + uint32_t(k) * stride)); }
};

template <vfloat F(vfloat)> Worst worst(uint32_t first, uint32_t stride, int64_t count, const double* truth) {
  constexpr int W = Vec<float>::width;
  Worst most_of_all{0, first};
  const Floats floats(first, stride);
  for (int64_t k = 0; k < count; k += W) {
    alignas(64) float found[W];
    store(found, F(floats.at(k)));
    double most = 0;
    for (int lane = 0; lane < W && k + lane < count; ++lane) {
      double unit = bits<double>(bits<uint64_t>(truth[k + lane]) & 0x7ff0000000000000u) * 1.1920928955078125e-7;
      double error = std::fabs(found[lane] - truth[k + lane]) / unit;
      most = error <= most ? most : error;  // NaN counts as larger
    }
    if (most <= most_of_all.error) continue;
    most_of_all.error = most;
    most_of_all.bits = first + uint32_t(k) * stride;
    if (!(most == most)) return most_of_all;
  }
  return most_of_all;
}

// How many of the exponentials are not what they should all be, sign included.
inline int64_t exp_others(uint32_t first, uint32_t stride, int64_t count, float wanted) {
  constexpr int W = Vec<float>::width;
  const bool nan = wanted != wanted;
  const Floats floats(first, stride);
  int64_t others = 0;
  for (int64_t k = 0; k < count; k += W) {
    alignas(64) float found[W];
    store(found, exp(floats.at(k)));
    for (int lane = 0; lane < W && k + lane < count; ++lane)
      others += nan ? found[lane] == found[lane] : bits<int32_t>(found[lane]) != bits<int32_t>(wanted);
  }
  return others;
}

template <class T> void load_all(const uint16_t* from, float* to, int64_t count) {
  constexpr int W = Vec<float>::width;
  for (int64_t k = 0; k < count; k += W) {
    int part = int(count - k < W ? count - k : W);
    store_part<float>(to + k, load_part<float>(reinterpret_cast<const T*>(from) + k, part), part);
  }
}
template <class T> void store_all(const float* from, uint16_t* to, int64_t count) {
  constexpr int W = Vec<float>::width;
  for (int64_t k = 0; k < count; k += W) {
    int part = int(count - k < W ? count - k : W);
    store_part<float>(reinterpret_cast<T*>(to) + k, load_part<float>(from + k, part), part);
  }
}

inline void bounds(const float* error, int64_t count, int64_t d, float* to) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < count; ++j) to[i * count + j] = screening_bound(error[i], error[j], d);
}

template <class A> constexpr Numbers1<A> numbers_of() {
  return {all<A, exp_once<A>>, all<A, log_of_more<A>>, all<A, log_of_one_and<A>>,
          sum_of<A>, largest_of<A>, merge<A>, Vec<A>::width};
}

#define LT_EACH(kernel) {kernel<float>, kernel<double>, kernel<bf16>, kernel<fp16>}

extern const Probe probe = {
    LT_NAME(LT_ISA), numbers_of<float>(), numbers_of<double>(),
    {worst<exp_once<float>>, worst<log_of_more<float>>, worst<log_of_one_and<float>>}, exp_others,
    {load_all<bf16>, load_all<fp16>}, {store_all<bf16>, store_all<fp16>},
    LT_EACH(rows_forward), LT_EACH(rows_backward), LT_EACH(rows_offset), LT_EACH(rows_plain),
    {gram_units<float>, nullptr, gram_units<bf16>, gram_units<fp16>}, gram_screen, LT_EACH(gram_verify), bounds,
    transpose};

}  // namespace LT_ISA
}  // namespace lt
