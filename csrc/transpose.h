// Transposes a float32 matrix in squares of 4 x 4, which are transposed within registers.
#pragma once

#include "table.h"
#include "vec.h"

namespace lt {
namespace LT_ISA {

// One square: rows `stride` apart become columns of rows `line` apart.
inline void transpose_square(const float* from, int64_t stride, float* to, int64_t line) {
#if LT_BYTES >= 32
  __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + stride), c = _mm_loadu_ps(from + 2 * stride);
  __m128 d = _mm_loadu_ps(from + 3 * stride);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(to, a), _mm_storeu_ps(to + line, b), _mm_storeu_ps(to + 2 * line, c), _mm_storeu_ps(to + 3 * line, d);
#else
  for (int j = 0; j < 4; ++j)
    for (int k = 0; k < 4; ++k) to[k * line + j] = from[j * stride + k];
#endif
}

// Writes the rows [begin, end) of [c, d] as columns of `out` [d, c], whose rows are `line` apart.
inline void transpose(const float* rows, int64_t d, float* out, int64_t line, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end;) {
    const float* from = rows + j * d;
    float* to = out + j;
    const int64_t side = end - j < 4 ? 1 : 4;
    int64_t k = 0;
    for (; side == 4 && k + 4 <= d; k += 4) transpose_square(from + k, d, to + k * line, line);
    for (; k < d; ++k)
      for (int64_t row = 0; row < side; ++row) to[k * line + row] = from[row * d + k];
    j += side;
  }
}

}  // namespace LT_ISA
}  // namespace lt
