// The norms of rows, and what a gradient keeps once a row's length does not count: docs/math.md, section 5.
#pragma once

#include <cmath>

#include "table.h"
#include "vec.h"

namespace lt {
namespace LT_ISA {

// sum_j left_j right_j, in four sums of fixed order.
template <class A> inline A dot(const A* left, const A* right, int64_t size) {
  constexpr int W = Vec<A>::width;
  vec<A> sums[4] = {};
  int64_t j = 0;
  for (; j + 4 * W <= size; j += 4 * W)
    for (int k = 0; k < 4; ++k) sums[k] = sums[k] + load(left + j + k * W) * load(right + j + k * W);
  for (; j + W <= size; j += W) sums[0] = sums[0] + load(left + j) * load(right + j);
  if (j < size) sums[1] = sums[1] + load_part<A>(left + j, int(size - j)) * load_part<A>(right + j, int(size - j));
  return sum<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// 1 / |row|; 0 for a row that is too short to have a direction, NaN for one whose norm overflows.
template <class A> inline A inverse(A square) {
  const A norm = std::sqrt(square);
  return norm <= A(1e-12) ? A(0) : norm / norm / norm;
}

template <class A> void row_norms(const Directions& in, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const A* row = static_cast<const A*>(in.rows) + i * in.d;
    static_cast<A*>(in.inverse)[i] = inverse(dot(row, row, in.d));
  }
}

// slope - (slope . row) row / |row|^2, in its own place.
template <class A> void row_tangents(const Directions& in, int64_t begin, int64_t end) {
  constexpr int W = Vec<A>::width;
  for (int64_t i = begin; i < end; ++i) {
    const A* row = static_cast<const A*>(in.rows) + i * in.d;
    A* slope = static_cast<A*>(in.slope) + i * in.d;
    const A scale = inverse(dot(row, row, in.d)), along = -(scale * dot(slope, row, in.d)) * scale;
    int64_t j = 0;
    for (; j + W <= in.d; j += W) store(slope + j, load(slope + j) + load(row + j) * along);
    const int rest = int(in.d - j);
    if (rest) store_part<A>(slope + j, load_part<A>(slope + j, rest) + load_part<A>(row + j, rest) * along, rest);
  }
}

}  // namespace LT_ISA
}  // namespace lt
