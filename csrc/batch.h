// The column kernels on all threads: blocks of columns, or of rows.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "table.h"

namespace lt {

// The log-sum-exps of all columns.
inline void sum_columns(const ColumnSums& args, Type type) {
  // Blocks of whole cache lines, and enough of them for the threads; a small problem stays on one.
  int64_t width = args.c >= 4096 ? 256 : 64, blocks = (args.c + width - 1) / width;
  int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width * args.n));
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    kernels().columns_forward[type](args, begin * width, std::min(end * width, args.c));
  });
}

// Their gradient, all rows.
inline void slope_columns(const ColumnSums& args, Type type) {
  torch::stable::parallel_for(0, args.n, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, args.c)), [&](int64_t begin, int64_t end) {
    kernels().columns_backward[type](args, begin, end);
  });
}

}  // namespace lt
