#include "turn.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "table.h"

// (address of float32 [rows, columns], rows, columns, address of [columns, rows], from one of its rows to the next)
PyObject* turn(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (count != 5) return PyErr_Format(PyExc_TypeError, "turn takes 5 arguments, got %zd", count);
  const void* in = PyLong_AsVoidPtr(values[0]);
  void* out = PyLong_AsVoidPtr(values[3]);
  const int64_t rows = PyLong_AsLongLong(values[1]), columns = PyLong_AsLongLong(values[2]);
  const int64_t line = PyLong_AsLongLong(values[4]);
  if (PyErr_Occurred()) return nullptr;
  const auto kernel = lt::kernels().turn[lt::kFloat];
  const int64_t unit = 16, grain = std::max<int64_t>(1, 8192 / (unit * (columns + 1)));  // lines of the cache, each one thread's
  torch::stable::parallel_for(0, (rows + unit - 1) / unit, grain, [&](int64_t begin, int64_t end) {
    kernel(in, columns, out, line, begin * unit, std::min(end * unit, rows));
  });
  Py_RETURN_NONE;
}
