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

// The loss of logits [N, C] by the kernels, its gradient, and the numbers that bfloat16 saves.
struct Evaluated {
  Ref loss, gradient, saved;
  explicit operator bool() const { return bool(loss); }
};

// values: target, weight, offset, gamma, ignore_index, reduction; `view` of the logits, `dense` if that is known. Nothing,
// and an error, if that fails.
Evaluated evaluate(const Known& torch, PyObject* logits, const View& view, PyObject* const* values, bool wanted, bool dense) {
  PyObject* kind = view.dtype == torch.float64 ? torch.float64 : torch.float32;
  Call call;
  Rows& args = call.args;
  args.n = view.sizes[0], args.c = view.sizes[1], call.reduction = PyLong_AsLongLong(values[5]);
  call.type = view.dtype == torch.float64 ? kDouble : view.dtype == torch.bfloat16 ? kBFloat16 : kFloat;
  if (view.dims != 2 || (call.type == kFloat && view.dtype != torch.float32)) {
    PyErr_Format(PyExc_TypeError, "logits must be a tensor [N, C] of float32, float64 or bfloat16");
    return {};
  }
  dense = dense || Ref(PyObject_CallMethodObjArgs(logits, torch.is_contiguous, nullptr)).it == Py_True;
  auto none_like = [&](PyObject* sizes) { return numbers(torch, logits, view.dtype, kind, Ref(sizes).it); };
  Evaluated out{none_like(call.reduction == kNone ? Py_BuildValue("(L)", (long long)args.n) : PyTuple_New(0))};
  if (!out.loss) return {};
  if (wanted) out.gradient = dense_like(torch, logits, dense);
  // Needed again where an incoming gradient other than 1 is not to round bfloat16 twice.
  if (out.gradient && kind != view.dtype) out.saved = none_like(Py_BuildValue("(iL)", 5, (long long)args.n));
  if (PyErr_Occurred()) return {};
  args.logits = address(torch, logits), args.stride = args.c;
  if (!dense) args.stride = PyLong_AsLongLong(Ref(PyObject_CallMethod(logits, "stride", "i", 0)).it);
  args.target = static_cast<const int64_t*>(address(torch, values[0])), args.slots = 1;
  args.ignore_index = PyLong_AsLongLong(values[4]), args.scale = 1;
  args.offset.data = address(torch, values[2]), args.offset.rows = 1, args.d_logits = address(torch, out.gradient.it);
  call.margins.weight = address(torch, values[1]), call.margins.gamma = PyFloat_AsDouble(values[3]);
  call.loss = address(torch, out.loss.it), call.saved = address(torch, out.saved.it);
  if (PyErr_Occurred() || !run(call)) return {};
  if (kind != view.dtype) out.loss = PyObject_CallMethodObjArgs(out.loss.it, torch.to, view.dtype, nullptr);
  return out;
}

// What the backward needs: tensors, the gradient, and (gamma, ignore_index, reduction).
bool keep(const Known& torch, PyObject* context, PyObject* tensors, const Evaluated& made, PyObject* const* settings) {
  Ref method(PyObject_GetAttr(context, torch.save)), numbers(PyTuple_Pack(3, settings[0], settings[1], settings[2]));
  if (!tensors || !method || !numbers || !Ref(PyObject_CallObject(method.it, tensors))) return false;
  return !PyObject_SetAttr(context, torch.gradient, made.gradient.it) && !PyObject_SetAttr(context, torch.settings, numbers.it);
}

// Whether any of the first inputs of a call needs a gradient; -1 and an error if that cannot be told.
int needed(const Known& torch, PyObject* context, int inputs) {
  Ref needs(PyObject_GetAttr(context, torch.needs));
  int any = needs ? 0 : -1;
  for (int k = 0; needs && k < inputs; ++k) any |= PyTuple_GetItem(needs.it, k) == Py_True;
  return PyErr_Occurred() ? -1 : any;
}

const Known* ready(const char* name, Py_ssize_t count, Py_ssize_t wanted) {
  if (count != wanted) {
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, wanted, count);
    return nullptr;
  }
  if (!known()) PyErr_Format(PyExc_ImportError, "lt_kernels: torch lacks what %s needs", name);
  return known();
}

// The gradient that was made with the loss, where a loss that stands alone is differentiated once; `one`: whether the
// incoming gradient is 1. Kept where the graph is.
Ref handed_out(const Known& torch, PyObject* context, PyObject* grad, bool* one, bool* stays) {
  if (View(torch, grad).dims != 0 || Ref(PyObject_CallNoArgs(torch.grad_mode)).it != Py_False) return {};
  Ref kept(PyObject_CallNoArgs(torch.graph_stays)), made(PyObject_GetAttr(context, torch.gradient));
  Ref value(PyObject_CallMethodObjArgs(grad, torch.item, nullptr));
  if (!kept || !made || !value || made.it == Py_None) return {};
  *one = PyFloat_AsDouble(value.it) == 1, *stays = kept.it != Py_False;
  return PyErr_Occurred() ? Ref() : std::move(made);
}
PyObject* otherwise(PyObject* context, PyObject* grad) {
  if (PyErr_Occurred()) return nullptr;
  Ref function(PyObject_GetAttrString(context, "_forward_cls"));
  return function ? PyObject_CallMethod(function.it, "otherwise", "OO", context, grad) : nullptr;
}

}  // namespace

