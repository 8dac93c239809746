// The losses of plain rows, called from Python with addresses, past the dispatcher.
#pragma once

#include <Python.h>

PyObject* plain_loss(PyObject*, PyObject* const* values, Py_ssize_t count);
