// The derivative of a row's normalisation: projects gradients to be orthogonal to the rows.
#pragma once

#include "gram.h"

namespace lt {
namespace LT_ISA {

// gradient_i -= (gradient_i . row_i) scale_i^2 row_i for the rows [begin, end), with scale_i = 1 / |row_i|.
template <class A> inline void project(const Projection& in, int64_t begin, int64_t end) {
  constexpr int W = Vec<A>::width;
  for (int64_t i = begin; i < end; ++i) {
    A* gradient = static_cast<A*>(in.gradient) + i * in.d;
    const A *row = numbers<A>(in.rows) + i * in.d, scale = numbers<A>(in.scale)[i];
    const A along = dot<A>(gradient, row, in.d) * scale * scale;
    int64_t k = 0;
    for (; k + W <= in.d; k += W) store(gradient + k, load(gradient + k) - load(row + k) * along);
    for (; k < in.d; ++k) gradient[k] -= row[k] * along;
  }
}

}  // namespace LT_ISA
}  // namespace lt
