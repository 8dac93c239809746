// The arguments of the kernels, and the table of kernels that each instruction set fills in.
#pragma once

#include <cstdint>

namespace lt {

constexpr int kBlock = 1024;  // columns of a row that are processed at a time
constexpr int kSaved = 6;     // numbers per row that a loss saves for its backward pass
constexpr int kGroup = 8;     // most rows of a group: they are independent, which hides the latency of each

enum Type { kFloat, kDouble, kBFloat16, kHalf };

// A table of per-class numbers, such as the offsets: one row for all rows of the logits, one row for each of them, or
// rows that `index` chooses from.
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

// Row statistics and their gradient: docs/math.md, section 1. With u = scale * z + offset, over the classes that are no
// target: top is the maximum of u or at most 2 below it, rest the log-sum-exp of u - top, rival the largest z, mean the
// sum of share * (u - top), shares that of share; own is the target logit z. Pointers to void, except those to logits,
// are to double if the logits are double, otherwise to float.
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
  const void* grad = nullptr;  // the incoming gradient, which multiplies all slopes: [n], or one number, or none (1)
  bool one_grad = false;
  void *d_logits = nullptr, *d_offset = nullptr;  // [n, c]; [offset.rows, c]
  // What rows_keep leaves for rows_finish: exp(u - shift) [rows, c], and the shift of each block [rows, blocks].
  void *kept = nullptr, *shifts = nullptr;

  int64_t blocks() const { return (c + kBlock - 1) / kBlock; }
  // How many rows are processed together: as many as stay in the L1 cache.
  int group() const {
    const int64_t fit = 2 * kBlock / (c > 0 ? c : 1);
    return fit < 1 ? 1 : fit > kGroup ? kGroup : int(fit);
  }

  // Whether all targets of row i are ignore_index.
  bool skipped(int64_t i) const {
    for (int64_t k = 0; k < slots; ++k)
      if (target[i * slots + k] != ignore_index) return false;
    return slots > 0;
  }
  // The column of the k-th target of row i, or -1 if it is ignored or belongs to another shard of the classes.
  int64_t column(int64_t i, int64_t k) const {
    int64_t value = target[i * slots + k], local = value - start;
    return value == ignore_index || local < 0 || local >= c ? -1 : local;
  }
};

// Cross-entropy of short rows without margin, focal factor or smoothing: weight [c] or none; losses [n]; numbers
// [kSaved, n] in the order of csrc/losses.h, or none.
struct Plain {
  const void* weight;
  double divisor;
  void *losses, *numbers;
};

// Column-wise log-sum-exp over the batch, of logits + row_offset, and the target logits.
struct ColumnSums {
  const void* logits;  // [n, c], rows `stride` apart
  int64_t n, c, stride;
  const int64_t* target;     // [n]
  const void* row_offset = nullptr;  // [n]
  void *lse_out = nullptr, *own_out = nullptr;
  const void *lse = nullptr, *d_lse = nullptr, *d_own = nullptr;
  void* d_logits = nullptr;
};

// Class weights rounded to int8: the unit row i is about unit[i] * step[i], error[i] the length of the difference, and
// scale[i] = 1 / |w_i|.
struct Units {
  const void* weight;  // [c, d], rows `stride` apart
  int64_t d, stride;
  int8_t* unit;                  // [c, d]
  float *scale, *step, *error;  // [c]
};

// A tile of the products of all pairs of class weights: the classes [row, row + rows) with [column, column + columns).
struct Tile {
  const void* product;  // [rows, columns], rows `stride` apart
  int64_t rows, columns, stride, row, column;
  const void* scale;  // [c]
  double threshold;
  const float *step = nullptr, *error = nullptr;  // [c]
  int64_t d = 0;  // features of the weights
  const void* slope = nullptr;  // [c]
  const void* shift = nullptr;  // [c]: of the raw form, whose values are the products instead of the cosines
  double* row_sum = nullptr;  // [rows]
  int64_t* begins = nullptr;  // [rows + 1]: the number of pairs of row i at i + 1; for gram_list their cumulative sum
  int32_t* second = nullptr;  // the pairs' columns
  void* value = nullptr;      // the pairs' values, or the coefficients [rows, columns]
  // Screening: [rows, words()], a bit for each column from first_column(i) on, set where the pair may be active.
  uint64_t* passed = nullptr;

  int64_t words() const { return (columns + 63) / 64; }
  // The first column of row i above the diagonal: cosines are symmetric, so that each pair is computed once.
  int64_t first_column(int64_t i) const {
    int64_t first = row + i + 1 - column;
    return first < 0 ? 0 : first > columns ? columns : first;
  }
};

// Listed pairs and their cosines. A run is a sequence of pairs with the same first class.
struct Listed {
  const void* weight;  // [c, d], rows `stride` apart
  int64_t d, stride;
  const void* scale;  // [c]
  const int32_t *first, *second;
  const int64_t* begins;  // where each run begins, and the last one ends
  const int32_t* order;   // the order in which the runs are visited
  void* value;
};

constexpr int kStrip = 64;  // columns of the gradient that are computed at a time

// A neighbour of a class, by its place in the visiting order, and the coefficient of its weights in the gradient.
template <class A> struct Edge {
  int32_t other;
  A factor;
};

// The neighbours of each class: its row of the gradient is own * w_i + the sum of factor * w_other over its edges, of
// which the columns [from, to) are computed. A class's place is its position in the order in which classes are visited.
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

// Gradients of rows that were normalised, and these rows; all contiguous.
struct Projection {
  void* gradient;    // [n, d]
  const void* rows;  // [n, d]
  const void* scale;  // [n]: 1 / |row|
  int64_t d;
};

using TileKernel = void (*)(const Tile&, int64_t begin, int64_t end);
using TileSums = void (*)(const Tile&, int64_t begin, int64_t end, void* column_sum);
using ColumnsKernel = void (*)(const ColumnSums&, int64_t begin, int64_t end);
using PairsKernel = void (*)(const Neighbours&, int64_t begin, int64_t end);
using ListedKernel = void (*)(const Listed&, int64_t begin, int64_t end);

using RowsKernel = void (*)(const Rows&, int64_t begin, int64_t end);
using PlainKernel = void (*)(const Rows&, const Plain&, int64_t begin, int64_t end);

struct Kernels {
  RowsKernel rows_forward[4], rows_backward[4], rows_offset[4];  // by Type; rows_offset takes a range of columns
  RowsKernel rows_keep[4], rows_finish[4];
  PlainKernel rows_plain[4];
  ColumnsKernel columns_forward[4], columns_own[4], columns_backward[4];
  void (*transpose)(const float* rows, int64_t d, float* out, int64_t line, int64_t begin, int64_t end);
  void (*project[2])(const Projection&, int64_t begin, int64_t end);  // float, double
  void (*gram_units[4])(const Units&, int64_t begin, int64_t end);
  TileKernel gram_screen, gram_list[2], gram_raw_list[2];
  ListedKernel gram_verify[4];
  TileSums gram_sums[2], gram_coefficients[2], gram_raw_sums[2], gram_raw_coefficients[2];
  PairsKernel gram_pairs[4], gram_pairs_wide[4];
};

extern const Kernels generic_kernels, avx2_kernels, avx512_kernels;
int instruction_set();  // 0 generic, 1 avx2, 2 avx512: the widest of this machine, or the one that was chosen
const Kernels& kernels();

}  // namespace lt
