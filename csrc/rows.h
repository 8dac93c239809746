// Row statistics and their gradient: docs/math.md, sections 1 and 3. T: dtype of the logits, A: of the arithmetic.
#pragma once

#include <cmath>

#include "table.h"
#include "vec.h"

namespace lt {
namespace LT_ISA {

constexpr int kBlock = 1024;  // columns at a time: z and u of a block stay in the first cache

// One row's z = logits * row scale * column scale and u = scale * z + offset, a block of columns at a time.
template <class T, class A> struct Block {
  alignas(64) A z[kBlock], u[kBlock];
  const Rows& args;
  int64_t row;
  const T* logits;
  const A *columns, *offset;
  A row_scale, scale;
  bool same;  // u is z

  Block(const Rows& args, int64_t row)
      : args(args), row(row), logits(static_cast<const T*>(args.logits) + row * args.stride),
        columns(static_cast<const A*>(args.column_scale)), offset(args.offset.at<A>(row)),
        row_scale(args.row_scale ? static_cast<const A*>(args.row_scale)[row] : A(1)), scale(A(args.scale)),
        same(!offset && scale == A(1)) {}

  vec<A> value(int64_t j, int count) const {
    constexpr int W = Vec<A>::width;
    vec<A> x = count == W ? load(logits + j) : load_part<A>(logits + j, count);
    if (args.row_scale) x = x * row_scale;
    if (columns) x = x * (count == W ? load(columns + j) : load_part<A>(columns + j, count));
    return x;
  }

  // Fill z with the columns [first, first + count); lanes behind the end become -inf.
  void read(int64_t first, int count) {
    constexpr int W = Vec<A>::width;
    int k = 0;
    for (; k + W <= count; k += W) store(z + k, value(first + k, W));
    if (k == count) return;
    store(z + k, value(first + k, count - k));
    for (int lane = count; lane < k + W; ++lane) z[lane] = -std::numeric_limits<A>::infinity();
  }

  // Fill u from z; the lanes behind the end read no offset. A class that is not there (-inf) is no rival either.
  void adjust(int64_t first, int count) {
    constexpr int W = Vec<A>::width;
    const vec<A> none = splat(-std::numeric_limits<A>::infinity());
    for (int k = 0; k < count; k += W) {
      vec<A> raw = load(z + k), x = raw * scale;
      if (offset) {
        vec<A> b = k + W <= count ? load(offset + first + k) : load_part<A>(offset + first + k, count - k);
        x = x + b;
        store(z + k, b == none ? none : raw);
      }
      store(u + k, x);
    }
  }

  A* adjusted(int64_t first, int count) {
    if (same) return z;
    adjust(first, count);
    return u;
  }

  void set_targets(A* values, int64_t first, int count, A value) const {
    for (int64_t k = 0; k < args.slots; ++k) {
      int64_t local = args.column(row, k) - first;
      if (local >= 0 && local < count) values[local] = value;
    }
  }
};

template <class A> inline vec<A> block_top(const A* values, int count) {
  constexpr int W = Vec<A>::width;
  vec<A> best = load(values);
  for (int k = W; k < count; k += W) best = max(best, load(values + k));
  return best;
}

template <class A> inline A sum_exp(const A* u, int count, A shift) {
  constexpr int W = Vec<A>::width;
  vec<A> even{}, odd{};
  int k = 0;
  for (; k + W < count; k += 2 * W) {
    even = even + exp(load(u + k) - shift);
    odd = odd + exp(load(u + k + W) - shift);
  }
  if (k < count) even = even + exp(load(u + k) - shift);
  return sum<A>(even + odd);
}

// log-sum-exp of what came so far: top + log(total).
template <class A> struct Online {
  A top = -std::numeric_limits<A>::infinity(), total = 0;

  void add(const A* u, int count) {
    A best = LT_ISA::top<A>(block_top(u, count));
    if (best > top) {
      total = top == -std::numeric_limits<A>::infinity() ? total : total * std::exp(top - best);
      top = best;
    }
    total += sum_exp(u, count, top == -std::numeric_limits<A>::infinity() ? A(0) : top);
  }
  A value() const { return total == 0 ? -std::numeric_limits<A>::infinity() : (std::isinf(top) ? 0 : top) + std::log(total); }
};

template <class A> inline A weighted(const A* share, const A* u, int count) {
  constexpr int W = Vec<A>::width;
  vec<A> total{};
  for (int k = 0; k < count; k += W) {
    vec<A> part = k + W <= count ? load(share + k) : load_part<A>(share + k, count - k), x = load(u + k);
    total = total + (part != 0 ? part * x : vec<A>{});
  }
  return sum<A>(total);
}

template <class A> inline A at(const void* numbers, int64_t i) { return static_cast<const A*>(numbers)[i]; }

// The targets' own z, taken out of the block: z becomes -inf there.
template <class T, class A> inline void take_own(Block<T, A>& block, A* own, int64_t first, int count) {
  for (int64_t k = 0; k < block.args.slots; ++k) {
    int64_t local = block.args.column(block.row, k) - first;
    if (local >= 0 && local < count) own[k] = block.z[local];
  }
  block.set_targets(block.z, first, count, -std::numeric_limits<A>::infinity());
}

template <class T, class A> void forward_row(const Rows& args, int64_t i) {
  const A none = -std::numeric_limits<A>::infinity();
  A* own = static_cast<A*>(args.own_out) + i * args.slots;
  for (int64_t k = 0; k < args.slots; ++k) own[k] = none;
  Online<A> online;
  A rival = none, mean = 0;
  if (!args.skipped(i)) {
    Block<T, A> block(args, i);
    const A* share = args.share.at<A>(i);
    for (int64_t first = 0; first < args.c; first += kBlock) {
      int count = int(args.c - first < kBlock ? args.c - first : kBlock);
      block.read(first, count);
      take_own(block, own, first, count);
      A* u = block.adjusted(first, count);
      online.add(u, count);
      A best = block.same ? none : LT_ISA::top<A>(block_top(block.z, count));
      rival = best > rival ? best : rival;
      if (!share) continue;
      block.set_targets(u, first, count, A(0));  // their share of the mean belongs to the loss
      mean += weighted(share + first, u, count);
    }
    if (block.same) rival = online.top;
  }
  static_cast<A*>(args.rest_out)[i] = online.value();
  static_cast<A*>(args.rival_out)[i] = rival;
  if (args.mean_out) static_cast<A*>(args.mean_out)[i] = mean;
}

// What a row's backward needs: slopes times the incoming gradient.
template <class A> struct Slopes {
  A rest, d_rest, d_mean, factor;
  Slopes(const Rows& args, int64_t i) {
    factor = args.grad ? at<A>(args.grad, args.one_grad ? 0 : i) : A(1);
    rest = at<A>(args.rest, i);
    if (rest == -std::numeric_limits<A>::infinity()) rest = 0;
    d_rest = at<A>(args.d_rest, i) * factor;
    d_mean = args.d_mean ? at<A>(args.d_mean, i) * factor : A(0);
  }
};

// d loss / d u of one vector of non-target columns.
template <class A>
inline vec<A> slope(const Slopes<A>& s, vec<A> u, const A* share, int64_t j, int count) {
  vec<A> value = exp(u - s.rest) * s.d_rest;
  if (!share) return value;
  return value + (count == Vec<A>::width ? load(share + j) : load_part<A>(share + j, count)) * s.d_mean;
}

template <class T, class A> void backward_row(const Rows& args, int64_t i) {
  constexpr int W = Vec<A>::width;
  T* out = static_cast<T*>(args.d_logits) + i * args.c;
  if (args.skipped(i)) return void(std::memset(static_cast<void*>(out), 0, args.c * sizeof(T)));
  Block<T, A> block(args, i);
  Slopes<A> slopes(args, i);
  const A *share = args.d_mean ? args.share.at<A>(i) : nullptr, outer = block.scale * block.row_scale;
  for (int64_t j = 0; j < args.c; j += W) {
    int count = int(args.c - j < W ? args.c - j : W);
    vec<A> u = block.value(j, count) * block.scale;
    if (block.offset) u = u + (count == W ? load(block.offset + j) : load_part<A>(block.offset + j, count));
    vec<A> d = slope(slopes, u, share, j, count) * outer;
    if (block.columns) d = d * (count == W ? load(block.columns + j) : load_part<A>(block.columns + j, count));
    if (count == W) store(out + j, d);
    else store_part<A>(out + j, d, count);
  }
  for (int64_t k = 0; k < args.slots; ++k) {  // a class that is two slots' target gets both slopes
    int64_t column = args.column(i, k);
    if (column < 0) continue;
    A d = 0;
    for (int64_t other = 0; other < args.slots; ++other)
      if (args.column(i, other) == column) d += at<A>(args.d_own, i * args.slots + other) * slopes.factor;
    d *= block.row_scale * (block.columns ? block.columns[column] : A(1));
    store_part<A>(out + column, splat(d), 1);
  }
}

// The offset's gradient for the columns [begin, end), all rows in their order: the same bits whatever the threads.
template <class T, class A> void offset_columns(const Rows& args, int64_t begin, int64_t end) {
  constexpr int W = Vec<A>::width;
  A* out = static_cast<A*>(args.d_offset);
  for (int64_t i = 0; i < args.n; ++i) {
    if (args.skipped(i)) continue;
    Block<T, A> block(args, i);
    Slopes<A> slopes(args, i);
    A* line = out + args.offset.row(i) * args.c;
    const A* share = args.d_mean ? args.share.at<A>(i) : nullptr;
    alignas(64) A d[W];
    for (int64_t j = begin; j < end; j += W) {
      int count = int(end - j < W ? end - j : W);
      vec<A> u = block.value(j, count) * block.scale;
      u = u + (count == W ? load(block.offset + j) : load_part<A>(block.offset + j, count));
      store(d, slope(slopes, u, share, j, count));
      for (int64_t k = 0; k < args.slots; ++k) {
        int64_t lane = args.column(i, k) - j;
        if (lane >= 0 && lane < count) d[lane] = 0;
      }
      for (int lane = 0; lane < count; ++lane) line[j + lane] += d[lane];
    }
    for (int64_t k = 0; args.d_own_offset && k < args.slots; ++k) {
      int64_t column = args.column(i, k);
      if (column >= begin && column < end) line[column] += at<A>(args.d_own_offset, i * args.slots + k) * slopes.factor;
    }
  }
}

template <class T> void rows_forward(const Rows& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) forward_row<T, typename Arithmetic<T>::type>(args, i);
}
template <class T> void rows_backward(const Rows& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) backward_row<T, typename Arithmetic<T>::type>(args, i);
}
template <class T> void rows_offset(const Rows& args, int64_t begin, int64_t end) {
  offset_columns<T, typename Arithmetic<T>::type>(args, begin, end);
}

}  // namespace LT_ISA
}  // namespace lt
