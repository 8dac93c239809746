// LADE's regulariser, past the dispatcher.
#pragma once

#include <Python.h>

PyObject* lade_forward(PyObject*, PyObject* const* values, Py_ssize_t count);
PyObject* lade_backward(PyObject*, PyObject* const* values, Py_ssize_t count);
PyObject* few_lade(PyObject*, PyObject* const* values, Py_ssize_t count);
