// Column-wise log-sum-exp: the CPU kernels of the operators of lt_kernels/ops/columns.py.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "pieces.h"
#include "tensors.h"

namespace lt {
namespace {

// The log-sum-exp of each column.
void sum_columns(const ColumnSums& args, Type type) {
  // Each block is a whole number of cache lines, and there are enough blocks for all threads.
  int64_t width = args.c >= 4096 ? 256 : 64, blocks = (args.c + width - 1) / width;
  int64_t grain = 16384 / std::max<int64_t>(1, width * args.n);
  in_pieces(blocks, grain, [&](int64_t begin, int64_t end) {
    kernels().columns_forward[type](args, begin * width, std::min(end * width, args.c));
  });
}

// The gradient of the column-wise log-sum-exp and of the target logits, for all rows.
void columns_gradient(const ColumnSums& args, Type type) {
  in_pieces(args.n, 16384 / std::max<int64_t>(1, args.c),
            [&](int64_t begin, int64_t end) { kernels().columns_backward[type](args, begin, end); });
}

struct Inputs : TensorHolder {
  ColumnSums args;
  Type type;
  ScalarType sums;

  Inputs(const Tensor& logits, const Tensor& target, const Optional& row_offset)
      : type(type_of(logits, "logits")), sums(arithmetic(logits)) {
    expect_matrix(logits, "logits");
    const Tensor& rows = keep(dense_rows(logits));
    args.logits = rows.const_data_ptr();
    args.n = rows.size(0), args.c = rows.size(1), args.stride = rows.stride(0);
    args.target = indices(target, "target", {args.n});
    for (int64_t i = 0; i < args.n; ++i)
      STD_TORCH_CHECK(args.target[i] >= 0 && args.target[i] < args.c, "target holds ", args.target[i],
                      "; allowed are 0 to ", args.c - 1);
    args.row_offset = numbers(row_offset, sums, "row_offset", {args.n});
  }
};

std::tuple<Tensor, Tensor> columns_forward(Tensor logits, Tensor target, Optional row_offset) {
  Inputs in(logits, target, row_offset);
  Tensor lse = empty({in.args.c}, in.sums), own = empty({in.args.n}, in.sums);
  in.args.lse_out = lse.mutable_data_ptr(), in.args.own_out = own.mutable_data_ptr();
  kernels().columns_own[in.type](in.args, 0, in.args.n);
  sum_columns(in.args, in.type);
  return {lse, own};
}

Tensor columns_backward(Tensor logits, Tensor target, Optional row_offset, Tensor lse, Tensor d_lse, Tensor d_own) {
  Inputs in(logits, target, row_offset);
  in.args.lse = in.numbers(lse, in.sums, "lse", {in.args.c});
  in.args.d_lse = in.numbers(d_lse, in.sums, "d_lse", {in.args.c});
  in.args.d_own = in.numbers(d_own, in.sums, "d_own", {in.args.n});
  Tensor d_logits = empty({in.args.n, in.args.c}, logits.scalar_type());
  in.args.d_logits = d_logits.mutable_data_ptr();
  columns_gradient(in.args, in.type);
  return d_logits;
}

// LADE's regulariser and its gradient: docs/math.md, section 7. The importance weight is that of the logit's class if
// `by_class`, else of the row's; the sum is over all classes if `every_class`, else over those in the batch.
struct Lade {
  ColumnSums args;
  Type type;
  const double* counts;
  double lam, factor;
  bool by_class, every_class;
  std::vector<double> prior, batch_counts;

  void read_counts() {
    double total = 0;
    for (int64_t j = 0; j < args.c; ++j) {
      STD_TORCH_CHECK(counts[j] >= 0, "lt_kernels: class_counts must be finite and >= 0, got ", counts[j], " for class ", j);
      total += counts[j];
    }
    STD_TORCH_CHECK(total > 0 && total <= std::numeric_limits<double>::max(), "lt_kernels: class_counts must have a finite sum "
                    "above 0, got ", total);
    prior.assign(counts, counts + args.c), batch_counts.assign(size_t(args.c), 0.0);
    for (double& each : prior) each /= total;
    for (int64_t i = 0; i < args.n; ++i) batch_counts[size_t(args.target[i])] += 1;
  }

  // factor * (sum_c p_c (B_c + lam B_c^2) - sum_i p_y / (N_y + 1e-8) z_iy); p_c is 0 for classes that are not summed.
  template <class A> double run() {
    const int64_t n = args.n, c = args.c;
    const double uniform = std::log(1.0 / double(c) + 1e-9), mean = std::log(double(n));
    std::vector<A> lse(c), slope(c), own(n), offset(by_class ? 0 : n);
    auto log_share = [&](int64_t j) { return uniform - std::log(prior[j] + 1e-9); };
    for (int64_t i = 0; !by_class && i < n; ++i) offset[i] = A(log_share(args.target[i]));
    args.row_offset = by_class ? nullptr : offset.data(), args.lse_out = lse.data();
    sum_columns(args, type);
    double total = 0;
    for (int64_t j = 0; j < c; ++j) {
      const double bound = double(lse[j]) - mean + (by_class ? log_share(j) : 0);
      const double counted = every_class || batch_counts[j] > 0 ? factor * prior[j] : 0;
      total += counted * (bound + lam * bound * bound);
      slope[j] = A(counted * (1 + 2 * lam * bound));
    }
    for (int64_t i = 0; i < n; ++i) {
      const int64_t y = args.target[i];
      const double each = -factor * prior[y] / (batch_counts[y] + 1e-8);
      own[i] = A(each), total += each * double(static_cast<const A*>(args.logits)[i * args.stride + y]);
    }
    args.lse = lse.data(), args.d_lse = slope.data(), args.d_own = own.data();
    if (args.d_logits) columns_gradient(args, type);
    return total;
  }
};

std::tuple<Tensor, Tensor> lade_loss(Tensor logits, Tensor target, Tensor class_counts, double lam, bool by_class,
                                     bool every_class, double factor, bool gradient) {
  Inputs in(logits, target, {});
  STD_TORCH_CHECK(in.type == kFloat || in.type == kDouble, "lt_kernels: logits must be float32 or float64 here");
  STD_TORCH_CHECK(in.args.n > 0 && in.args.c > 0, "lt_kernels: logits must have a row and a class");
  const auto* counts = static_cast<const double*>(in.numbers(class_counts, ScalarType::Double, "class_counts", {in.args.c}));
  Tensor d_logits = gradient ? empty({in.args.n, in.args.c}, logits.scalar_type()) : empty({0}, logits.scalar_type());
  if (gradient) in.args.d_logits = d_logits.mutable_data_ptr();
  Lade lade{in.args, in.type, counts, lam, factor, by_class, every_class, {}, {}};
  lade.read_counts();
  Tensor value = empty({}, in.sums);
  if (in.type == kDouble) *static_cast<double*>(value.mutable_data_ptr()) = lade.run<double>();
  else *static_cast<float*>(value.mutable_data_ptr()) = float(lade.run<float>());
  return {value, d_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lt_kernels, CPU, library) {
  library.impl("columns_forward", TORCH_BOX(&columns_forward));
  library.impl("columns_backward", TORCH_BOX(&columns_backward));
  library.impl("lade_loss", TORCH_BOX(&lade_loss));
}

}  // namespace lt
