// Plain losses: Python functions of the extension that return one, or None where the call is not a plain one (few.cpp).
#pragma once

#include <Python.h>

namespace lt {
bool few_allowed();  // not where somebody asks for kernels by name
}

PyObject* few_cross_entropy(PyObject*, PyObject* const* values, Py_ssize_t count);
PyObject* few_linear_cross_entropy(PyObject*, PyObject* const* values, Py_ssize_t count);
PyObject* allow_few(PyObject*, PyObject* value);
