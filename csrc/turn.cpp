#include "turn.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace {

constexpr int64_t kSide = 8;  // of a block: as many lines of each side stay in the first cache, and fit its sets

// out [columns, rows], rows `stride` apart: += or = in [rows, columns], turned.
struct Turn {
  const float* in;
  int64_t rows, columns;
  float* out;
  int64_t stride;

  template <bool kAdd> void block(int64_t row, int64_t column, int64_t down, int64_t across) const {
    for (int64_t j = 0; j < across; ++j) {
      float* to = out + (column + j) * stride + row;
      const float* from = in + row * columns + column + j;
      for (int64_t i = 0; i < down; ++i) to[i] = kAdd ? to[i] + from[i * columns] : from[i * columns];
    }
  }
  // Blocks of columns [begin, end).
  template <bool kAdd> void run(int64_t begin, int64_t end) const {
    for (int64_t column = begin * kSide; column < std::min(end * kSide, columns); column += kSide)
      for (int64_t row = 0; row < rows; row += kSide) {
        const bool whole = column + kSide <= columns && row + kSide <= rows;
        if (whole) block<kAdd>(row, column, kSide, kSide);  // both loops of a known length
        else block<kAdd>(row, column, std::min(kSide, rows - row), std::min(kSide, columns - column));
      }
  }
};

}  // namespace

// (address of float32 [rows, columns], rows, columns, address of [columns, rows], its stride, whether to add)
PyObject* turn(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (count != 6) return PyErr_Format(PyExc_TypeError, "turn takes 6 arguments, got %zd", count);
  const Turn turned{static_cast<const float*>(PyLong_AsVoidPtr(values[0])), PyLong_AsLongLong(values[1]),
                    PyLong_AsLongLong(values[2]), static_cast<float*>(PyLong_AsVoidPtr(values[3])),
                    PyLong_AsLongLong(values[4])};
  const bool add = PyObject_IsTrue(values[5]) == 1;
  if (PyErr_Occurred()) return nullptr;
  const int64_t blocks = (turned.columns + kSide - 1) / kSide, grain = std::max<int64_t>(1, 8192 / (kSide * (turned.rows + 1)));
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    add ? turned.run<true>(begin, end) : turned.run<false>(begin, end);
  });
  Py_RETURN_NONE;
}
