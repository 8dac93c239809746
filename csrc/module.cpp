// The extension module. Importing it registers the kernels; its functions say and choose the instruction set.
#include <Python.h>

#include <algorithm>

#include "pages.h"
#include "pieces.h"
#include "table.h"

namespace lt {
namespace {

int best_instruction_set() {
#if defined(LT_GENERIC_ONLY)
  return 0;
#else
  __builtin_cpu_init();
  bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (wide) return 2;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") ? 1 : 0;
#endif
}

const int best = best_instruction_set();
int chosen = best;  // changed only while lt_kernels is imported

}  // namespace

int instruction_set() { return chosen; }

const Kernels& kernels() {
#if !defined(LT_GENERIC_ONLY)
  if (chosen == 2) return avx512_kernels;
  if (chosen == 1) return avx2_kernels;
#endif
  return generic_kernels;
}

}  // namespace lt

namespace {

PyObject* instruction_set(PyObject*, PyObject*) { return PyLong_FromLong(lt::instruction_set()); }
PyObject* best_instruction_set(PyObject*, PyObject*) { return PyLong_FromLong(lt::best); }
PyObject* choose_instruction_set(PyObject*, PyObject* value) {
  const long wanted = PyLong_AsLong(value);
  if (PyErr_Occurred()) return nullptr;
  if (wanted < 0 || wanted > lt::best)
    return PyErr_Format(PyExc_ValueError, "this machine has the instruction sets 0 to %d, got %ld", lt::best, wanted);
  lt::chosen = int(wanted);
  Py_RETURN_NONE;
}
PyObject* intel(PyObject*, PyObject*) {
#if defined(LT_GENERIC_ONLY)
  Py_RETURN_FALSE;
#else
  __builtin_cpu_init();
  return PyBool_FromLong(__builtin_cpu_is("intel"));
#endif
}

// Arguments: address and bytes of an array that was not written to yet.
PyObject* large_pages(PyObject*, PyObject* const* values, Py_ssize_t count) {
  void* data = count == 2 ? PyLong_AsVoidPtr(values[0]) : nullptr;
  const size_t bytes = count == 2 ? PyLong_AsSize_t(values[1]) : 0;
  if (PyErr_Occurred()) return nullptr;
  lt::ask_for_large_pages(data, bytes);
  Py_RETURN_NONE;
}

// Arguments: address, rows and columns of a float32 matrix; address of its transpose and distance between its rows.
PyObject* transpose(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (count != 5) return PyErr_Format(PyExc_TypeError, "transpose takes 5 arguments, got %zd", count);
  const float* in = static_cast<const float*>(PyLong_AsVoidPtr(values[0]));
  float* out = static_cast<float*>(PyLong_AsVoidPtr(values[3]));
  const int64_t rows = PyLong_AsLongLong(values[1]), columns = PyLong_AsLongLong(values[2]);
  const int64_t line = PyLong_AsLongLong(values[4]);
  if (PyErr_Occurred()) return nullptr;
  const int64_t unit = 16, grain = 8192 / (unit * (columns + 1));  // 16 floats: no two threads write to one cache line
  lt::in_pieces((rows + unit - 1) / unit, grain, [&](int64_t begin, int64_t end) {
    lt::kernels().transpose(in, columns, out, line, begin * unit, std::min(end * unit, rows));
  });
  Py_RETURN_NONE;
}

// Arguments: addresses of gradients, rows and their inverse norms; rows, columns, and whether they are float64.
PyObject* project(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (count != 6) return PyErr_Format(PyExc_TypeError, "project takes 6 arguments, got %zd", count);
  lt::Projection in{PyLong_AsVoidPtr(values[0]), PyLong_AsVoidPtr(values[1]), PyLong_AsVoidPtr(values[2]),
                    PyLong_AsLongLong(values[4])};
  const int64_t rows = PyLong_AsLongLong(values[3]), wide = PyLong_AsLongLong(values[5]);
  if (PyErr_Occurred()) return nullptr;
  lt::in_pieces(rows, 8192 / (in.d + 1),
                [&](int64_t begin, int64_t end) { lt::kernels().project[wide != 0](in, begin, end); });
  Py_RETURN_NONE;
}

using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);
PyMethodDef fast(const char* name, Fast function, const char* about) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, about};
}

PyMethodDef methods[] = {
    {"instruction_set", instruction_set, METH_NOARGS, "0 generic, 1 AVX2, 2 AVX-512"},
    {"best_instruction_set", best_instruction_set, METH_NOARGS, "the widest instruction set of this machine"},
    {"choose_instruction_set", choose_instruction_set, METH_O, "makes the kernels use another instruction set"},
    {"intel", intel, METH_NOARGS, "whether the processor is made by Intel"},
    fast("large_pages", large_pages, "requests large pages for a new array"),
    fast("transpose", transpose, "writes the transpose of a matrix into another"),
    fast("project", project, "makes gradients orthogonal to the rows that were normalised"),
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
