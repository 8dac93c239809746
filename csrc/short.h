// Cross-entropy without margin, focal factor or smoothing, and its gradient, for rows of up to one block: docs/math.md,
// sections 1 to 3. Logarithm and quotients would take most of the time of short rows, so they are computed for a vector
// of rows at a time, one row in each lane.
#pragma once

#include "rows.h"

namespace lt {
namespace LT_ISA {

// 2 atanh(s) for |s| <= 1 / 3, by its series.
template <class A> inline vec<A> twice_atanh(vec<A> s) {
  constexpr int terms = sizeof(A) == 4 ? 8 : 17;
  vec<A> square = s * s, p = splat(A(1) / (2 * terms + 1));
  for (int k = terms - 1; k > 0; --k) p = p * square + A(1) / (2 * k + 1);
  return (s + s) * square * p + (s + s);
}

// log(x) for x >= 1; infinity and NaN give themselves.
template <class A> inline vec<A> log_of_more(vec<A> x) {
  using ints = typename Vec<A>::ints;
  const ints half_root = bits<ints>(splat(A(0.70710678118654752440)));
  const ints n = (bits<ints>(x) - half_root) >> Exp<A>::shift;
  const vec<A> m = bits<vec<A>>(bits<ints>(x) - (n << Exp<A>::shift)), count = __builtin_convertvector(n, vec<A>);
  const vec<A> value = count * Exp<A>::ln2_high + (count * Exp<A>::ln2_low + twice_atanh<A>((m - 1) / (m + 1)));
  return x <= std::numeric_limits<A>::max() ? value : x;
}

// log(1 + x) for 0 <= x <= 1.
template <class A> inline vec<A> log_of_one_and(vec<A> x) { return twice_atanh<A>(x / (x + 2)); }

// A row of at most one block, whose target is masked by a logit of -infinity.
template <class T, class A, bool kOffset> struct ShortRow {
  static constexpr int W = Vec<A>::width;
  const T* logits;
  const A* offset;
  int whole, left;                 // the number of columns in whole vectors, and of those after them
  int target_vector, target_lane;  // the first column of the vector that holds the target, and its lane
  vec<A> tail;

  ShortRow(const Rows& args, int64_t row, int target)
      : logits(static_cast<const T*>(args.logits) + row * args.stride), offset(args.offset.at<A>(row)),
        whole(int(args.c) / W * W), left(int(args.c) - whole), target_vector(target / W * W),
        target_lane(target - target_vector) {
    const vec<A> absent = splat(kMinusInfinity<A>);
    tail = left ? LogitRow<T, A>::part(logits + whole, left) : absent;
    if (kOffset && left) tail = tail + LogitRow<A, A>::part(offset + whole, left);
    tail = lanes<A>() < left ? tail : absent;
    if (target_vector == whole) tail = without(tail);
  }
  vec<A> without(vec<A> u) const { return lanes<A>() == target_lane ? splat(kMinusInfinity<A>) : u; }
  vec<A> u(int k) const {
    vec<A> value = load(logits + k);
    if (kOffset) value = value + load(offset + k);
    return __builtin_expect(k == target_vector, false) ? without(value) : value;
  }
  // The maximum of u.
  A top() const {
    vec<A> one = tail, two = tail;
    int k = 0;
    for (; k + 2 * W <= whole; k += 2 * W) one = max(one, u(k)), two = max(two, u(k + W));
    return LT_ISA::largest<A>(max(k < whole ? max(one, u(k)) : one, two));
  }
  // The sum of exp(u - shift), each of which is written to `kept`.
  A sum(A shift, A* kept) const {
    vec<A> total = exp(tail - shift);
    if (left) store_part<A>(kept + whole, total, left);
    for (int k = 0; k < whole; k += W) {
      __builtin_prefetch(logits + k + kBlock);  // later rows: each is too short for the hardware prefetcher to detect
      const vec<A> value = exp(u(k) - shift);
      store(kept + k, value);
      total = total + value;
    }
    return LT_ISA::sum<A>(total);
  }
};

// The statistics of a vector of rows, one row in each lane. A row's numbers are set in registers: a vector load from
// memory that was just written in parts would stall until all earlier writes have reached the cache.
template <class A> struct RowsInLanes {
  static constexpr int W = Vec<A>::width;
  vec<A> top{}, sum{}, own{}, class_weight{}, d_rest{};
  alignas(64) A factor[W], d_own[W];

  static void set(vec<A>& all, int lane, A value) { all = lanes<A>() == lane ? splat(value) : all; }

  // u of the target less top; NaN if it is +infinity, as a softmax would give.
  vec<A> own_less_top() const { return (own == std::numeric_limits<A>::infinity() ? own - own : own) - top; }
  // The slopes, and the factor of the kept exponentials. They need no logarithm, only `save` does.
  void slopes(A divisor) {
    const vec<A> less = own_less_top(), e = exp(less), part = class_weight / (sum + e);  // part * sum: w_y (1 - p_y)
    d_rest = sum == 0 ? less - less : part * sum;
    d_rest = d_rest == 0 ? d_rest : d_rest / divisor;
    store(factor, sum == 0 ? d_rest : part / divisor), store(d_own, -d_rest);
  }
  void save(const Plain& plain, int64_t n, int64_t from, int rows) const {
    const vec<A> rest = sum == 0 ? splat(kMinusInfinity<A>) : log_of_more<A>(sum), v = rest - own_less_top();
    const vec<A> loss = class_weight * ((v > 0 ? v : vec<A>{}) + log_of_one_and<A>(exp(v > 0 ? -v : v)));
    store_part<A>(static_cast<A*>(plain.losses) + from, loss, rows);
    const vec<A> saved[kSaved] = {rest, top, d_rest, -d_rest, -d_rest, vec<A>{}};
    for (int k = 0; plain.numbers && k < kSaved; ++k) store_part<A>(static_cast<A*>(plain.numbers) + k * n + from, saved[k], rows);
  }
};

// The gradient of one row from its kept exponentials.
template <class T, class A> void short_gradient(T* out, const A* kept, int classes, int64_t target, A factor, A d_own) {
  constexpr int W = Vec<A>::width;
  if (target < 0) return void(std::memset(static_cast<void*>(out), 0, classes * sizeof(T)));
  int j = 0;
  for (; j + W <= classes; j += W) store(out + j, load(kept + j) * factor);
  if (j < classes) store_part<A>(out + j, load_part<A>(kept + j, classes - j) * factor, classes - j);
  store_part<A>(out + target, splat(d_own), 1);
}

// The rows [from, from + rows), at most one vector of them, in groups that stay in the L1 cache. `spare` holds the
// exponentials of a group unless the memory of its gradient has room for them.
template <class T, class A, bool kOffset>
void short_rows(const Rows& args, const Plain& plain, int64_t from, int rows, A* spare) {
  const int classes = int(args.c), group = 2 * kBlock / classes;
  const bool in_place = args.d_logits && sizeof(T) == sizeof(A);
  T* out = static_cast<T*>(args.d_logits) + (args.d_logits ? from * classes : 0);
  RowsInLanes<A> all;
  for (int first = 0; first < rows; first += group) {
    const int last = rows - first < group ? rows : first + group;
    A* kept = in_place ? reinterpret_cast<A*>(out) : spare;
    for (int k = first; k < last; ++k) {
      const int64_t target = args.column(from + k, 0);
      if (target < 0) continue;
      const ShortRow<T, A, kOffset> row(args, from + k, int(target));
      const A top = row.top(), shift = top == kMinusInfinity<A> ? A(0) : top;
      const A own = load_part<A>(row.logits + target, 1)[0];
      all.set(all.top, k, shift), all.set(all.sum, k, row.sum(shift, kept + (k - first) * classes));
      all.set(all.own, k, own + (kOffset ? row.offset[target] : A(0)));
      all.set(all.class_weight, k, plain.weight ? static_cast<const A*>(plain.weight)[target] : A(1));
    }
    all.slopes(A(plain.divisor));
    for (int k = first; args.d_logits && k < last; ++k, kept += classes, out += classes)
      short_gradient(out, kept, classes, args.column(from + k, 0), all.factor[k], all.d_own[k]);
  }
  all.save(plain, args.n, from, rows);
}

template <class T> void rows_plain(const Rows& args, const Plain& plain, int64_t begin, int64_t end) {
  using A = typename Arithmetic<T>::type;
  A spare[2 * kBlock];
  for (int64_t from = begin; from < end; from += Vec<A>::width) {
    const int rows = int(end - from < Vec<A>::width ? end - from : Vec<A>::width);
    (args.offset.data ? short_rows<T, A, true> : short_rows<T, A, false>)(args, plain, from, rows, spare);
  }
}

}  // namespace LT_ISA
}  // namespace lt
