// What the operators hand to the kernels, and the table of kernels that each instruction set fills.
#pragma once

#include <cstdint>

namespace lt {

enum Type { kFloat, kDouble, kBFloat16, kHalf };

// A table of per-class numbers: one row for all rows of the logits, one each, or one looked up by `index`.
struct Lookup {
  const void* data = nullptr;
  int64_t rows = 0, stride = 0;
  const int64_t* index = nullptr;

  int64_t row(int64_t i) const {
    if (rows == 1) return 0;
    if (!index) return i;
    int64_t wanted = index[i];
    return wanted < 0 ? 0 : wanted >= rows ? rows - 1 : wanted;
  }
  template <class A> const A* at(int64_t i) const {
    return data ? static_cast<const A*>(data) + row(i) * stride : nullptr;
  }
};

// Pointers to numbers are float for all but double logits.
struct Rows {
  const void* logits;  // [n, c], rows `stride` apart
  int64_t n, c, stride;
  const int64_t* target;  // [n, slots]
  int64_t slots, start, ignore_index;
  double scale;
  const void *row_scale = nullptr, *column_scale = nullptr;  // [n], [c]
  Lookup offset, share;
  // forward
  void *rest_out = nullptr, *own_out = nullptr, *rival_out = nullptr, *mean_out = nullptr;
  // backward
  const void *rest = nullptr, *d_rest = nullptr, *d_own = nullptr, *d_own_offset = nullptr, *d_mean = nullptr;
  const void* grad = nullptr;  // [n], a factor for all slopes, or none
  void *d_logits = nullptr, *d_offset = nullptr;  // [n, c]; [offset.rows, c]

  bool skipped(int64_t i) const {
    for (int64_t k = 0; k < slots; ++k)
      if (target[i * slots + k] != ignore_index) return false;
    return slots > 0;
  }
  // The column of slot k of row i, or -1 where it is ignored or somebody else's.
  int64_t column(int64_t i, int64_t k) const {
    int64_t value = target[i * slots + k], local = value - start;
    return value == ignore_index || local < 0 || local >= c ? -1 : local;
  }
};

using RowsKernel = void (*)(const Rows&, int64_t begin, int64_t end);

struct Kernels {
  RowsKernel rows_forward[4], rows_backward[4], rows_offset[4];  // by Type; rows_offset walks columns
};

extern const Kernels generic_kernels, avx2_kernels, avx512_kernels;
int instruction_set();  // 0 generic, 1 avx2, 2 avx512: the best that this machine has
const Kernels& kernels();

}  // namespace lt
