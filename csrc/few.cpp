// Plain cross-entropy by the kernels, and what they do not serve, of few logits, by torch's own functions: both with fewer
// steps than Python takes. Whatever is unusual or wrong is None: others name it.
#include "few.h"

#include <cmath>

#include "plain.h"
#include "python.h"

using namespace lt;

namespace {

// target, weight, offset, focal_gamma, label_smoothing, ignore_index, reduction
struct Settings {
  PyObject *const *values, *target, *weight, *offset, *smoothing;
  int reduction = -1;

  explicit Settings(PyObject* const* values)
      : values(values), target(values[0]), weight(values[1]), offset(values[2]), smoothing(values[4]) {
    reduction = place_of(values[6], {"none", "mean", "sum"});
  }
  // Whether they are plain. Torch refuses what does not fit the logits, but for an offset that it would broadcast.
  bool fit(const Known& torch, int64_t classes, PyObject* dtype) const {
    if (reduction < 0 || !PyFloat_Check(values[3]) || PyFloat_AsDouble(values[3]) != 0) return false;
    if (!PyFloat_Check(smoothing) || !(PyFloat_AsDouble(smoothing) >= 0)) return false;
    // An ignored row is left to the operators: torch makes its gradient NaN where its logits are infinite.
    if (!PyLong_CheckExact(values[5]) || !fits(values[5]) || PyLong_AsLongLong(values[5]) >= 0) return false;
    if (View::dtype_of(torch, target) != torch.int64) return false;
    if (weight != Py_None && View::dtype_of(torch, weight) != dtype) return false;
    return offset == Py_None || View(torch, offset).vector(classes, dtype);
  }
  // Whether the kernels serve rows of these logits.
  bool quick(const Known& torch, int64_t rows, int64_t classes, PyObject* dtype) const {
    if (PyFloat_AsDouble(smoothing) != 0) return false;
    auto fixed = [&](PyObject* table) {
      return table == Py_None || (!learned(torch, table) && View(torch, table).vector(classes, dtype) && here(torch, table));
    };
    return View(torch, target).vector(rows, torch.int64) && here(torch, target) && fixed(weight) &&
           (fixed(offset) || learned(torch, offset)) && off(torch.transformed, nullptr) && off(torch.autocast, torch.cpu);
  }
  // By an autograd function of the logits or, in `first`, of what they are the product of; `shifted`: with the offset.
  template <class... Rest> PyObject* by_kernels(const Known& torch, PyObject* apply, bool shifted, Rest... first) const {
    PyObject *mean = torch.reduction[reduction], *table = shifted ? Py_None : offset;
    PyObject* const rest[] = {target, weight, table, values[3], values[5], mean};
    const bool graph = Ref(PyObject_CallNoArgs(torch.grad_mode)).it != Py_False;
    Ref loss(graph ? PyObject_CallFunctionObjArgs(apply, first..., target, weight, table, values[3], values[5], mean, nullptr)
                   : value(torch, rest, first...));
    return loss && (!shifted || finite(torch, loss.it)) ? loss.release() : nothing();
  }
  PyObject* value(const Known&, PyObject* const* rest, PyObject* logits) const { return plain_value(logits, rest); }
  PyObject* value(const Known&, PyObject* const* rest, PyObject* input, PyObject* weights, PyObject* bias) const {
    PyObject* const all[] = {input, weights, bias, rest[0], rest[1], rest[2], rest[3], rest[4], rest[5]};
    return linear_value(all);
  }
  PyObject* by_torch(const Known& torch, PyObject* logits) const {
    Ref sum(offset == Py_None ? nullptr : PyObject_CallFunctionObjArgs(torch.add, logits, offset, nullptr));
    if (offset != Py_None && !sum) return nothing();
    PyObject *mean = torch.reduction[reduction], *u = sum ? sum.it : logits;
    Ref loss(PyObject_CallFunctionObjArgs(torch.loss, u, target, weight, mean, torch.never, smoothing, nullptr));
    return loss && (!sum || finite(torch, loss.it)) ? loss.release() : nothing();
  }
  // Whether a loss of logits with their offset is: a target's offset may be -inf, which the operators say.
  bool finite(const Known& torch, PyObject* loss) const {
    const View view(torch, loss);
    Ref address(PyObject_CallMethodObjArgs(loss, torch.data_ptr, nullptr));
    const void* numbers = address ? PyLong_AsVoidPtr(address.it) : nullptr;
    bool all = numbers;
    for (int64_t i = 0; all && i < (reduction ? 1 : view.sizes[0]); ++i) {
      const bool wide = view.dtype == torch.float64;
      all = std::isfinite(wide ? static_cast<const double*>(numbers)[i] : static_cast<const float*>(numbers)[i]);
    }
    return all;
  }
};

bool plain(const Known& torch, const View& rows, PyObject* value) {
  if (rows.dims != 2 || (rows.dtype != torch.float32 && rows.dtype != torch.float64)) return false;
  return Ref(PyObject_GetAttr(value, torch.is_cpu)).it == Py_True;
}
bool allowed = true;

}  // namespace