// Where no gradient is wanted, a loss needs no graph. rest: target, weight, offset, gamma, ignore_index, reduction
PyObject* lt::plain_value(PyObject* logits, PyObject* const* rest) {
  return evaluate(*known(), logits, View(*known(), logits), rest, false, false).loss.release();
}

// The forward of lt_kernels.ops.plain.PlainLoss: (context, logits, target, weight, offset, gamma, ignore_index, reduction)
PyObject* plain_forward(PyObject*, PyObject* const* in, Py_ssize_t count) {
  const Known* torch = ready("plain_forward", count, 8);
  const int wanted = torch ? needed(*torch, in[0], 1) : -1;
  if (wanted < 0) return nullptr;
  Evaluated made = evaluate(*torch, in[1], View(*torch, in[1]), in + 2, wanted, false);
  if (!made || !wanted) return made.loss.release();
  Ref tensors(PyTuple_Pack(5, in[1], in[2], in[3], in[4], made.saved ? made.saved.it : Py_None));
  return keep(*torch, in[0], tensors.it, made, in + 5) ? made.loss.release() : nullptr;
}

// Its backward: (context, incoming gradient). A loss that nothing follows gets a 1, and its gradient is there already;
// whatever else is left to Python.
PyObject* plain_backward(PyObject*, PyObject* const* in, Py_ssize_t count) {
  const Known* torch = ready("plain_backward", count, 2);
  bool one = false, stays = true;
  Ref made = torch ? handed_out(*torch, in[0], in[1], &one, &stays) : Ref();
  if (!made || !one || stays) return torch ? otherwise(in[0], in[1]) : nullptr;
  if (PyObject_SetAttr(in[0], torch->gradient, Py_None)) return nullptr;
  return PyTuple_Pack(7, made.it, Py_None, Py_None, Py_None, Py_None, Py_None, Py_None);
}

// The forward of LinearLoss: (context, input, linear_weight, linear_bias, target, weight, offset, gamma, ignore_index,
// reduction). The logits are gone when it returns; their gradient stays.
PyObject* linear_forward(PyObject*, PyObject* const* in, Py_ssize_t count) {
  const Known* torch = ready("linear_forward", count, 10);
  const int wanted = torch ? needed(*torch, in[0], 3) : -1;
  Ref logits(wanted < 0 ? nullptr : PyObject_CallFunctionObjArgs(torch->large_linear, in[1], in[2], in[3], nullptr));
  if (!logits) return nullptr;
  Evaluated made = evaluate(*torch, logits.it, View(*torch, logits.it), in + 4, wanted, true);
  if (!made || !wanted) return made.loss.release();
  Ref tensors(PyTuple_Pack(6, in[1], in[2], in[3], in[4], in[5], in[6]));
  return keep(*torch, in[0], tensors.it, made, in + 7) ? made.loss.release() : nullptr;
}

// Its backward: a product for the features and one for the class weights, a sum for the bias.
PyObject* linear_backward(PyObject*, PyObject* const* in, Py_ssize_t count) {
  const Known* torch = ready("linear_backward", count, 2);
  bool one = false, stays = true;
  Ref slope = torch ? handed_out(*torch, in[0], in[1], &one, &stays) : Ref();
  if (!slope) return torch ? otherwise(in[0], in[1]) : nullptr;
  Ref tensors(PyObject_GetAttrString(in[0], "saved_tensors"));
  Ref needs(tensors ? PyObject_GetAttr(in[0], torch->needs) : nullptr);  // not with an error in the air
  if (!tensors || !needs || (!stays && PyObject_SetAttr(in[0], torch->gradient, Py_None))) return nullptr;
  if (!one) slope = PyNumber_Multiply(slope.it, in[1]);
  Ref found[3];
  for (int k = 0; k < 3 && slope; ++k) {
    if (PyTuple_GetItem(needs.it, k) != Py_True) continue;
    Ref turned(k == 1 ? PyObject_CallMethod(slope.it, "t", nullptr) : nullptr);
    if (k == 0) found[k] = PyObject_CallFunctionObjArgs(torch->product, slope.it, PyTuple_GetItem(tensors.it, 1), nullptr);
    if (turned) found[k] = PyObject_CallFunctionObjArgs(torch->product, turned.it, PyTuple_GetItem(tensors.it, 0), nullptr);
    if (k == 2) found[k] = PyObject_CallMethod(slope.it, "sum", "i", 0);
    if (!found[k]) return nullptr;
  }
  auto of = [&](int k) { return found[k] ? found[k].it : Py_None; };
  PyObject* no = Py_None;
  return slope ? PyTuple_Pack(9, of(0), of(1), of(2), no, no, no, no, no, no) : nullptr;
}
