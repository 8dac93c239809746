// The extension module: importing it registers the kernels; it tells which instruction set was chosen.
#include <Python.h>

#include "table.h"

namespace lt {

int instruction_set() {
#if defined(LT_GENERIC_ONLY)
  return 0;
#else
  static const int best = [] {
    __builtin_cpu_init();
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (wide) return 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") ? 1 : 0;
  }();
  return best;
#endif
}

const Kernels& kernels() {
#if !defined(LT_GENERIC_ONLY)
  if (instruction_set() == 2) return avx512_kernels;
  if (instruction_set() == 1) return avx2_kernels;
#endif
  return generic_kernels;
}

}  // namespace lt

namespace {

PyObject* instruction_set(PyObject*, PyObject*) { return PyLong_FromLong(lt::instruction_set()); }

PyMethodDef methods[] = {
    {"instruction_set", instruction_set, METH_NOARGS, "0 generic, 1 AVX2, 2 AVX-512"}, {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
