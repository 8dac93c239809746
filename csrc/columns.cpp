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
      : type(type_of(logits)), sums(arithmetic(logits)) {
    STD_TORCH_CHECK(logits.dim() == 2 && target.dim() == 1 && target.size(0) == logits.size(0),
                    "lt_kernels: logits must be [N, C] and target [N]");
    const Tensor& rows = keep(dense_rows(logits));
    args.logits = rows.const_data_ptr();
    args.n = rows.size(0), args.c = rows.size(1), args.stride = rows.stride(0);
    args.target = indices(target, "target");
    for (int64_t i = 0; i < args.n; ++i)
      STD_TORCH_CHECK(args.target[i] >= 0 && args.target[i] < args.c, "target holds ", args.target[i],
                      "; allowed are 0 to ", args.c - 1);
    args.row_offset = vector(row_offset, args.n, "row_offset");
  }
  const void* vector(const Optional& tensor, int64_t size, const char* name) {
    STD_TORCH_CHECK(!tensor || tensor->numel() == size, "lt_kernels: ", name, " does not fit the logits");
    return numbers(tensor, sums, name);
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
  in.args.lse = in.vector(lse, in.args.c, "lse");
  in.args.d_lse = in.vector(d_lse, in.args.c, "d_lse");
  in.args.d_own = in.vector(d_own, in.args.n, "d_own");
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
