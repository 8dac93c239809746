// The extension module: importing it registers the kernels; it tells which instruction set was chosen.
#include <Python.h>

#include "cosine.h"
#include "few.h"
#include "lade.h"
#include "pages.h"
#include "plain.h"
#include "table.h"
#include "turn.h"

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
int chosen = best;  // changed while the module is imported, if at all

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

// (address, bytes) of an array that nothing was written to yet.
PyObject* large_pages(PyObject*, PyObject* const* values, Py_ssize_t count) {
  void* data = count == 2 ? PyLong_AsVoidPtr(values[0]) : nullptr;
  const size_t bytes = count == 2 ? PyLong_AsSize_t(values[1]) : 0;
  if (PyErr_Occurred()) return nullptr;
  lt::ask_for_large_pages(data, bytes);
  Py_RETURN_NONE;
}

using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);
PyMethodDef fast(const char* name, Fast function, const char* about) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, about};
}

PyMethodDef methods[] = {
    {"instruction_set", instruction_set, METH_NOARGS, "0 generic, 1 AVX2, 2 AVX-512"},
    {"best_instruction_set", best_instruction_set, METH_NOARGS, "the best one that this machine has"},
    {"choose_instruction_set", choose_instruction_set, METH_O, "makes the kernels run on another one"},
    {"intel", intel, METH_NOARGS, "whether the processor is Intel's"},
    fast("large_pages", large_pages, "asks for large pages"),
    fast("turn", turn, "a matrix, turned, into another"),
    fast("plain_forward", plain_forward, "the forward of the autograd function PlainLoss"),
    fast("plain_backward", plain_backward, "its backward"),
    fast("linear_forward", linear_forward, "the forward of the autograd function LinearLoss"),
    fast("linear_backward", linear_backward, "its backward"),
    fast("few_cross_entropy", few_cross_entropy, "the loss of plain logits, or None"),
    fast("few_linear_cross_entropy", few_linear_cross_entropy, "that of plain features, or None"),
    fast("lade_forward", lade_forward, "the forward of the autograd function LadeLoss"),
    fast("lade_backward", lade_backward, "its backward"),
    fast("few_lade", few_lade, "LADE's regulariser of plain logits, or None"),
    fast("cosine_forward", cosine_forward, "the forward of the autograd function CosineLoss"),
    fast("cosine_backward", cosine_backward, "its backward"),
    fast("few_cosine_cross_entropy", few_cosine_cross_entropy, "the loss of cosines, or None"),
    {"allow_few", allow_few, METH_O, "whether these may do without the kernels"},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
