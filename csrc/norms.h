// The norms of rows, and what a gradient keeps once a row's length does not count: docs/math.md, section 5.
#pragma once

#include "gram.h"

namespace lt {
namespace LT_ISA {

template <class A> void row_norms(const Directions& in, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const A* row = static_cast<const A*>(in.rows) + i * in.d;
    static_cast<A*>(in.inverse)[i] = inverse_norm(dot<A>(row, row, in.d));
  }
}

// slope - (slope . row) row / |row|^2, in its own place.
template <class A> void row_tangents(const Directions& in, int64_t begin, int64_t end) {
  constexpr int W = Vec<A>::width;
  for (int64_t i = begin; i < end; ++i) {
    const A* row = static_cast<const A*>(in.rows) + i * in.d;
    A* slope = static_cast<A*>(in.slope) + i * in.d;
    const A scale = inverse_norm(dot<A>(row, row, in.d)), along = -(scale * dot<A>(slope, row, in.d)) * scale;
    int64_t j = 0;
    for (; j + W <= in.d; j += W) store(slope + j, load(slope + j) + load(row + j) * along);
    const int rest = int(in.d - j);
    if (rest) store_part<A>(slope + j, load_part<A>(slope + j, rest) + load_part<A>(row + j, rest) * along, rest);
  }
}

}  // namespace LT_ISA
}  // namespace lt
