// Row statistics and their gradient: docs/math.md, sections 1 and 3. T: dtype of the logits, A: of the arithmetic.
#pragma once

#include <cmath>

#include "table.h"
#include "vec.h"

namespace lt {
namespace LT_ISA {


// One row's z = logits * row scale * column scale and u = scale * z + offset.
template <class T, class A> struct LogitRow {
  const Rows& args;
  int64_t row;
  const T* logits;
  const A *columns, *offset;
  A row_scale, scale;

  LogitRow(const Rows& args, int64_t row)
      : args(args), row(row), logits(static_cast<const T*>(args.logits) + row * args.stride),
        columns(static_cast<const A*>(args.column_scale)), offset(args.offset.at<A>(row)),
        row_scale(args.row_scale ? static_cast<const A*>(args.row_scale)[row] : A(1)), scale(A(args.scale)) {}

  template <class X> static vec<A> part(const X* from, int count) {
    return count == Vec<A>::width ? load(from) : load_part<A>(from, count);
  }
  vec<A> z(int64_t j, int count) const {
    vec<A> x = part(logits + j, count);
    if (args.row_scale) x = x * row_scale;
    return columns ? x * part(columns + j, count) : x;
  }
  vec<A> u(int64_t j, int count) const {
    vec<A> x = unfused(z(j, count) * scale);
    return offset ? x + part(offset + j, count) : x;
  }
  // The target logit z; -infinity if the row has no target here.
  A own(int64_t column) const { return column < 0 || args.skipped(row) ? kMinusInfinity<A> : z(column, 1)[0]; }
};

// The statistics of a block of columns, without the targets: the sum of exp(u - shift), the maximum of u, and if asked
// for the maximum of z over classes whose offset is not -infinity, and the sums of share * (u - shift) and of share.
template <class A> struct BlockStatistics {
  A sum, top, rival, mean, shares;
};

enum Pass { kMaximum, kSum, kKeep };  // computes the maximum of u; all statistics; these, and keeps exp(u - shift)

// The passes over blocks of one row.
template <class T, class A> struct Block {
  static constexpr int W = Vec<A>::width;
  const LogitRow<T, A>& line;
  const A* share;

  explicit Block(const LogitRow<T, A>& line) : line(line), share(line.args.share.template at<A>(line.row)) {}

  // The columns [first, first + count).
  template <Pass kPass> BlockStatistics<A> pass(int64_t first, int count, A shift, A* kept) const {
    bool scaled = line.args.row_scale || line.columns || line.scale != A(1);
    const bool more = kPass != kMaximum && (line.args.rival_out || share);
    if (more) return walk<kPass, true, true, true>(first, count, shift, kept);
    if (line.offset) return scaled ? walk<kPass, true, true, false>(first, count, shift, kept)
                                   : walk<kPass, false, true, false>(first, count, shift, kept);
    return scaled ? walk<kPass, true, false, false>(first, count, shift, kept)
                  : walk<kPass, false, false, false>(first, count, shift, kept);
  }

  // The members are copied to local variables, which stay in registers: a compiler must assume that a store to `kept`
  // changes any member.
  template <Pass kPass, bool kScaled, bool kOffset, bool kMore>
  BlockStatistics<A> walk(int64_t first, int count, A shift, A* kept) const {
    const T* logits = line.logits + first;
    const A *columns = line.columns ? line.columns + first : nullptr, *offset = line.offset ? line.offset + first : nullptr;
    const A *shares = share ? share + first : nullptr, row_scale = line.row_scale, scale = line.scale;
    const vec<A> absent = splat(kMinusInfinity<A>);
    const int64_t one = place(0, first, count), two = place(1, first, count);
    vec<A> total{}, mean{}, weight{}, top = absent, rival = absent;
    auto step = [&](int k, int size, bool special) __attribute__((always_inline)) {
      if (kPass != kMaximum) __builtin_prefetch(logits + k + kBlock);
      vec<A> z = LogitRow<T, A>::part(logits + k, size);
      if (kScaled) z = z * row_scale;
      if (kScaled && columns) z = z * LogitRow<T, A>::part(columns + k, size);
      if (special) z = lanes<A>() < size ? without(without(z, one - k, absent), two - k, absent) : absent;
      vec<A> u = kScaled ? unfused(z * scale) : z;
      if (kOffset && (!kMore || offset)) {
        vec<A> b = LogitRow<T, A>::part(offset + k, size);
        u = u + b;
        if (kMore) z = b == absent ? b : z;  // an absent class is no rival
      }
      top = max(top, u);
      if (kPass == kMaximum) return;
      u = u - shift;
      vec<A> value = exp(u);
      total = total + value;
      if (kPass == kKeep && size == W) store(kept + k, value);
      else if (kPass == kKeep) store_part<A>(kept + k, value, size);
      if (!kMore) return;
      rival = max(rival, z);
      if (!shares) return;
      vec<A> part = LogitRow<T, A>::part(shares + k, size);  // without the targets', whose term the loss adds
      if (special) part = without(without(part, one - k, vec<A>{}), two - k, vec<A>{});
      mean = mean + (part != 0 ? part * u : vec<A>{}), weight = weight + part;
    };
    // The inner loop has no masks: vectors that hold a target, and the incomplete one at the end, are done outside it.
    const int whole = count / W * W, near = int(one < two ? one : two) / W * W, far = int(one < two ? two : one) / W * W;
    for (int k = 0; k < count; k += W) {
      const int stop = k <= near && near < whole ? near : k <= far && far < whole ? far : whole;
      for (; k < stop; k += W) step(k, W, false);
      if (k < count) step(k, count - k < W ? count - k : W, true);
    }
    BlockStatistics<A> found{};
    found.top = LT_ISA::largest<A>(top);
    if (kPass != kMaximum) found.sum = sum<A>(total);
    if (kMore) found.rival = LT_ISA::largest<A>(rival), found.mean = sum<A>(mean), found.shares = sum<A>(weight);
    return found;
  }

  // The column of a target relative to the block, or `count` if it is not in the block.
  int64_t place(int64_t slot, int64_t first, int count) const {
    int64_t column = slot < line.args.slots ? line.args.column(line.row, slot) - first : -1;
    return column < 0 || column > count ? count : column;
  }
  static vec<A> without(vec<A> value, int64_t lane, vec<A> instead) { return lanes<A>() == int(lane) ? instead : value; }
};

// How far u may exceed the shift: this keeps exp(u - shift) from overflowing, and its relative error small.
template <class A> constexpr A kSlack = 2;

// The online log-sum-exp of the blocks so far, top + log(total), where top is at most kSlack below the maximum; mean is
// the sum of share * (u - top), and shares that of share.
template <class A> struct Online {
  A top = kMinusInfinity<A>, total = 0, mean = 0, shares = 0;

  void raise(A best) {
    if (!(best > top)) return;
    if (top != kMinusInfinity<A>) total *= std::exp(top - best), mean += shares * (top - best);
    top = best;
  }
  A shift() const { return top == kMinusInfinity<A> ? A(0) : top; }

  // Adds a block in one pass. If its maximum exceeds `top` by more than kSlack, a second pass takes it as the shift.
  template <Pass kPass, class T> BlockStatistics<A> add(const Block<T, A>& block, int64_t first, int count, A* kept) {
    if (top == kMinusInfinity<A>) raise(block.template pass<kMaximum>(first, count, A(0), nullptr).top);
    BlockStatistics<A> found = block.template pass<kPass>(first, count, shift(), kept);
    if (found.top > top + kSlack<A>) {
      raise(found.top);
      found = block.template pass<kPass>(first, count, shift(), kept);
    }
    total += found.sum, mean += found.mean, shares += found.shares;
    return found;
  }
  A value() const { return total == 0 ? kMinusInfinity<A> : std::log(total); }  // without top, which may be far larger
};

template <class A> inline A at(const void* numbers, int64_t i) { return static_cast<const A*>(numbers)[i]; }

// The statistics of one row, given the maximum `top` of its first block; kKeep keeps exponentials and shifts as well.
template <Pass kPass, class T, class A> void forward_row(const Block<T, A>& block, A top, A* kept, A* shifts) {
  const Rows& args = block.line.args;
  const int64_t i = block.line.row, classes = args.skipped(i) ? 0 : args.c;
  A* own = static_cast<A*>(args.own_out) + i * args.slots;
  for (int64_t k = 0; k < args.slots; ++k) own[k] = block.line.own(args.column(i, k));
  Online<A> online;
  if (classes) online.raise(top);
  A rival = kMinusInfinity<A>;
  for (int64_t first = 0; first < classes; first += kBlock) {
    int count = int(classes - first < kBlock ? classes - first : kBlock);
    BlockStatistics<A> found = online.template add<kPass>(block, first, count, kPass == kKeep ? kept + first : nullptr);
    if (kPass == kKeep) shifts[first / kBlock] = online.shift();
    rival = found.rival > rival ? found.rival : rival;
  }
  auto give = [i](void* out, A value) { if (out) static_cast<A*>(out)[i] = value; };
  give(args.rest_out, online.value()), give(args.top_out, online.top), give(args.rival_out, rival);
  give(args.mean_out, online.mean), give(args.shares_out, online.shares);
}

// The rows [begin, end) in groups that stay in the L1 cache: the maxima of their first blocks, then the statistics.
template <class T, class A, Pass kPass> void forward_rows(const Rows& args, int64_t begin, int64_t end) {
  A tops[kGroup], *kept = static_cast<A*>(args.kept), *shifts = static_cast<A*>(args.shifts);
  const int group = args.group();
  for (int64_t from = begin; from < end; from += group) {
    const int rows = int(end - from < group ? end - from : group), count = int(args.c < kBlock ? args.c : kBlock);
    for (int k = 0; k < rows; ++k) {
      const LogitRow<T, A> line(args, from + k);
      tops[k] = Block<T, A>(line).template pass<kMaximum>(0, count, A(0), nullptr).top;
    }
    for (int k = 0; k < rows; ++k) {
      const LogitRow<T, A> line(args, from + k);
      const int64_t place = from + k - begin;
      forward_row<kPass>(Block<T, A>(line), tops[k], kept + place * args.c, shifts + place * args.blocks());
    }
  }
}

// The slopes of a row, multiplied by the incoming gradient `factor`.
template <class A> struct Slopes {
  A top, rest, d_rest, d_mean, factor;
  Slopes(const Rows& args, int64_t i) {
    factor = args.grad ? at<A>(args.grad, args.one_grad ? 0 : i) : A(1);
    top = or_zero(at<A>(args.top, i)), rest = or_zero(at<A>(args.rest, i));
    d_rest = at<A>(args.d_rest, i) * factor;
    d_mean = args.d_mean ? at<A>(args.d_mean, i) * factor : A(0);
  }
  static A or_zero(A value) { return value == kMinusInfinity<A> ? A(0) : value; }
  // The factor that makes exp(u - shift) the gradient with respect to u.
  A exp_factor(A shift) const { return std::exp((shift - top) - rest) * d_rest; }
};

// The gradient with respect to u for one vector of columns that hold no target.
template <class A>
inline vec<A> slope(const Slopes<A>& s, A factor, vec<A> u, const A* share, int64_t j, int count) {
  vec<A> value = exp(u - s.top) * factor;
  if (!share) return value;
  return value + (count == Vec<A>::width ? load(share + j) : load_part<A>(share + j, count)) * s.d_mean;
}

template <class T, class A> void backward_row(const Rows& args, int64_t i) {
  constexpr int W = Vec<A>::width;
  T* out = static_cast<T*>(args.d_logits) + i * args.c;
  if (args.skipped(i)) return void(std::memset(static_cast<void*>(out), 0, args.c * sizeof(T)));
  const LogitRow<T, A> line(args, i);
  const Slopes<A> slopes(args, i);
  const A *share = args.d_mean ? args.share.at<A>(i) : nullptr, *columns = line.columns, *offset = line.offset;
  const A inner = line.scale * line.row_scale, mean = slopes.d_mean * inner;
  const A outer = slopes.exp_factor(slopes.top) * inner;
  const T* logits = line.logits;
  const int64_t classes = args.c;
  auto step = [&](int64_t j, int count) {
    auto part = [&](auto* from) { return LogitRow<T, A>::part(from + j, count); };
    vec<A> z = part(logits), cosine = columns ? z * part(columns) : z;
    vec<A> u = offset ? unfused(cosine * inner) + part(offset) : unfused(cosine * inner);
    vec<A> d = exp(u - slopes.top) * outer;
    if (share) d = d + part(share) * mean;
    if (columns) d = d * part(columns);
    if (count == W) store(out + j, d);
    else store_part<A>(out + j, d, count);
  };
  int64_t j = 0;
  for (; j + W <= classes; j += W) step(j, W);
  if (j < classes) step(j, int(classes - j));
  for (int64_t k = 0; k < args.slots; ++k) {  // if both targets are the same class, it gets the sum of both slopes
    int64_t column = args.column(i, k);
    if (column < 0) continue;
    A d = 0;
    for (int64_t other = 0; other < args.slots; ++other)
      if (args.column(i, other) == column) d += at<A>(args.d_own, i * args.slots + other) * slopes.factor;
    d *= line.row_scale * (line.columns ? line.columns[column] : A(1));
    store_part<A>(out + column, splat(d), 1);
  }
}

// The gradient of a row from the exp(u - shift) that rows_keep has just left, possibly in the memory of the gradient.
template <class T, class A> void finish_row(const Rows& args, int64_t i, const A* kept, const A* shifts) {
  constexpr int W = Vec<A>::width;
  T* out = static_cast<T*>(args.d_logits) + i * args.c;
  if (args.skipped(i)) return void(std::memset(static_cast<void*>(out), 0, args.c * sizeof(T)));
  const Slopes<A> slopes(args, i);
  const A* share = args.d_mean ? args.share.at<A>(i) : nullptr;
  const A row_scale = args.row_scale ? at<A>(args.row_scale, i) : A(1), *columns = static_cast<const A*>(args.column_scale);
  const A scale = A(args.scale) * row_scale, mean = slopes.d_mean * scale;
  for (int64_t first = 0; first < args.c; first += kBlock) {
    const int count = int(args.c - first < kBlock ? args.c - first : kBlock);
    const A factor = slopes.exp_factor(shifts[first / kBlock]) * scale;
    auto step = [&](int64_t j, int size) {
      vec<A> d = LogitRow<A, A>::part(kept + j, size) * factor;
      if (share) d = d + LogitRow<A, A>::part(share + j, size) * mean;
      if (columns) d = d * LogitRow<A, A>::part(columns + j, size);
      if (size == W) store(out + j, d);
      else store_part<A>(out + j, d, size);
    };
    int64_t j = first;
    for (; j + W <= first + count; j += W) step(j, W);
    if (j < first + count) step(j, int(first + count - j));
  }
  int64_t column = args.column(i, 0);
  const A inner = column >= 0 && columns ? row_scale * columns[column] : row_scale;
  if (column >= 0) store_part<A>(out + column, splat(at<A>(args.d_own, i) * slopes.factor * inner), 1);
}

// The gradient of the offset for the columns [begin, end). The rows are summed in order, so that the result does not
// depend on the number of threads.
template <class T, class A> void offset_columns(const Rows& args, int64_t begin, int64_t end) {
  constexpr int W = Vec<A>::width;
  A* out = static_cast<A*>(args.d_offset);
  for (int64_t i = 0; i < args.n; ++i) {
    if (args.skipped(i)) continue;
    LogitRow<T, A> from(args, i);
    Slopes<A> slopes(args, i);
    const A factor = slopes.exp_factor(slopes.top);
    A* line = out + args.offset.row(i) * args.c;
    const A* share = args.d_mean ? args.share.at<A>(i) : nullptr;
    alignas(64) A d[W];
    for (int64_t j = begin; j < end; j += W) {
      int count = int(end - j < W ? end - j : W);
      store(d, slope(slopes, factor, from.u(j, count), share, j, count));
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
  forward_rows<T, typename Arithmetic<T>::type, kSum>(args, begin, end);
}
template <class T> void rows_keep(const Rows& args, int64_t begin, int64_t end) {
  forward_rows<T, typename Arithmetic<T>::type, kKeep>(args, begin, end);
}
template <class T> void rows_finish(const Rows& args, int64_t begin, int64_t end) {
  using A = typename Arithmetic<T>::type;
  for (int64_t i = begin; i < end; ++i)
    finish_row<T, A>(args, i, static_cast<const A*>(args.kept) + (i - begin) * args.c,
                     static_cast<const A*>(args.shifts) + (i - begin) * args.blocks());
}
template <class T> void rows_backward(const Rows& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) backward_row<T, typename Arithmetic<T>::type>(args, i);
}
template <class T> void rows_offset(const Rows& args, int64_t begin, int64_t end) {
  offset_columns<T, typename Arithmetic<T>::type>(args, begin, end);
}

}  // namespace LT_ISA
}  // namespace lt
