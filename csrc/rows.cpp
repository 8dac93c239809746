// Row statistics: the operators of lt_kernels/ops/rows.py on a CPU.
#include <tuple>

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

// The loss of each row for one target; saved is [rest, d_rest, d_own, d_offset, d_mean] x n.
template <class A> void loss_rows(const Rows& args, const Margins& margins, const A* total, A* loss, A* saved) {
  int64_t n = args.n;
  torch::stable::parallel_for(0, n, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t y = args.column(i, 0);
      const A *offset = args.offset.at<A>(i), *share = args.share.at<A>(i);
      Numbers<A> in{saved[i], saved[2 * n + i], static_cast<A*>(args.rival_out)[i], offset && y >= 0 ? offset[y] : A(0), A(1)};
      if (share) in.mean = saved[4 * n + i], in.total = total[args.share.row(i)], in.share = y >= 0 ? share[y] : A(0);
      Result<A> out = margins.row<A>(in, y, y >= 0, share != nullptr);
      loss[i] = out.loss, saved[n + i] = out.d_rest, saved[2 * n + i] = out.d_own;
      saved[3 * n + i] = out.d_offset, saved[4 * n + i] = out.d_mean;
    }
  });
}

enum Reduction { kNone, kWeightedMean, kSum, kMean };  // kMean divides by the number of rows that count

template <class A> void reduce(const Rows& args, const Margins& margins, int64_t how, const A* loss, A* saved, A* result) {
  double sum = 0, divisor = 0;
  for (int64_t i = 0; i < args.n; ++i) {
    int64_t y = args.column(i, 0);
    sum += loss[i];
    if (y >= 0) divisor += how == kWeightedMean ? Margins::per_class<A>(margins.weight, 1.0, y) : A(1);
  }
  *result = A(how == kSum ? sum : sum / divisor);
  if (how != kSum)  // a slope of 0 stays 0 where nothing counts and the divisor is 0
    for (int64_t k = args.n; k < 5 * args.n; ++k) saved[k] = saved[k] == 0 ? A(0) : A(saved[k] / divisor);
}

template <class A> Tensor loss_of(Inputs& in, Margins& margins, const void* totals, Tensor& saved, int64_t reduction) {
  Rows& args = in.args;
  A* numbers = static_cast<A*>(saved.mutable_data_ptr());
  Tensor loss = empty({args.n}, in.sums), rival = empty({args.n}, in.sums);
  A* losses = static_cast<A*>(loss.mutable_data_ptr());
  args.rest_out = numbers, args.own_out = numbers + 2 * args.n, args.rival_out = rival.mutable_data_ptr();
  args.mean_out = args.share.data ? numbers + 4 * args.n : nullptr;
  in.forward();
  loss_rows(args, margins, static_cast<const A*>(totals), losses, numbers);
  if (reduction == kNone) return loss;
  Tensor result = empty({}, in.sums);
  reduce(args, margins, reduction, losses, numbers, static_cast<A*>(result.mutable_data_ptr()));
  return result;
}

std::tuple<Tensor, Tensor> rows_loss(
    Tensor logits, Tensor target, Optional offset, Optional offset_row, Optional mean_weight, Optional total,
    Optional weight, Optional class_margin, Optional class_smoothing, double scale, int64_t kind, double margin,
    double instance, bool guard, double gamma, double smoothing, int64_t ignore_index, int64_t reduction) {
  Inputs in(logits, target, scale, {}, {}, offset, offset_row, mean_weight, 0, ignore_index);
  bool is_double = in.sums == ScalarType::Double;
  check_targets(in.args.target, in.args.n, in.args.c, ignore_index);
  check_offsets(in.args, is_double);
  Margins margins{scale, int(kind), margin, instance, guard, gamma, smoothing};
  margins.weight = in.numbers(weight, in.sums, "weight");
  margins.class_margin = in.numbers(class_margin, in.sums, "margin");
  margins.class_smoothing = in.numbers(class_smoothing, in.sums, "label_smoothing");
  const void* totals = in.numbers(total, in.sums, "total");
  Tensor saved = empty({5, in.args.n}, in.sums);
  Tensor loss = is_double ? loss_of<double>(in, margins, totals, saved, reduction)
                          : loss_of<float>(in, margins, totals, saved, reduction);
  return {loss, saved};
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
}

}  // namespace lt
