// The losses of cosines, past the dispatcher.
#pragma once

#include <Python.h>

PyObject* cosine_forward(PyObject*, PyObject* const* values, Py_ssize_t count);
PyObject* cosine_backward(PyObject*, PyObject* const* values, Py_ssize_t count);
PyObject* few_cosine_cross_entropy(PyObject*, PyObject* const* values, Py_ssize_t count);
