// Linear losses so small that their products are made here, and with them all gradients in the forward.
#pragma once

#include "python.h"

namespace lt {

// values: input, linear_weight, linear_bias, target, weight, offset, gamma, ignore_index, reduction. `taken`: whether
// they are so small; if not, nothing was done. The gradients, for an incoming one of 1, are (input's, linear_weight's,
// bias's), None for those that `needs`, a tuple or none, has no True for. Nothing, and an error, if it fails.
struct SmallLinear {
  bool taken = false;
  Ref loss, gradients;
  SmallLinear(const Known& torch, PyObject* const* values, PyObject* needs);
};

// What the backward of such a loss returns: the gradients, or as many new ones where others may still ask for them.
PyObject* small_backward(const Known& torch, PyObject* context, PyObject* grad, PyObject* made, bool one, bool stays);

}  // namespace lt
