// Plain losses: Python functions of the extension that return one, or None where the call is not a plain one (few.cpp).
#pragma once

#include <Python.h>

namespace lt {
struct Known;
const Known* few_allowed();  // none where the short ways are not to be taken
}

PyObject* few_cross_entropy(PyObject*, PyObject* const* values, Py_ssize_t count);
PyObject* few_linear_cross_entropy(PyObject*, PyObject* const* values, Py_ssize_t count);
PyObject* allow_few(PyObject*, PyObject* value);
