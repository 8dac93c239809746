// What a product made turned, into its place.
#pragma once

#include <Python.h>

PyObject* turn(PyObject*, PyObject* const* values, Py_ssize_t count);
