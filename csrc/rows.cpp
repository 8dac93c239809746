// Row statistics: the operators of lt_kernels/ops/rows.py on a CPU.
#include <tuple>
#include <vector>

#include "margins.h"
#include "tensors.h"

namespace lt {
namespace {

void check_targets(const int64_t* target, int64_t count, int64_t classes, int64_t ignore_index) {
  for (int64_t i = 0; i < count; ++i) {
    bool fits = (target[i] >= 0 && target[i] < classes) || target[i] == ignore_index;
    STD_TORCH_CHECK(fits, "target holds ", target[i], "; allowed are 0 to ", classes - 1, " and ignore_index=", ignore_index);
  }
}

struct Inputs : Held {
  Rows args;
  Type type;
  ScalarType sums;

  Inputs(const Tensor& logits, const Tensor& target, double scale, const Optional& row_scale,
         const Optional& column_scale, const Optional& offset, const Optional& offset_row, const Optional& mean_weight,
         int64_t start, int64_t ignore_index)
      : type(type_of(logits)), sums(arithmetic(logits)) {
    const Tensor& rows = keep(dense_rows(logits));
    args.logits = rows.const_data_ptr();
    args.n = rows.size(0), args.c = rows.size(1), args.stride = rows.stride(0);
    args.target = indices(target, "target");
    args.slots = target.dim() == 1 ? 1 : target.size(1);
    STD_TORCH_CHECK(args.slots <= 2, "lt_kernels: target must have at most two classes a row");
    STD_TORCH_CHECK(target.size(0) == args.n, "lt_kernels: target must have a row for each of the logits'");
    args.start = start, args.ignore_index = ignore_index, args.scale = scale;
    args.row_scale = numbers(row_scale, sums, "row_scale");
    args.column_scale = numbers(column_scale, sums, "column_scale");
    args.offset = lookup(offset, offset_row, args.n, args.c, sums, "offset");
    args.share = lookup(mean_weight, offset_row, args.n, args.c, sums, "mean_weight");
  }

