// Column-wise log-sum-exp and its gradient: docs/math.md, section 7. T: dtype of the logits, A: of the arithmetic.
#pragma once

#include <cmath>

#include "table.h"
#include "vec.h"

namespace lt {
namespace LT_ISA {

constexpr int kColumns = 256;  // columns of a block: their running sums stay in the L1 cache
constexpr int kChunk = 64;     // rows of a block: it is read twice, for maxima and for sums, the second time from L2


// One row of the logits, with its offset added.
template <class T, class A> struct ColumnLine {
  const T* logits;
  A offset;

  ColumnLine(const ColumnSums& in, int64_t i)
      : logits(static_cast<const T*>(in.logits) + i * in.stride),
        offset(in.row_offset ? static_cast<const A*>(in.row_offset)[i] : A(0)) {}
  vec<A> value(int64_t j, int count) const {
    return (count == Vec<A>::width ? load(logits + j) : load_part<A>(logits + j, count)) + offset;
  }
};

// The running log-sum-exp of a block of columns: `top` is the maximum so far, `total` the sum of exp(value - shift),
// `part` that of the current chunk of rows. `shift` is the maximum at the last rescaling, or 0 if it is infinite.
template <class A> struct ColumnState {
  alignas(64) A top[kColumns], total[kColumns], shift[kColumns], part[kColumns];

  ColumnState() {
    for (int k = 0; k < kColumns; ++k) top[k] = kMinusInfinity<A>, total[k] = shift[k] = part[k] = 0;
  }

  template <class T> void raise(const ColumnLine<T, A>& line, int64_t first, int count) {
    constexpr int W = Vec<A>::width;
    for (int k = 0; k < count; k += W)
      store(top + k, max(load(top + k), line.value(first + k, count - k < W ? count - k : W)));
  }
  // Rescales the sums to the new maxima, which a chunk of rows may have raised.
  void rescale(int count) {
    constexpr int W = Vec<A>::width;
    for (int k = 0; k < count; k += W) {
      vec<A> best = load(top + k), before = load(shift + k), sum = load(total + k);
      vec<A> now = (best == kMinusInfinity<A>) | (best == -kMinusInfinity<A>) ? vec<A>{} : best;  // inf - inf is NaN
      store(total + k, sum == 0 ? sum : sum * exp(before - now));
      store(shift + k, now);
      store(part + k, vec<A>{});
    }
  }
  template <class T> void add(const ColumnLine<T, A>& line, int64_t first, int count) {
    constexpr int W = Vec<A>::width;
    for (int k = 0; k < count; k += W) {
      vec<A> z = line.value(first + k, count - k < W ? count - k : W);
      store(part + k, load(part + k) + exp(z - load(shift + k)));
    }
  }
  void fold(int count) {
    constexpr int W = Vec<A>::width;
    for (int k = 0; k < count; k += W) store(total + k, load(total + k) + load(part + k));
  }
};

// The log-sum-exp of the columns [begin, end). Each column is summed in the same order whatever the blocks and threads.
template <class T> void columns_forward(const ColumnSums& in, int64_t begin, int64_t end) {
  using A = typename Arithmetic<T>::type;
  A* out = static_cast<A*>(in.lse_out);
  for (int64_t first = begin; first < end; first += kColumns) {
    int count = int(end - first < kColumns ? end - first : kColumns);
    ColumnState<A> state;
    for (int64_t chunk = 0; chunk < in.n; chunk += kChunk) {
      int64_t last = chunk + kChunk < in.n ? chunk + kChunk : in.n;
      for (int64_t i = chunk; i < last; ++i) state.raise(ColumnLine<T, A>(in, i), first, count);
      state.rescale(count);
      for (int64_t i = chunk; i < last; ++i) state.add(ColumnLine<T, A>(in, i), first, count);
      state.fold(count);
    }
    for (int k = 0; k < count; ++k)
      out[first + k] = state.total[k] == 0 ? kMinusInfinity<A> : state.shift[k] + std::log(state.total[k]);
  }
}

// The target logits of the rows [begin, end).
template <class T> void columns_own(const ColumnSums& in, int64_t begin, int64_t end) {
  using A = typename Arithmetic<T>::type;
  for (int64_t i = begin; i < end; ++i) {
    const T* line = static_cast<const T*>(in.logits) + i * in.stride;
    static_cast<A*>(in.own_out)[i] = load_part<A>(line + in.target[i], 1)[0];
  }
}

// exp(z - lse): the softmax over the batch; 0 in a column that is all -infinity.
template <class A> inline vec<A> probability(vec<A> z, vec<A> lse) {
  return exp(z - (lse == kMinusInfinity<A> ? vec<A>{} : lse));
}

// The gradient of the rows [begin, end).
template <class T> void columns_backward(const ColumnSums& in, int64_t begin, int64_t end) {
  using A = typename Arithmetic<T>::type;
  constexpr int W = Vec<A>::width;
  const A *lse = static_cast<const A*>(in.lse), *d_lse = static_cast<const A*>(in.d_lse);
  for (int64_t i = begin; i < end; ++i) {
    ColumnLine<T, A> line(in, i);
    T* out = static_cast<T*>(in.d_logits) + i * in.c;
    int64_t j = 0, y = in.target[i];
    for (; j + W <= in.c; j += W) store(out + j, load(d_lse + j) * probability<A>(line.value(j, W), load(lse + j)));
    if (j < in.c) {
      int rest = int(in.c - j);
      vec<A> d = load_part<A>(d_lse + j, rest) * probability<A>(line.value(j, rest), load_part<A>(lse + j, rest));
      store_part<A>(out + j, d, rest);
    }
    vec<A> target = splat(d_lse[y]) * probability<A>(line.value(y, 1), splat(lse[y]));  // in A: rounded once
    store_part<A>(out + y, splat(target[0] + static_cast<const A*>(in.d_own)[i]), 1);
  }
}

}  // namespace LT_ISA
}  // namespace lt