// What torch is known by, where the short ways may be taken: not where somebody asks for kernels by name, nor where a
// dispatch mode or torch.jit.trace is to see every step.
const Known* lt::few_allowed() {
  const Known* torch = allowed ? known() : nullptr;
  Ref modes(torch ? PyObject_CallNoArgs(torch->modes) : nullptr);
  return modes && PyLong_AsLong(modes.it) == 0 && off(torch->tracing, nullptr) ? torch : nullptr;
}

// Whether to; not where somebody asks for kernels by name.
PyObject* allow_few(PyObject*, PyObject* value) {
  allowed = PyObject_IsTrue(value) == 1;
  Py_RETURN_NONE;
}

// (logits, target, weight, offset, focal_gamma, label_smoothing, ignore_index, reduction, most logits for torch's
// functions, the kernels' way)
PyObject* few_cross_entropy(PyObject*, PyObject* const* values, Py_ssize_t count) {
  const Known* torch = few_allowed();
  if (!torch || count != 10) return nothing();
  const View view(*torch, values[0]);
  const int64_t rows = view.sizes[0], classes = view.sizes[1];
  if (rows <= 0 || classes <= 0 || !plain(*torch, view, values[0])) return nothing();
  const Settings settings(values + 1);
  if (!settings.fit(*torch, classes, view.dtype)) return nothing();
  const bool is_few = few(rows, classes, PyLong_AsLongLong(values[8])), shifted = learned(*torch, settings.offset);
  if (settings.quick(*torch, rows, classes, view.dtype) && here(*torch, values[0]) && (is_few || !shifted)) {
    if (!shifted) return settings.by_kernels(*torch, values[9], false, values[0]);
    Ref sum(PyObject_CallFunctionObjArgs(torch->add, values[0], settings.offset, nullptr));
    return sum ? settings.by_kernels(*torch, values[9], true, sum.it) : nothing();
  }
  return is_few ? settings.by_torch(*torch, values[0]) : nothing();
}

// (input, linear_weight, linear_bias, target, weight, offset, focal_gamma, label_smoothing, ignore_index, reduction, most,
// bytes of the memory budget, the kernels' way)
PyObject* few_linear_cross_entropy(PyObject*, PyObject* const* values, Py_ssize_t count) {
  const Known* torch = few_allowed();
  if (!torch || count != 13) return nothing();
  const View view(*torch, values[0]), table(*torch, values[1]);
  const int64_t rows = view.sizes[0], classes = table.sizes[0], budget = at_most(values[11]);
  if (table.dims != 2 || table.dtype != view.dtype) return nothing();
  if (!few(rows, classes, budget / (view.dtype == torch->float64 ? 16 : 8))) return nothing();  // with their gradient
  if (!plain(*torch, view, values[0])) return nothing();
  if (values[2] != Py_None && !View(*torch, values[2]).vector(classes, view.dtype)) return nothing();
  const Settings settings(values + 3);
  if (!settings.fit(*torch, classes, view.dtype)) return nothing();
  if (settings.quick(*torch, rows, classes, view.dtype)) {  // an offset that is learned is one bias more
    const bool shifted = learned(*torch, settings.offset), both = shifted && values[2] != Py_None;
    Ref sum(both ? PyObject_CallFunctionObjArgs(torch->add, values[2], settings.offset, nullptr) : nullptr);
    PyObject* bias = both ? sum.it : shifted ? settings.offset : values[2];
    return bias ? settings.by_kernels(*torch, values[12], shifted, values[0], values[1], bias) : nothing();
  }
  if (!few(rows, classes, PyLong_AsLongLong(values[10])) || !off(torch->autocast, torch->cpu)) return nothing();
  Ref logits(PyObject_CallFunctionObjArgs(torch->linear, values[0], values[1], values[2], nullptr));
  return logits ? settings.by_torch(*torch, logits.it) : nothing();
}
