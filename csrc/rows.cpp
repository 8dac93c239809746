// Row statistics and whole losses: the CPU kernels of the operators of lt_kernels/ops/rows.py.
#include <memory>
#include <tuple>
#include <utility>

#include "losses.h"
#include "pieces.h"
#include "tensors.h"

namespace lt {
namespace {

void check_targets(const int64_t* target, int64_t count, int64_t classes, int64_t ignore_index) {
  const int64_t* wrong = invalid_target(target, count, classes, ignore_index);
  STD_TORCH_CHECK(!wrong, "target holds ", *wrong, "; allowed are 0 to ", classes - 1, " and ignore_index=", ignore_index);
}

struct Inputs : TensorHolder {
  Rows args;
  Type type;
  ScalarType sums;
  bool smoothed;

  Inputs(const Tensor& logits, const Tensor& target, double scale, const Optional& row_scale,
         const Optional& column_scale, const Optional& offset, const Optional& offset_row, const Optional& mean_weight,
         int64_t start, int64_t classes, int64_t ignore_index, bool slotted)
      : type(type_of(logits, "logits")), sums(arithmetic(logits)), smoothed(mean_weight.has_value()) {
    expect_matrix(logits, "logits");
    const Tensor& rows = keep(dense_rows(logits));
    args.logits = rows.const_data_ptr();
    args.n = rows.size(0), args.c = rows.size(1), args.stride = rows.stride(0);
    args.target = slotted ? indices(target, "target", {args.n, kAny}) : indices(target, "target", {args.n});
    args.slots = slotted ? target.size(1) : 1;
    STD_TORCH_CHECK(args.slots <= 2, "lt_kernels: target must have at most two classes a row, got ", args.slots);
    classes = slotted ? classes : args.c;  // of all shards; an operator for one target a row takes all classes
    expect(classes, "classes", args.c, kMost);
    expect(start, "start", 0, classes - args.c);
    check_targets(args.target, args.n * args.slots, classes, ignore_index);
    args.start = start, args.ignore_index = ignore_index, args.scale = scale;
    args.row_scale = numbers(row_scale, sums, "row_scale", {args.n});
    args.column_scale = numbers(column_scale, sums, "column_scale", {args.c});
    args.offset = lookup(offset, offset_row, args.n, args.c, sums, "offset");
    args.share = lookup(mean_weight, offset_row, args.n, args.c, sums, "mean_weight");
    check_chosen(args.offset), check_chosen(args.share);
  }

