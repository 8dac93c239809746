// The losses of plain rows, called from Python with addresses: past the dispatcher, whose call costs more than few rows.
#pragma once

#include <Python.h>

PyObject* plain_loss(PyObject*, PyObject* const* values, Py_ssize_t count);
