// All kernels of one instruction set, as a table.
#pragma once

#include "rows.h"

namespace lt {
namespace LT_ISA {

#define LT_EACH_TYPE(kernel) {kernel<float>, kernel<double>, kernel<bf16>, kernel<fp16>}

constexpr Kernels kernel_table() {
  return {LT_EACH_TYPE(rows_forward), LT_EACH_TYPE(rows_backward), LT_EACH_TYPE(rows_offset)};
}

}  // namespace LT_ISA
}  // namespace lt
