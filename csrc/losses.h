// Losses of rows with one target each: statistics, losses, slopes and gradient, in memory that the caller provides.
#pragma once

#include <algorithm>
#include <vector>

#include "margins.h"
#include "pieces.h"
#include "table.h"

namespace lt {

enum Reduction { kNone, kWeightedMean, kSum, kMean };  // kMean divides by the number of rows that are not ignored

// The first target that is neither a class nor ignore_index, or nullptr.
inline const int64_t* invalid_target(const int64_t* target, int64_t count, int64_t classes, int64_t ignore_index) {
  for (int64_t i = 0; i < count; ++i)
    if ((target[i] < 0 || target[i] >= classes) && target[i] != ignore_index) return target + i;
  return nullptr;
}

// The first target whose offset is -infinity, or -1.
template <class A> int64_t absent_target(const Rows& args) {
  for (int64_t i = 0; args.offset.data && i < args.n; ++i)
    if (int64_t y = args.column(i, 0); y >= 0 && args.offset.at<A>(i)[y] == -std::numeric_limits<A>::infinity()) return y;
  return -1;
}

// The losses [n]. `saved` is [kSaved, n]: rest, top, and the slopes for rest, own, the target's offset and mean. Until
// its slopes are known, a row's own and mean are in the places of their slopes.
template <class A> struct Losses {
  Rows args;
  Margins margins;
  const A *total, *sample_weight;  // the sums of shares; a weight for each row, or none
  A *losses, *numbers;
  double divisor = 1;

  Losses(const Rows& rows, const Margins& margins, const A* total, const A* sample_weight, int64_t reduction, A* losses,
         A* saved, A* rival)
      : args(rows), margins(margins), total(total), sample_weight(sample_weight), losses(losses), numbers(saved) {
    const int64_t n = args.n;
    args.rest_out = numbers, args.top_out = numbers + n, args.own_out = numbers + 3 * n;
    args.rival_out = margins.needs_rival() ? rival : nullptr;
    args.mean_out = args.share.data ? numbers + 5 * n : nullptr;
    args.rest = numbers, args.top = numbers + n, args.d_rest = numbers + 2 * n, args.d_own = numbers + 3 * n;
    args.d_mean = args.mean_out;
    if (reduction == kWeightedMean || reduction == kMean) divide(reduction);
  }

  void divide(int64_t reduction) {
    divisor = 0;
    for (int64_t i = 0; i < args.n; ++i)
      if (int64_t y = args.column(i, 0); y >= 0)
        divisor += (reduction == kWeightedMean ? Margins::per_class<A>(margins.weight, 1.0, y) : A(1)) * weight_of(i);
  }
  A weight_of(int64_t i) const { return sample_weight ? sample_weight[i] : A(1); }
  // Where no row counts, the divisor is 0; the slopes then stay 0 instead of NaN.
  A divided(A slope) const { return slope == 0 ? A(0) : A(slope / divisor); }

  // Computes the loss of row i, and replaces its statistics in `saved` by its slopes.
  void row(int64_t i) const {
    int64_t n = args.n, y = args.column(i, 0);
    const A *offset = args.offset.at<A>(i), *share = args.share.at<A>(i);
    A own_offset = offset && y >= 0 ? offset[y] : A(0);
    A rival = args.rival_out ? static_cast<A*>(args.rival_out)[i] : A(0);
    Numbers<A> in{numbers[i], numbers[n + i], numbers[3 * n + i], rival, own_offset, A(1)};
    if (share) in.mean = numbers[5 * n + i], in.total = total[args.share.row(i)], in.share = y >= 0 ? share[y] : A(0);
    Result<A> out = margins.row<A>(in, y, y >= 0, share != nullptr, weight_of(i));
    losses[i] = out.loss, numbers[2 * n + i] = divided(out.d_rest), numbers[3 * n + i] = divided(out.d_own);
    numbers[4 * n + i] = divided(out.d_offset), numbers[5 * n + i] = divided(out.d_mean);
  }

  // Whether the memory of the gradient has room for the kept exponentials.
  static bool in_place(Type type) { return sizeof(A) == (type == kDouble ? 8 : type == kFloat ? 4 : 2); }

  // Whether csrc/short.h serves: short rows, and a loss without margin, scale, focal factor, smoothing, z-loss or weights
  // of rows.
  bool short_plain_rows() const {
    return args.c > 0 && args.c <= kBlock && margins.kind == kPlain && margins.gamma == 0 && !args.share.data &&
           margins.z_loss == 0 && !sample_weight &&
           args.scale == 1 && margins.scale == 1 && !args.row_scale && !args.column_scale;
  }

  // All rows; if the arguments have `d_logits` with the gradient, which is written while the row is in the cache.
  void run(Type type) const {
    int64_t grain = 8192 / std::max<int64_t>(args.c, 1);
    if (short_plain_rows())
      return in_pieces(args.n, grain, [&](int64_t begin, int64_t end) {
        kernels().rows_plain[type](args, {margins.weight, divisor, losses, numbers}, begin, end);
      });
    with_workers(args.n, grain, [&](Pieces& pieces) {
      Rows mine = args;
      const int64_t room = mine.d_logits ? args.group() : 0;
      std::vector<A> kept(in_place(type) ? 0 : room * args.c), shifts(room * mine.blocks());
      mine.kept = kept.data(), mine.shifts = shifts.data();
      for (int64_t begin, end; pieces.take(begin, end);) run(type, mine, begin, end);
    });
  }
  // The rows [begin, end), in `mine`, one thread's copy of the arguments.
  void run(Type type, Rows& mine, int64_t begin, int64_t end) const {
    const Kernels& table = kernels();
    for (int64_t i = begin, last; i < end; i = last) {
      last = std::min(i + args.group(), end);
      if (in_place(type)) mine.kept = static_cast<A*>(mine.d_logits) + i * args.c;
      (mine.d_logits ? table.rows_keep : table.rows_forward)[type](mine, i, last);
      for (int64_t k = i; k < last; ++k) row(k);
      if (mine.d_logits) table.rows_finish[type](mine, i, last);
    }
  }

  // The sum or the mean of the losses.
  A reduced(int64_t reduction) const {
    double sum = 0;
    for (int64_t i = 0; i < args.n; ++i) sum += losses[i];
    return A(reduction == kSum ? sum : sum / divisor);
  }
};

}  // namespace lt
