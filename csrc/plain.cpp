#include "plain.h"

#include <exception>
#include <optional>

#include "losses.h"
#include "python.h"

namespace lt {
namespace {

constexpr int64_t kShort = 1 << 16;  // logits; more are worth letting go of the interpreter's lock

// Lets other threads of the interpreter run while it lives.
struct Unlocked {
  PyThreadState* state = PyEval_SaveThread();
  ~Unlocked() { PyEval_RestoreThread(state); }
};

struct Call {
  Rows args{};
  Margins margins{1.0, kPlain};
  Type type;
  int64_t reduction;
  void *loss, *saved;

  // False, and nothing done, where a target is no class or has an offset of -inf.
  template <class A> bool run() const {
    if (first_misfit(args.target, args.n, args.c, args.ignore_index) || absent_target<A>(args) >= 0) return false;
    const bool each = reduction == kNone;
    std::vector<A> numbers(saved ? 0 : 5 * args.n), losses(each ? 0 : args.n);
    A *result = static_cast<A*>(loss), *kept = saved ? static_cast<A*>(saved) : numbers.data();
    Losses<A> rows(args, margins, nullptr, reduction, each ? result : losses.data(), kept, nullptr);
    rows.run(type);
    if (!each) *result = rows.reduced(reduction);
    return true;
  }
  bool run() const { return type == kDouble ? run<double>() : run<float>(); }
};

}  // namespace
}  // namespace lt

namespace {

using namespace lt;

// A new tensor of given sizes for numbers of a kind, float32 or float64.
PyObject* numbers(const Known& torch, PyObject* like, PyObject* dtype, PyObject* kind, PyObject* sizes) {
  if (!sizes || dtype == kind) return sizes ? PyObject_CallMethodObjArgs(like, torch.new_empty, sizes, nullptr) : nullptr;
  static PyObject* options = nullptr;
  if (!options && (options = PyDict_New())) PyDict_SetItem(options, torch.dtype, torch.float32);
  Ref function(PyObject_GetAttr(like, torch.new_empty)), arguments(PyTuple_Pack(1, sizes));
  return options && function && arguments ? PyObject_Call(function.it, arguments.it, options) : nullptr;
}
PyObject* dense_like(const Known& torch, PyObject* value, bool dense) {
  static PyObject* options = nullptr;
  if (!options && (options = PyDict_New())) PyDict_SetItemString(options, "memory_format", torch.contiguous);
  Ref arguments(PyTuple_Pack(1, value));
  return options && arguments ? PyObject_Call(torch.empty_like, arguments.it, dense ? nullptr : options) : nullptr;
}
// Nothing of nothing, and once something went wrong.
void* address(const Known& torch, PyObject* value) {
  if (!value || value == Py_None || PyErr_Occurred()) return nullptr;
  Ref number(PyObject_CallMethodObjArgs(value, torch.data_ptr, nullptr));
  return number ? PyLong_AsVoidPtr(number.it) : nullptr;
}
bool done(PyObject* result) { return bool(Ref(result)); }

// Runs a call whose arguments were read without an error; an error of its own is Python's then.
bool run(const Call& call) {
  try {
    std::optional<Unlocked> unlocked;
    if (call.args.n * call.args.c > kShort) unlocked.emplace();
    if (call.run()) return true;
    unlocked.reset();
    PyErr_SetString(PyExc_ValueError, "target");
  } catch (const std::exception& error) {
    PyErr_Format(PyExc_RuntimeError, "lt_kernels: %s", error.what());
  }
  return false;
}

}  // namespace