  void run(RowsKernel kernel, int64_t count, int64_t work) const {
    torch::stable::parallel_for(0, count, std::max<int64_t>(1, 16384 / std::max<int64_t>(work, 1)),
                                [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }
  void forward() const { run(kernels().rows_forward[type], args.n, args.c); }
  Tensor backward(const Tensor& like) {
    Tensor d_logits = empty({args.n, args.c}, like.scalar_type());
    args.d_logits = d_logits.mutable_data_ptr();
    run(kernels().rows_backward[type], args.n, args.c);
    return d_logits;
  }
  Tensor offset_gradient(bool wanted) {
    if (!wanted || !args.offset.data) return empty({0}, sums);
    Tensor d_offset = empty({args.offset.rows, args.c}, sums);
    torch::stable::zero_(d_offset);
    args.d_offset = d_offset.mutable_data_ptr();
    int64_t columns = 256, blocks = (args.c + columns - 1) / columns;
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      kernels().rows_offset[type](args, begin * columns, std::min(end * columns, args.c));
    });
    return d_offset;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> rows_forward(
    Tensor logits, Tensor target, double scale, Optional row_scale, Optional column_scale, Optional offset,
    Optional offset_row, Optional mean_weight, int64_t start, int64_t classes, int64_t ignore_index) {
  Inputs in(logits, target, scale, row_scale, column_scale, offset, offset_row, mean_weight, start, ignore_index);
  Rows& args = in.args;
  check_targets(args.target, args.n * args.slots, classes, ignore_index);
  Tensor rest = empty({args.n}, in.sums), own = empty({args.n, args.slots}, in.sums), rival = empty({args.n}, in.sums);
  Tensor mean = empty({mean_weight ? args.n : 0}, in.sums);
  args.rest_out = rest.mutable_data_ptr(), args.own_out = own.mutable_data_ptr();
  args.rival_out = rival.mutable_data_ptr(), args.mean_out = mean_weight ? mean.mutable_data_ptr() : nullptr;
  in.forward();
  return {rest, own, rival, mean};
}

std::tuple<Tensor, Tensor> rows_backward(
    Tensor logits, Tensor target, double scale, Optional row_scale, Optional column_scale, Optional offset,
    Optional offset_row, Optional mean_weight, int64_t start, int64_t classes, int64_t ignore_index, Tensor rest,
    Tensor d_rest, Tensor d_own, Optional d_own_offset, Optional d_mean, Optional grad, bool want_offset) {
  Inputs in(logits, target, scale, row_scale, column_scale, offset, offset_row, mean_weight, start, ignore_index);
  in.args.rest = in.numbers(rest, in.sums, "rest");
  in.args.d_rest = in.numbers(d_rest, in.sums, "d_rest");
  in.args.d_own = in.numbers(d_own, in.sums, "d_own");
  in.args.d_own_offset = in.numbers(d_own_offset, in.sums, "d_own_offset");
  in.args.d_mean = in.numbers(d_mean, in.sums, "d_mean");
  in.args.grad = in.numbers(grad, in.sums, "grad");
  Tensor d_logits = in.backward(logits);
  return {d_logits, in.offset_gradient(want_offset)};
}

void check_offsets(const Rows& args, bool is_double) {
  if (!args.offset.data) return;
  for (int64_t i = 0; i < args.n; ++i) {
    int64_t y = args.column(i, 0);
    double b = y < 0 ? 0 : is_double ? args.offset.at<double>(i)[y] : args.offset.at<float>(i)[y];
    check_present(b, y);
  }
}

enum Reduction { kNone, kWeightedMean, kSum, kMean };  // kMean divides by the number of rows that count

// The losses of rows for one target each; saved is [rest, d_rest, d_own, d_offset, d_mean] x n.
template <class A> struct Losses {
  Rows args;
  Margins margins;
  const A* total;
  Tensor loss, saved, rival;
  A *losses, *numbers;
  double divisor = 1;

  Losses(Inputs& in, const Margins& margins, const void* totals, int64_t reduction)
      : margins(margins), total(static_cast<const A*>(totals)), loss(empty({in.args.n}, in.sums)),
        saved(empty({5, in.args.n}, in.sums)), rival(empty({margins.kind == kAngular ? in.args.n : 0}, in.sums)),
        losses(static_cast<A*>(loss.mutable_data_ptr())), numbers(static_cast<A*>(saved.mutable_data_ptr())) {
    int64_t n = in.args.n;
    const bool hardness = margins.kind == kAngular && margins.instance != 0;  // all that the rival is asked for
    in.args.rest_out = numbers, in.args.own_out = numbers + 2 * n;
    in.args.rival_out = hardness ? rival.mutable_data_ptr() : nullptr;
    in.args.mean_out = in.args.share.data ? numbers + 4 * n : nullptr;
    in.args.rest = numbers, in.args.d_rest = numbers + n, in.args.d_own = numbers + 2 * n;
    in.args.d_mean = in.args.mean_out;
    args = in.args;
    if (reduction == kWeightedMean || reduction == kMean) divide(reduction);
  }

  void divide(int64_t reduction) {
    divisor = 0;
    for (int64_t i = 0; i < args.n; ++i)
      if (int64_t y = args.column(i, 0); y >= 0)
        divisor += reduction == kWeightedMean ? Margins::per_class<A>(margins.weight, 1.0, y) : A(1);
  }
  // A slope of 0 stays 0 where nothing counts and the divisor is 0.
  A share_of(A slope) const { return slope == 0 ? A(0) : A(slope / divisor); }

  // From the statistics of row i, which its places in `saved` hold, to its loss and slopes.
  void row(int64_t i) const {
    int64_t n = args.n, y = args.column(i, 0);
    const A *offset = args.offset.at<A>(i), *share = args.share.at<A>(i);
    A own_offset = offset && y >= 0 ? offset[y] : A(0);
    A most = args.rival_out ? static_cast<A*>(args.rival_out)[i] : A(0);
    Numbers<A> in{numbers[i], numbers[2 * n + i], most, own_offset, A(1)};
    if (share) in.mean = numbers[4 * n + i], in.total = total[args.share.row(i)], in.share = y >= 0 ? share[y] : A(0);
    Result<A> out = margins.row<A>(in, y, y >= 0, share != nullptr);
    losses[i] = out.loss, numbers[n + i] = share_of(out.d_rest), numbers[2 * n + i] = share_of(out.d_own);
    numbers[3 * n + i] = share_of(out.d_offset), numbers[4 * n + i] = share_of(out.d_mean);
  }

  // All rows, with their statistics; with `d_logits` in the arguments their gradient too, while a row is in the cache.
  void run(Type type) const {
    const Kernels& table = kernels();
    int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(args.c, 1));
    torch::stable::parallel_for(0, args.n, grain, [&](int64_t begin, int64_t end) {
      Rows mine = args;
      const bool in_place = sizeof(A) == (type == kDouble ? 8 : type == kFloat ? 4 : 2);
      std::vector<A> kept(mine.d_logits && !in_place ? args.c : 0), shifts(mine.d_logits ? args.c / kBlock + 1 : 0);
      mine.kept = kept.data(), mine.shifts = shifts.data();
      for (int64_t i = begin; i < end; ++i) {
        if (in_place) mine.kept = static_cast<A*>(mine.d_logits) + i * args.c;
        (mine.d_logits ? table.rows_keep : table.rows_forward)[type](mine, i, i + 1);
        row(i);
        if (mine.d_logits) table.rows_finish[type](mine, i, i + 1);
      }
    });
  }

  Tensor reduced(int64_t reduction, ScalarType sums) const {
    if (reduction == kNone) return loss;
    double sum = 0;
    for (int64_t i = 0; i < args.n; ++i) sum += losses[i];
    Tensor result = empty({}, sums);
    *static_cast<A*>(result.mutable_data_ptr()) = A(reduction == kSum ? sum : sum / divisor);
    return result;
  }
};

template <class A>
std::tuple<Tensor, Tensor> losses_of(Inputs& in, const Margins& margins, const void* totals, int64_t reduction) {
  Losses<A> losses(in, margins, totals, reduction);
  losses.run(in.type);
  return {losses.reduced(reduction, in.sums), losses.saved};
}

std::tuple<Tensor, Tensor> evaluate(
    Inputs& in, const Optional& total, const Optional& weight, const Optional& class_margin,
    const Optional& class_smoothing, Margins margins, int64_t ignore_index, int64_t reduction) {
  bool is_double = in.sums == ScalarType::Double;
  check_targets(in.args.target, in.args.n, in.args.c, ignore_index);
  check_offsets(in.args, is_double);
  margins.weight = in.numbers(weight, in.sums, "weight");
  margins.class_margin = in.numbers(class_margin, in.sums, "margin");
  margins.class_smoothing = in.numbers(class_smoothing, in.sums, "label_smoothing");
  const void* totals = in.numbers(total, in.sums, "total");
  return is_double ? losses_of<double>(in, margins, totals, reduction) : losses_of<float>(in, margins, totals, reduction);
}

std::tuple<Tensor, Tensor> rows_loss(
    Tensor logits, Tensor target, Optional offset, Optional offset_row, Optional mean_weight, Optional total,
    Optional weight, Optional class_margin, Optional class_smoothing, double scale, int64_t kind, double margin,
    double instance, bool guard, double gamma, double smoothing, int64_t ignore_index, int64_t reduction) {
  Inputs in(logits, target, scale, {}, {}, offset, offset_row, mean_weight, 0, ignore_index);
  Margins margins{scale, int(kind), margin, instance, guard, gamma, smoothing};
  return evaluate(in, total, weight, class_margin, class_smoothing, margins, ignore_index, reduction);
}

std::tuple<Tensor, Tensor, Tensor> rows_loss_gradient(
    Tensor logits, Tensor target, Optional offset, Optional offset_row, Optional mean_weight, Optional total,
    Optional weight, Optional class_margin, Optional class_smoothing, double scale, int64_t kind, double margin,
    double instance, bool guard, double gamma, double smoothing, int64_t ignore_index, int64_t reduction) {
  Inputs in(logits, target, scale, {}, {}, offset, offset_row, mean_weight, 0, ignore_index);
  Tensor d_logits = empty({in.args.n, in.args.c}, logits.scalar_type());
  in.args.d_logits = d_logits.mutable_data_ptr();
  Margins margins{scale, int(kind), margin, instance, guard, gamma, smoothing};
  auto [loss, saved] = evaluate(in, total, weight, class_margin, class_smoothing, margins, ignore_index, reduction);
  return {loss, saved, d_logits};
}

std::tuple<Tensor, Tensor> rows_loss_backward(
    Tensor logits, Tensor target, Tensor saved, Tensor grad, Optional offset, Optional offset_row,
    Optional mean_weight, double scale, int64_t ignore_index, bool want_offset) {
  Inputs in(logits, target, scale, {}, {}, offset, offset_row, mean_weight, 0, ignore_index);
  const char* numbers = static_cast<const char*>(in.numbers(saved, in.sums, "saved"));
  int64_t bytes = in.args.n * (in.sums == ScalarType::Double ? 8 : 4);
  in.args.rest = numbers, in.args.d_rest = numbers + bytes, in.args.d_own = numbers + 2 * bytes;
  in.args.d_own_offset = numbers + 3 * bytes, in.args.d_mean = mean_weight ? numbers + 4 * bytes : nullptr;
  in.args.grad = in.numbers(grad, in.sums, "grad");
  in.args.one_grad = grad.dim() == 0;
  Tensor d_logits = in.backward(logits);
  return {d_logits, in.offset_gradient(want_offset)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lt_kernels, CPU, library) {
  library.impl("rows_forward", TORCH_BOX(&rows_forward));
  library.impl("rows_backward", TORCH_BOX(&rows_backward));
  library.impl("rows_loss", TORCH_BOX(&rows_loss));
  library.impl("rows_loss_backward", TORCH_BOX(&rows_loss_backward));
  library.impl("rows_loss_gradient", TORCH_BOX(&rows_loss_gradient));
}

}  // namespace lt
