// Plain cross-entropy by the kernels, and what they do not serve, of few logits, by torch's own functions: both with fewer
// steps than Python takes. Whatever is unusual or wrong is None: others name it.
#include "few.h"

#include <cmath>

#include "python.h"

using namespace lt;

namespace {

// Whether the kernels can read a tensor on the spot.
bool here(const Known& torch, PyObject* value) {
  if (Ref(PyObject_GetAttr(value, torch.is_cpu)).it != Py_True) return false;
  return Ref(PyObject_CallMethodObjArgs(value, torch.is_contiguous, nullptr)).it == Py_True;
}
bool off(PyObject* function, PyObject* argument) {
  PyObject* answer = Ref(PyObject_CallFunctionObjArgs(function, argument, nullptr)).it;
  return answer == Py_False || answer == Py_None;
}

// target, weight, offset, focal_gamma, label_smoothing, ignore_index, reduction
struct Settings {
  PyObject *const *values, *target, *weight, *offset, *smoothing;
  int reduction = -1;

  explicit Settings(PyObject* const* values)
      : values(values), target(values[0]), weight(values[1]), offset(values[2]), smoothing(values[4]) {
    PyObject* name = values[6];
    if (!PyUnicode_Check(name)) return;
    const char* names[] = {"none", "mean", "sum"};
    for (int code = 0; code < 3; ++code)
      if (PyUnicode_CompareWithASCIIString(name, names[code]) == 0) reduction = code;
  }
  // Whether they are plain. Torch refuses what does not fit the logits, but for an offset that it would broadcast.
  bool fit(const Known& torch, int64_t classes, PyObject* dtype) const {
    if (reduction < 0 || !PyFloat_Check(values[3]) || PyFloat_AsDouble(values[3]) != 0) return false;
    if (!PyFloat_Check(smoothing) || !(PyFloat_AsDouble(smoothing) >= 0)) return false;
    // An ignored row is left to the operators: torch makes its gradient NaN where its logits are infinite.
    if (!PyLong_CheckExact(values[5]) || PyLong_AsLongLong(values[5]) >= 0) return false;
    if (View::dtype_of(torch, target) != torch.int64) return false;
    if (weight != Py_None && View::dtype_of(torch, weight) != dtype) return false;
    return offset == Py_None || View(torch, offset).vector(classes, dtype);
  }
  // Whether the kernels serve rows of these logits.
  bool quick(const Known& torch, int64_t rows, int64_t classes, PyObject* dtype) const {
    if (PyFloat_AsDouble(smoothing) != 0) return false;
    auto fixed = [&](PyObject* table) {
      if (table == Py_None) return true;
      const bool learned = Ref(PyObject_GetAttr(table, torch.requires_grad)).it != Py_False;
      return !learned && View(torch, table).vector(classes, dtype) && here(torch, table);
    };
    return View(torch, target).vector(rows, torch.int64) && here(torch, target) && fixed(weight) && fixed(offset) &&
           off(torch.transformed, nullptr) && off(torch.autocast, torch.cpu);
  }
  // By an autograd function of the logits or, in `first`, of what they are the product of.
  template <class... Rest> PyObject* by_kernels(const Known& torch, PyObject* apply, Rest... first) const {
    PyObject* mean = torch.reduction[reduction];
    Ref loss(PyObject_CallFunctionObjArgs(apply, first..., target, weight, offset, values[3], values[5], mean, nullptr));
    return loss ? loss.release() : nothing();
  }
  // Without smoothing by the two functions that torch's cross-entropy is made of.
  PyObject* of_whole(const Known& torch, PyObject* logits) const {
    PyObject* mean = torch.reduction[reduction];
    if (PyFloat_AsDouble(smoothing) > 0)
      return PyObject_CallFunctionObjArgs(torch.smooth, logits, target, weight, mean, torch.never, smoothing, nullptr);
    Ref log(PyObject_CallFunctionObjArgs(torch.softmax, logits, torch.one, nullptr));
    return log ? PyObject_CallFunctionObjArgs(torch.loss, log.it, target, weight, mean, torch.never, nullptr) : nullptr;
  }
  // The loss, if it is finite: a target's offset may be -inf.
  PyObject* evaluate(const Known& torch, PyObject* logits, int64_t rows, bool is_double) const {
    Ref sum(offset == Py_None ? nullptr : PyObject_CallFunctionObjArgs(torch.add, logits, offset, nullptr));
    if (offset != Py_None && !sum) return nothing();
    Ref loss(of_whole(torch, sum ? sum.it : logits));
    if (!loss) return nothing();
    if (offset == Py_None) return loss.release();
    Ref address(PyObject_CallMethodObjArgs(loss.it, torch.data_ptr, nullptr));
    const void* numbers = address ? PyLong_AsVoidPtr(address.it) : nullptr;
    if (!numbers) return nothing();
    bool finite = true;
    for (int64_t i = 0; i < (reduction ? 1 : rows); ++i)
      finite &= std::isfinite(is_double ? static_cast<const double*>(numbers)[i] : static_cast<const float*>(numbers)[i]);
    return finite ? loss.release() : nothing();
  }
};

bool plain(const Known& torch, const View& rows, PyObject* value) {
  if (rows.dims != 2 || (rows.dtype != torch.float32 && rows.dtype != torch.float64)) return false;
  return Ref(PyObject_GetAttr(value, torch.is_cpu)).it == Py_True;
}
bool few(int64_t rows, int64_t classes, int64_t most) { return rows > 0 && classes > 0 && rows <= most / classes; }
bool allowed = true;

}  // namespace