  // Checks that offset_row holds rows of the table, other than for ignored rows.
  void check_chosen(const Lookup& table) const {
    for (int64_t i = 0; table.index && i < args.n; ++i)
      STD_TORCH_CHECK((table.index[i] >= 0 && table.index[i] < table.rows) || args.skipped(i), "offset_row holds ",
                      table.index[i], "; allowed are 0 to ", table.rows - 1);
  }
  void run(RowsKernel kernel, int64_t count, int64_t work) const {
    in_pieces(count, 16384 / std::max<int64_t>(work, 1),
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
    in_pieces(blocks, 1, [&](int64_t begin, int64_t end) {
      kernels().rows_offset[type](args, begin * columns, std::min(end * columns, args.c));
    });
    return d_offset;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rows_forward(
    Tensor logits, Tensor target, double scale, Optional row_scale, Optional column_scale, Optional offset,
    Optional offset_row, Optional mean_weight, int64_t start, int64_t classes, int64_t ignore_index) {
  Inputs in(logits, target, scale, row_scale, column_scale, offset, offset_row, mean_weight, start, classes, ignore_index, true);
  Rows& args = in.args;
  Tensor rest = empty({args.n}, in.sums), own = empty({args.n, args.slots}, in.sums), rival = empty({args.n}, in.sums);
  const int64_t means = mean_weight ? args.n : 0;
  Tensor mean = empty({means}, in.sums), top = empty({args.n}, in.sums), shares = empty({means}, in.sums);
  args.rest_out = rest.mutable_data_ptr(), args.own_out = own.mutable_data_ptr();
  args.rival_out = rival.mutable_data_ptr(), args.top_out = top.mutable_data_ptr();
  if (mean_weight) args.mean_out = mean.mutable_data_ptr(), args.shares_out = shares.mutable_data_ptr();
  in.forward();
  return {rest, own, rival, mean, top, shares};
}

std::tuple<Tensor, Tensor> rows_backward(
    Tensor logits, Tensor target, double scale, Optional row_scale, Optional column_scale, Optional offset,
    Optional offset_row, Optional mean_weight, int64_t start, int64_t classes, int64_t ignore_index, Tensor rest,
    Tensor top, Tensor d_rest, Tensor d_own, Optional d_own_offset, Optional d_mean, Optional grad, bool want_offset) {
  Inputs in(logits, target, scale, row_scale, column_scale, offset, offset_row, mean_weight, start, classes, ignore_index, true);
  in.args.rest = in.numbers(rest, in.sums, "rest", {in.args.n});
  in.args.top = in.numbers(top, in.sums, "top", {in.args.n});
  in.args.d_rest = in.numbers(d_rest, in.sums, "d_rest", {in.args.n});
  in.args.d_own = in.numbers(d_own, in.sums, "d_own", {in.args.n, in.args.slots});
  in.args.d_own_offset = in.numbers(d_own_offset, in.sums, "d_own_offset", {in.args.n, in.args.slots});
  in.args.d_mean = in.numbers(d_mean, in.sums, "d_mean", {in.args.n});
  in.args.grad = in.numbers(grad, in.sums, "grad", {in.args.n});
  Tensor d_logits = in.backward(logits);
  return {d_logits, in.offset_gradient(want_offset)};
}

void check_offsets(const Rows& args, bool is_double) {
  int64_t absent = is_double ? absent_target<double>(args) : absent_target<float>(args);
  if (absent >= 0) check_present(-std::numeric_limits<double>::infinity(), absent);
}

// The loss, and if `keep` the numbers that the backward pass needs. What is not returned is in one scratch array.
template <class A>
std::tuple<Tensor, Optional> losses_of(Inputs& in, const Margins& margins, const void* totals, const void* by_row, int64_t reduction, bool keep) {
  const int64_t n = in.args.n, spare = (reduction == kNone ? 0 : n) + (keep ? 0 : kSaved * n) + (margins.needs_rival() ? n : 0);
  auto numbers = [](const Tensor& tensor) { return static_cast<A*>(tensor.mutable_data_ptr()); };
  Tensor loss = reduction == kNone ? empty({n}, in.sums) : empty({}, in.sums);
  Optional saved;
  if (keep) saved = empty({kSaved, n}, in.sums);
  const std::unique_ptr<A[]> scratch(new A[size_t(spare)]);
  A* free = scratch.get();
  auto take = [&free](int64_t count) { return std::exchange(free, free + count); };
  A *each = reduction == kNone ? numbers(loss) : take(n), *kept = keep ? numbers(*saved) : take(kSaved * n);
  const Losses<A> losses(in.args, margins, static_cast<const A*>(totals), static_cast<const A*>(by_row), reduction, each, kept, free);
  losses.run(in.type);
  if (reduction != kNone) *numbers(loss) = losses.reduced(reduction);
  return {loss, saved};
}

std::tuple<Tensor, Optional> evaluate(
    Inputs& in, const Optional& total, const Optional& weight, const Optional& sample_weight, const Optional& class_margin,
    const Optional& class_smoothing, Margins margins, int64_t reduction, bool keep) {
  bool is_double = in.sums == ScalarType::Double;
  check_offsets(in.args, is_double);
  expect(reduction, "reduction", kNone, kMean);
  check_kind(margins);
  margins.weight = in.numbers(weight, in.sums, "weight", {in.args.c});
  margins.class_margin = in.numbers(class_margin, in.sums, "class_margin", {in.args.c});
  margins.class_smoothing = in.numbers(class_smoothing, in.sums, "class_smoothing", {in.args.c});
  const void* by_row = in.numbers(sample_weight, in.sums, "sample_weight", {in.args.n});
  const void* totals = in.numbers(total, in.sums, "total", {in.args.share.rows});
  STD_TORCH_CHECK(total.has_value() == in.smoothed, "lt_kernels: total and mean_weight must be given together");
  return is_double ? losses_of<double>(in, margins, totals, by_row, reduction, keep)
                   : losses_of<float>(in, margins, totals, by_row, reduction, keep);
}

std::tuple<Tensor, Tensor> rows_loss(
    Tensor logits, Tensor target, Optional offset, Optional offset_row, Optional mean_weight, Optional total,
    Optional weight, Optional sample_weight, Optional class_margin, Optional class_smoothing, double scale, int64_t kind,
    double margin, double instance, bool guard, double gamma, double smoothing, double z_loss, int64_t ignore_index,
    int64_t reduction) {
  Inputs in(logits, target, scale, {}, {}, offset, offset_row, mean_weight, 0, 0, ignore_index, false);
  Margins margins{scale, kind, margin, instance, guard, gamma, smoothing, z_loss};
  auto [loss, saved] = evaluate(in, total, weight, sample_weight, class_margin, class_smoothing, margins, reduction, true);
  return {loss, *saved};
}

std::tuple<Tensor, Tensor> rows_loss_gradient(
    Tensor logits, Tensor target, Optional row_scale, Optional column_scale, Optional offset, Optional offset_row,
    Optional mean_weight, Optional total, Optional weight, Optional sample_weight, Optional class_margin,
    Optional class_smoothing, double scale, int64_t kind, double margin, double instance, bool guard, double gamma,
    double smoothing, double z_loss, int64_t ignore_index, int64_t reduction) {
  Inputs in(logits, target, scale, row_scale, column_scale, offset, offset_row, mean_weight, 0, 0, ignore_index, false);
  Tensor d_logits = empty({in.args.n, in.args.c}, logits.scalar_type());
  in.args.d_logits = d_logits.mutable_data_ptr();
  Margins margins{scale, kind, margin, instance, guard, gamma, smoothing, z_loss};
  return {std::get<0>(evaluate(in, total, weight, sample_weight, class_margin, class_smoothing, margins, reduction, false)), d_logits};
}

std::tuple<Tensor, Tensor> rows_loss_backward(
    Tensor logits, Tensor target, Tensor saved, Tensor grad, Optional offset, Optional offset_row,
    Optional mean_weight, double scale, int64_t ignore_index, bool want_offset) {
  Inputs in(logits, target, scale, {}, {}, offset, offset_row, mean_weight, 0, 0, ignore_index, false);
  const char* numbers = static_cast<const char*>(in.numbers(saved, in.sums, "saved", {kSaved, in.args.n}));
  int64_t bytes = in.args.n * (in.sums == ScalarType::Double ? 8 : 4);
  in.args.rest = numbers, in.args.top = numbers + bytes, in.args.d_rest = numbers + 2 * bytes;
  in.args.d_own = numbers + 3 * bytes, in.args.d_own_offset = numbers + 4 * bytes;
  in.args.d_mean = mean_weight ? numbers + 5 * bytes : nullptr;
  in.args.one_grad = grad.dim() == 0;
  in.args.grad = in.args.one_grad ? in.numbers(grad, in.sums, "grad", {}) : in.numbers(grad, in.sums, "grad", {in.args.n});
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
