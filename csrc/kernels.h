// The table of all kernels of one instruction set.
#pragma once

#include "columns.h"
#include "gram.h"
#include "project.h"
#include "rows.h"
#include "short.h"
#include "transpose.h"

namespace lt {
namespace LT_ISA {

#define LT_EACH_TYPE(kernel) {kernel<float>, kernel<double>, kernel<bf16>, kernel<fp16>}
#define LT_EACH_NUMBER(kernel, raw) {kernel<float, raw>, kernel<double, raw>}

constexpr Kernels kernel_table() {
  return {LT_EACH_TYPE(rows_forward), LT_EACH_TYPE(rows_backward), LT_EACH_TYPE(rows_offset),
          LT_EACH_TYPE(rows_keep), LT_EACH_TYPE(rows_finish), LT_EACH_TYPE(rows_plain),
          LT_EACH_TYPE(columns_forward), LT_EACH_TYPE(columns_own), LT_EACH_TYPE(columns_backward),
          transpose, {project<float>, project<double>}, {gram_units<float>, nullptr, gram_units<bf16>, gram_units<fp16>},
          gram_screen, LT_EACH_NUMBER(gram_list, false), LT_EACH_NUMBER(gram_list, true), LT_EACH_TYPE(gram_verify),
          LT_EACH_NUMBER(gram_sums, false), LT_EACH_NUMBER(gram_coefficients, false),
          LT_EACH_NUMBER(gram_sums, true), LT_EACH_NUMBER(gram_coefficients, true),
          LT_EACH_TYPE(gram_pairs), LT_EACH_TYPE(gram_pairs_wide)};
}

}  // namespace LT_ISA
}  // namespace lt