// Whether to; not where somebody asks for kernels by name.
PyObject* allow_few(PyObject*, PyObject* value) {
  allowed = PyObject_IsTrue(value) == 1;
  Py_RETURN_NONE;
}

// (logits, target, weight, offset, focal_gamma, label_smoothing, ignore_index, reduction, most logits for torch's
// functions, the kernels' way)
PyObject* few_cross_entropy(PyObject*, PyObject* const* values, Py_ssize_t count) {
  const Known* torch = allowed ? known() : nullptr;
  if (!torch || count != 10) return nothing();
  const View view(*torch, values[0]);
  const int64_t rows = view.sizes[0], classes = view.sizes[1];
  if (rows <= 0 || classes <= 0 || !plain(*torch, view, values[0])) return nothing();
  const Settings settings(values + 1);
  if (!settings.fit(*torch, classes, view.dtype)) return nothing();
  if (settings.quick(*torch, rows, classes, view.dtype) && here(*torch, values[0]))
    return settings.by_kernels(*torch, values[9], values[0]);
  if (!few(rows, classes, PyLong_AsLongLong(values[8]))) return nothing();
  return settings.evaluate(*torch, values[0], rows, view.dtype == torch->float64);
}

// (input, linear_weight, linear_bias, target, weight, offset, focal_gamma, label_smoothing, ignore_index, reduction, most,
// bytes of the memory budget, the kernels' way)
PyObject* few_linear_cross_entropy(PyObject*, PyObject* const* values, Py_ssize_t count) {
  const Known* torch = allowed ? known() : nullptr;
  if (!torch || count != 13) return nothing();
  const View view(*torch, values[0]), table(*torch, values[1]);
  const int64_t rows = view.sizes[0], classes = table.sizes[0], budget = PyLong_AsLongLong(values[11]);
  if (table.dims != 2 || table.dtype != view.dtype) return nothing();
  if (!few(rows, classes, budget / (view.dtype == torch->float64 ? 16 : 8))) return nothing();  // with their gradient
  if (!plain(*torch, view, values[0])) return nothing();
  if (values[2] != Py_None && !View(*torch, values[2]).vector(classes, view.dtype)) return nothing();
  const Settings settings(values + 3);
  if (!settings.fit(*torch, classes, view.dtype) || !off(torch->autocast, torch->cpu)) return nothing();
  const bool quick = settings.quick(*torch, rows, classes, view.dtype);
  if (quick) return settings.by_kernels(*torch, values[12], values[0], values[1], values[2]);
  if (!few(rows, classes, PyLong_AsLongLong(values[10]))) return nothing();
  Ref logits(PyObject_CallFunctionObjArgs(torch->linear, values[0], values[1], values[2], nullptr));
  return logits ? settings.evaluate(*torch, logits.it, rows, view.dtype == torch->float64) : nothing();
}
