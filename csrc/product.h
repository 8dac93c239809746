// Small products of matrices, by tiles of sums that stay in registers: for a few microseconds' work a library's call,
// its choice of a way and its copies are most of the time.
#pragma once

#include "table.h"
#include "vec.h"

namespace lt {
namespace LT_ISA {

// Rows and vectors of a tile: as many sums as there are registers for, besides the vectors of a row of the right side.
constexpr int kTileRows = LT_BYTES == 64 ? 6 : 4, kTileVectors = LT_BYTES == 64 ? 4 : 2;
constexpr int64_t kDeep = 256;  // products in one sum; more are added in sums of so many, which rounds less

template <class A> struct Panel {
  const A *left, *right;
  A* out;
  int64_t row, step;  // from one row of the left side, and from one of its products, to the next
  int64_t right_stride, out_stride, depth;
  const A* start;
  int last, part;  // where the last vector begins, which may overlap the one before; its columns where none is whole
};

// A tile of M rows and V vectors. Each sum is taken in the order of k alone, whatever the tile.
template <class A, int M, int V> void tile(const Panel<A>& in) {
  constexpr int W = Vec<A>::width;
  auto at = [&](int v) { return v == V - 1 ? in.last : v * W; };
  auto read = [&](const A* from) { return V == 1 && in.part ? load_part<A>(from, in.part) : load(from); };
  vec<A> total[M][V]{};
  for (int64_t done = 0; done == 0 || done < in.depth; done += kDeep) {
    vec<A> sum[M][V];
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) sum[m][v] = done == 0 && in.start ? read(in.start + at(v)) : vec<A>{};
    const int64_t end = in.depth - done < kDeep ? in.depth : done + kDeep;
    const A *left = in.left + done * in.step, *right = in.right + done * in.right_stride;
    for (int64_t k = done; k < end; ++k, left += in.step, right += in.right_stride) {
      vec<A> b[V];
      for (int v = 0; v < V; ++v) b[v] = read(right + at(v));
      for (int m = 0; m < M; ++m) {
        const vec<A> a = splat(left[m * in.row]);
        for (int v = 0; v < V; ++v) sum[m][v] = sum[m][v] + a * b[v];
      }
    }
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) total[m][v] = done ? total[m][v] + sum[m][v] : sum[m][v];
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) {
      A* to = in.out + m * in.out_stride + at(v);
      V == 1 && in.part ? store_part<A>(to, total[m][v], in.part) : store(to, total[m][v]);
    }
}

template <class A, int M> void tiles(const Panel<A>& in, int vectors) {
  if (vectors == 1) return tile<A, M, 1>(in);
  if constexpr (kTileVectors > 2) {
    if (vectors == 4) return tile<A, M, 4>(in);
    if (vectors == 3) return tile<A, M, 3>(in);
  }
  tile<A, M, 2>(in);
}

template <class A, int M = kTileRows> void rows_of(Panel<A> in, int64_t rows, int vectors) {
  for (; rows >= M; rows -= M, in.left += M * in.row, in.out += M * in.out_stride) tiles<A, M>(in, vectors);
  if constexpr (M > 1) {
    if (rows) rows_of<A, M - 1>(in, rows, vectors);
  }
}

// Four rows of four numbers to their columns.
template <class A> void turn_square(const A* from, int64_t stride, A* to, int64_t line) {
  for (int j = 0; j < 4; ++j)
    for (int k = 0; k < 4; ++k) to[k * line + j] = from[j * stride + k];
}
#if LT_BYTES >= 32
template <> inline void turn_square(const float* from, int64_t stride, float* to, int64_t line) {
  __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + stride), c = _mm_loadu_ps(from + 2 * stride);
  __m128 d = _mm_loadu_ps(from + 3 * stride);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(to, a), _mm_storeu_ps(to + line, b), _mm_storeu_ps(to + 2 * line, c), _mm_storeu_ps(to + 3 * line, d);
}
template <> inline void turn_square(const double* from, int64_t stride, double* to, int64_t line) {
  const __m256d a = _mm256_loadu_pd(from), b = _mm256_loadu_pd(from + stride);
  const __m256d c = _mm256_loadu_pd(from + 2 * stride), d = _mm256_loadu_pd(from + 3 * stride);
  const __m256d even = _mm256_unpacklo_pd(a, b), odd = _mm256_unpackhi_pd(a, b);
  const __m256d even_too = _mm256_unpacklo_pd(c, d), odd_too = _mm256_unpackhi_pd(c, d);
  _mm256_storeu_pd(to, _mm256_permute2f128_pd(even, even_too, 0x20));
  _mm256_storeu_pd(to + line, _mm256_permute2f128_pd(odd, odd_too, 0x20));
  _mm256_storeu_pd(to + 2 * line, _mm256_permute2f128_pd(even, even_too, 0x31));
  _mm256_storeu_pd(to + 3 * line, _mm256_permute2f128_pd(odd, odd_too, 0x31));
}
#endif

// The rows [begin, end) of [c, d] as columns of [d, c], whose rows are `line` apart.
template <class A> void turn(const void* rows, int64_t d, void* out, int64_t line, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end;) {
    const A* from = static_cast<const A*>(rows) + j * d;
    A* to = static_cast<A*>(out) + j;
    const int64_t side = end - j < 4 ? 1 : 4;
    int64_t k = 0;
    for (; side == 4 && k + 4 <= d; k += 4) turn_square<A>(from + k, d, to + k * line, line);
    for (; k < d; ++k)
      for (int64_t row = 0; row < side; ++row) to[k * line + row] = from[row * d + k];
    j += side;
  }
}

template <class A> void product(const Product& in) {
  constexpr int W = Vec<A>::width;
  const int64_t vectors = (in.columns + W - 1) / W, panels = (vectors + kTileVectors - 1) / kTileVectors;
  for (int64_t panel = 0, from = 0; panel < panels; ++panel) {
    const int64_t to = vectors * (panel + 1) / panels, first = from * W;
    const int64_t whole = in.columns - W, last = (to - 1) * W < whole ? (to - 1) * W : whole < 0 ? 0 : whole;
    const A *left = static_cast<const A*>(in.left), *right = static_cast<const A*>(in.right) + first;
    const A* start = in.start ? static_cast<const A*>(in.start) + first : nullptr;
    Panel<A> one{left, right, static_cast<A*>(in.out) + first, in.row, in.step, in.right_stride, in.out_stride, in.depth,
                 start, int(last - first), whole < 0 ? int(in.columns) : 0};
    rows_of<A>(one, in.rows, int(to - from));
    from = to;
  }
}

}  // namespace LT_ISA
}  // namespace lt
