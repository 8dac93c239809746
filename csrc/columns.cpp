// Column log-sum-exp: the operators of lt_kernels/ops/columns.py on a CPU.
#include <tuple>

#include "batch.h"
#include "tensors.h"

namespace lt {
namespace {

struct Inputs : Held {
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
  slope_columns(in.args, in.type);
  return d_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lt_kernels, CPU, library) {
  library.impl("columns_forward", TORCH_BOX(&columns_forward));
  library.impl("columns_backward", TORCH_BOX(&columns_backward));
}

}  // namespace lt
