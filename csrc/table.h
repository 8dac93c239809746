// What the operators hand to the kernels, and the table of kernels that each instruction set fills.
#pragma once

#include <cstdint>

namespace lt {

constexpr int kBlock = 1024;  // columns of a row at a time
constexpr int kSaved = 6;     // numbers that a loss saves of each row
constexpr int kGroup = 8;     // short rows at a time, at most: while one of them waits, the others go on

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
  void *rest_out = nullptr, *top_out = nullptr, *own_out = nullptr, *rival_out = nullptr;
  void *mean_out = nullptr, *shares_out = nullptr;
  // backward
  const void *rest = nullptr, *top = nullptr;
  const void *d_rest = nullptr, *d_own = nullptr, *d_own_offset = nullptr, *d_mean = nullptr;
  const void* grad = nullptr;  // a factor for all slopes: [n], or one number, or none
  bool one_grad = false;
  void *d_logits = nullptr, *d_offset = nullptr;  // [n, c]; [offset.rows, c]
  // Both in one go, for the rows of one call: exp(u - shift) [rows, c], and the shift of each block [rows, blocks].
  void *kept = nullptr, *shifts = nullptr;

  int64_t blocks() const { return (c + kBlock - 1) / kBlock; }
  // Rows at a time, as many as stay in the first cache.
  int group() const {
    const int64_t fit = 2 * kBlock / (c > 0 ? c : 1);
    return fit < 1 ? 1 : fit > kGroup ? kGroup : int(fit);
  }

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

// What plain losses need besides their rows: weight [c] or none; losses [n]; numbers [kSaved, n], as `Losses` saves them.
struct Plain {
  const void* weight;
  double divisor;
  void *losses, *numbers;
};

// Log-sum-exp down the batch.
struct ColumnSums {
  const void* logits;  // [n, c], rows `stride` apart
  int64_t n, c, stride;
  const int64_t* target;     // [n]
  const void* row_offset = nullptr;  // [n]
  void *lse_out = nullptr, *own_out = nullptr;
  const void *lse = nullptr, *d_lse = nullptr, *d_own = nullptr;
  void* d_logits = nullptr;
};

struct Units {
  const void* weight;  // [c, d], rows `stride` apart
  int64_t d, stride;
  int8_t* unit;                  // [c, d]
  float *scale, *step, *error;  // [c]
};

// A tile of the products of the class weights: rows [row, row + rows) with the rows [column, column + columns).
struct Tile {
  const void* product;  // [rows, columns], rows `stride` apart
  int64_t rows, columns, stride, row, column;
  const void* scale;  // [c]
  double threshold;
  const float *step = nullptr, *error = nullptr;  // [c]
  int64_t d = 0;  // features of the weights
  const void* slope = nullptr;  // [c]
  double* row_sum = nullptr;  // [rows]
  int64_t* begins = nullptr;  // [rows + 1]: where each row's pairs begin; first their number, one place further
  int32_t* second = nullptr;  // the pairs' columns
  void* value = nullptr;      // the pairs' cosines, or the coefficients [rows, columns]
  // Screening: [rows, words()], a bit for each column from a row's first one on, set where the pair may be active.
  uint64_t* passed = nullptr;

  int64_t words() const { return (columns + 63) / 64; }
  // The first column of row i that belongs to a pair j > i: the other half of the cosines is the same.
  int64_t first_column(int64_t i) const {
    int64_t first = row + i + 1 - column;
    return first < 0 ? 0 : first > columns ? columns : first;
  }
};

// Listed pairs in runs of one first class, and their cosines.
struct Listed {
  const void* weight;  // [c, d], rows `stride` apart
  int64_t d, stride;
  const void* scale;  // [c]
  const int32_t *first, *second;
  const int64_t* begins;  // where each run begins, and the last one ends
  const int32_t* order;   // the runs as they are visited
  void* value;
};

constexpr int kStrip = 64;  // columns of the gradient at a time

// A neighbour of a row, by its place, and the coefficient of its weight.
template <class A> struct Edge {
  int32_t other;
  A factor;
};

// The neighbours of each row: a row of the gradient is own w_i + sum of factor w_other, here its columns [from, to).
// Places are those of the classes in the order in which they are visited.
struct Neighbours {
  const void* weight;  // [c, d] by place, rows `stride` apart, from column `from` on
  int64_t stride, from, to;
  const void* own;        // [c]
  const int32_t* order;   // [c]: the class at each place
  const int64_t* begins;  // [c + 1]: where the list of each place begins
  const void* edges;
  void* out;              // [c, d]
  int64_t d;
};

using TileKernel = void (*)(const Tile&, int64_t begin, int64_t end);
using TileSums = void (*)(const Tile&, int64_t begin, int64_t end, void* down);
using ColumnsKernel = void (*)(const ColumnSums&, int64_t begin, int64_t end);
using PairsKernel = void (*)(const Neighbours&, int64_t begin, int64_t end);
using ListedKernel = void (*)(const Listed&, int64_t begin, int64_t end);

using RowsKernel = void (*)(const Rows&, int64_t begin, int64_t end);
using PlainKernel = void (*)(const Rows&, const Plain&, int64_t begin, int64_t end);

struct Kernels {
  RowsKernel rows_forward[4], rows_backward[4], rows_offset[4];  // by Type; rows_offset walks columns
  RowsKernel rows_keep[4], rows_finish[4];
  PlainKernel rows_plain[4];
  ColumnsKernel columns_forward[4], columns_own[4], columns_backward[4];
  void (*turn)(const float* rows, int64_t d, float* out, int64_t line, int64_t begin, int64_t end);
  void (*gram_units[4])(const Units&, int64_t begin, int64_t end);
  TileKernel gram_screen, gram_list[2];
  ListedKernel gram_verify[4];
  TileSums gram_sums[2], gram_coefficients[2];
  PairsKernel gram_pairs[4], gram_pairs_wide[4];
};

extern const Kernels generic_kernels, avx2_kernels, avx512_kernels;
int instruction_set();  // 0 generic, 1 avx2, 2 avx512: the best that this machine has, or what was asked for
const Kernels& kernels();

}  // namespace lt
