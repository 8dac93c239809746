// What autograd functions in steps of C share: their arguments, new tensors, and what a backward hands out.
#pragma once

#include <exception>
#include <optional>

#include "losses.h"
#include "python.h"

namespace lt {

constexpr int64_t kShort = 1 << 16;  // logits; more are worth letting go of the interpreter's lock

// Lets other threads of the interpreter run while it lives.
struct Unlocked {
  PyThreadState* state = PyEval_SaveThread();
  ~Unlocked() { PyEval_RestoreThread(state); }
};

// The loss of rows, on memory of the caller's.
struct Call {
  Rows args{};
  Margins margins{1.0, kPlain};
  Type type;
  int64_t reduction;
  void *loss, *saved = nullptr;

  int64_t size() const { return args.n * args.c; }
  // False, and nothing done, where a target is no class or has an offset of -inf.
  template <class A> bool run() const {
    if (first_misfit(args.target, args.n, args.c, args.ignore_index) || absent_target<A>(args) >= 0) return false;
    const bool each = reduction == kNone;
    std::vector<A> numbers(saved ? 0 : kSaved * args.n), losses(each ? 0 : args.n);
    std::vector<A> rival(margins.needs_rival() ? args.n : 0);
    A *result = static_cast<A*>(loss), *kept = saved ? static_cast<A*>(saved) : numbers.data();
    Losses<A> rows(args, margins, nullptr, reduction, each ? result : losses.data(), kept, rival.data());
    rows.run(type);
    if (!each) *result = rows.reduced(reduction);
    return true;
  }
  bool run() const { return type == kDouble ? run<double>() : run<float>(); }
};

// Runs a call whose arguments were read without an error; an error of its own is Python's then.
template <class Any> bool run(Any& call) {
  try {
    std::optional<Unlocked> unlocked;
    if (call.size() > kShort) unlocked.emplace();
    if (call.run()) return true;
    unlocked.reset();
    PyErr_SetString(PyExc_ValueError, "target");
  } catch (const std::exception& error) {
    PyErr_Format(PyExc_RuntimeError, "lt_kernels: %s", error.what());
  }
  return false;
}

// A new tensor of given sizes for numbers of a kind, float32 or float64.
inline PyObject* numbers(const Known& torch, PyObject* like, PyObject* kind, PyObject* sizes) {
  Ref function(PyObject_GetAttr(like, torch.new_empty)), arguments(sizes ? PyTuple_Pack(1, sizes) : nullptr);
  Ref options(PyDict_New());
  const bool ready = function && arguments && options && !PyDict_SetItem(options.it, torch.dtype, kind);
  return ready ? PyObject_Call(function.it, arguments.it, options.it) : nullptr;
}
// One number: like another one, which takes two thirds of the time that reading sizes does.
inline PyObject* one_number(const Known& torch, PyObject* like, PyObject* kind) {
  static PyObject* kept[2] = {nullptr, nullptr};
  PyObject*& one = kept[kind == torch.float64];
  if (!one) one = numbers(torch, like, kind, Ref(PyTuple_New(0)).it);
  return one ? PyObject_CallFunctionObjArgs(torch.empty_like, one, nullptr) : nullptr;
}
// The loss of so many rows: a number for each, or one.
inline PyObject* loss_of(const Known& torch, PyObject* like, PyObject* kind, int64_t reduction, int64_t rows) {
  if (reduction != kNone) return one_number(torch, like, kind);
  return numbers(torch, like, kind, Ref(Py_BuildValue("(L)", (long long)rows)).it);
}
inline PyObject* dense_like(const Known& torch, PyObject* value, bool dense) {
  static PyObject* options = nullptr;
  if (!options && (options = PyDict_New())) PyDict_SetItemString(options, "memory_format", torch.contiguous);
  Ref arguments(PyTuple_Pack(1, value));
  return options && arguments ? PyObject_Call(torch.empty_like, arguments.it, dense ? nullptr : options) : nullptr;
}
// Nothing of nothing, and once something went wrong.
inline void* address(const Known& torch, PyObject* value) {
  if (!value || value == Py_None || PyErr_Occurred()) return nullptr;
  Ref number(PyObject_CallMethodObjArgs(value, torch.data_ptr, nullptr));
  return number ? PyLong_AsVoidPtr(number.it) : nullptr;
}

// Whether any of the first inputs of a call needs a gradient; -1 and an error if that cannot be told.
inline int needed(const Known& torch, PyObject* context, int inputs) {
  Ref needs(PyObject_GetAttr(context, torch.needs));
  int any = needs ? 0 : -1;
  for (int k = 0; needs && k < inputs; ++k) any |= PyTuple_GetItem(needs.it, k) == Py_True;
  return PyErr_Occurred() ? -1 : any;
}

inline const Known* ready(const char* name, Py_ssize_t count, Py_ssize_t wanted) {
  if (count != wanted) {
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, wanted, count);
    return nullptr;
  }
  if (!known()) PyErr_Format(PyExc_ImportError, "lt_kernels: torch lacks what %s needs", name);
  return known();
}

// Keeps what the backward needs, tensors and the gradient; true if that is done.
inline bool keep(const Known& torch, PyObject* context, PyObject* tensors, PyObject* gradient) {
  Ref method(PyObject_GetAttr(context, torch.save));
  if (!tensors || !method || !Ref(PyObject_CallObject(method.it, tensors))) return false;
  return !PyObject_SetAttr(context, torch.gradient, gradient);
}
// And (gamma, ignore_index, reduction).
inline bool keep(const Known& torch, PyObject* context, PyObject* tensors, PyObject* gradient, PyObject* const* from) {
  Ref settings(PyTuple_Pack(3, from[0], from[1], from[2]));
  return settings && keep(torch, context, tensors, gradient) && !PyObject_SetAttr(context, torch.settings, settings.it);
}

// The gradient that was made with the loss, where a loss that stands alone is differentiated once; `one`: whether the
// incoming gradient is 1. Kept where the graph is. None for one that is not finite: 0 times that is not the 0 of a row
// that is ignored.
inline Ref handed_out(const Known& torch, PyObject* context, PyObject* grad, bool* one, bool* stays) {
  if (View(torch, grad).dims != 0 || Ref(PyObject_CallNoArgs(torch.grad_mode)).it != Py_False) return {};
  Ref kept(PyObject_CallNoArgs(torch.graph_stays)), made(PyObject_GetAttr(context, torch.gradient));
  if (!kept || !made || made.it == Py_None) return {};
  Ref value(PyObject_CallMethodObjArgs(grad, torch.item, nullptr));
  if (!value && PyErr_ExceptionMatches(PyExc_RuntimeError)) PyErr_Clear();  // many incoming gradients at once
  if (!value) return {};
  const double factor = PyFloat_AsDouble(value.it);
  *one = factor == 1, *stays = kept.it != Py_False;
  return PyErr_Occurred() || !std::isfinite(factor) ? Ref() : std::move(made);
}
inline PyObject* otherwise(PyObject* context, PyObject* grad) {
  if (PyErr_Occurred()) return nullptr;
  Ref function(PyObject_GetAttrString(context, "_forward_cls"));
  return function ? PyObject_CallMethod(function.it, "otherwise", "OO", context, grad) : nullptr;
}

}  // namespace lt