// The forward of lt_kernels.ops.rows.PlainLoss: (context, logits, target, weight, offset, gamma, ignore_index, reduction)
PyObject* plain_forward(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (count != 8) return PyErr_Format(PyExc_TypeError, "plain_forward takes 8 arguments, got %zd", count);
  const Known* found = known();
  if (!found) return PyErr_Format(PyExc_ImportError, "lt_kernels: torch is not as expected");
  const Known& torch = *found;
  PyObject *context = values[0], *logits = values[1];
  const View view(torch, logits);
  PyObject* kind = view.dtype == torch.float64 ? torch.float64 : torch.float32;
  Call call;
  Rows& args = call.args;
  args.n = view.sizes[0], args.c = view.sizes[1], call.reduction = PyLong_AsLongLong(values[7]);
  call.type = view.dtype == torch.float64 ? kDouble : view.dtype == torch.bfloat16 ? kBFloat16 : kFloat;
  if (view.dims != 2 || (call.type == kFloat && view.dtype != torch.float32))
    return PyErr_Format(PyExc_TypeError, "logits must be a tensor [N, C] of float32, float64 or bfloat16");
  Ref dense(PyObject_CallMethodObjArgs(logits, torch.is_contiguous, nullptr)), needs(PyObject_GetAttr(context, torch.needs));
  auto none_like = [&](PyObject* sizes) { return numbers(torch, logits, view.dtype, kind, Ref(sizes).it); };
  Ref loss(none_like(call.reduction == kNone ? Py_BuildValue("(L)", (long long)args.n) : PyTuple_New(0))), made, saved;
  if (!dense || !needs || !loss) return nullptr;
  if (PyTuple_GetItem(needs.it, 0) == Py_True) {
    made = dense_like(torch, logits, dense.it == Py_True);
    // Needed again where an incoming gradient other than 1 is not to round bfloat16 twice.
    if (made && kind != view.dtype) saved = none_like(Py_BuildValue("(iL)", 5, (long long)args.n));
    if (PyErr_Occurred()) return nullptr;
  }
  args.logits = address(torch, logits), args.stride = args.c;
  if (dense.it != Py_True) args.stride = PyLong_AsLongLong(Ref(PyObject_CallMethod(logits, "stride", "i", 0)).it);
  args.target = static_cast<const int64_t*>(address(torch, values[2])), args.slots = 1;
  args.ignore_index = PyLong_AsLongLong(values[6]), args.scale = 1;
  args.offset.data = address(torch, values[4]), args.offset.rows = 1, args.d_logits = address(torch, made.it);
  call.margins.weight = address(torch, values[3]), call.margins.gamma = PyFloat_AsDouble(values[5]);
  call.loss = address(torch, loss.it), call.saved = address(torch, saved.it);
  if (PyErr_Occurred() || !run(call)) return nullptr;
  if (made) {
    PyObject *last = saved ? saved.it : Py_None, *const *in = values;
    Ref settings(PyTuple_Pack(3, in[5], in[6], in[7]));
    if (!done(PyObject_CallMethodObjArgs(context, torch.save, logits, in[2], in[3], in[4], last, nullptr)) || !settings ||
        PyObject_SetAttr(context, torch.gradient, made.it) || PyObject_SetAttr(context, torch.settings, settings.it))
      return nullptr;
  }
  return kind == view.dtype ? loss.release() : PyObject_CallMethodObjArgs(loss.it, torch.to, view.dtype, nullptr);
}

// Its backward: (context, incoming gradient). A loss that nothing follows gets a 1, and its gradient is there already;
// whatever else is left to Python.
PyObject* plain_backward(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "plain_backward takes 2 arguments, got %zd", count);
  const Known* torch = known();
  PyObject *context = values[0], *grad = values[1];
  const View view = torch ? View(*torch, grad) : View();
  if (view.dims == 0 && Ref(PyObject_CallNoArgs(torch->grad_mode)).it == Py_False &&
      Ref(PyObject_CallNoArgs(torch->graph_stays)).it == Py_False) {
    Ref made(PyObject_GetAttr(context, torch->gradient)), value(PyObject_CallMethodObjArgs(grad, torch->item, nullptr));
    if (made && value && made.it != Py_None && PyFloat_AsDouble(value.it) == 1) {
      if (PyObject_SetAttr(context, torch->gradient, Py_None)) return nullptr;
      return PyTuple_Pack(7, made.it, Py_None, Py_None, Py_None, Py_None, Py_None, Py_None);
    }
  }
  if (PyErr_Occurred()) return nullptr;
  Ref function(PyObject_GetAttrString(context, "_forward_cls"));
  return function ? PyObject_CallMethod(function.it, "otherwise", "OO", context, grad) : nullptr;
}
