// The losses of plain rows, past the dispatcher.
#pragma once

#include <Python.h>

namespace lt {
PyObject* plain_value(PyObject* logits, PyObject* const* rest);
PyObject* linear_value(PyObject* const* values);
}

PyObject* plain_forward(PyObject*, PyObject* const* values, Py_ssize_t count);
PyObject* plain_backward(PyObject*, PyObject* const* values, Py_ssize_t count);
PyObject* linear_forward(PyObject*, PyObject* const* values, Py_ssize_t count);
PyObject* linear_backward(PyObject*, PyObject* const* values, Py_ssize_t count);
