#include "plain.h"

#include "linear.h"
#include "node.h"
#include "pages.h"

namespace {

using namespace lt;

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
  Evaluated out{loss_of(torch, logits, kind, call.reduction, args.n)};
  if (!out.loss) return {};
  if (wanted) out.gradient = dense_like(torch, logits, dense);
  // Needed again where an incoming gradient other than 1 is not to round bfloat16 twice.
  if (out.gradient && kind != view.dtype)
    out.saved = numbers(torch, logits, kind, Ref(Py_BuildValue("(iL)", kSaved, (long long)args.n)).it);
  if (PyErr_Occurred()) return {};
  args.logits = address(torch, logits), args.stride = args.c;
  if (!dense) args.stride = PyLong_AsLongLong(Ref(PyObject_CallMethod(logits, "stride", "i", 0)).it);
  args.target = static_cast<const int64_t*>(address(torch, values[0])), args.slots = 1;
  args.ignore_index = PyLong_AsLongLong(values[4]), args.scale = 1;
  args.offset.data = address(torch, values[2]), args.offset.rows = 1, args.d_logits = address(torch, out.gradient.it);
  call.margins.weight = address(torch, values[1]), call.margins.gamma = PyFloat_AsDouble(values[3]);
  call.loss = address(torch, out.loss.it), call.saved = address(torch, out.saved.it);
  if (PyErr_Occurred()) return {};
  ask_for_large_pages(args.d_logits, size_t(call.size()) * (call.type == kDouble ? 8 : call.type == kFloat ? 4 : 2));
  if (!run(call)) return {};
  if (kind != view.dtype) out.loss = PyObject_CallMethodObjArgs(out.loss.it, torch.to, view.dtype, nullptr);
  return out;
}

}  // namespace

// Where no gradient is wanted, a loss needs no graph. rest: target, weight, offset, gamma, ignore_index, reduction
PyObject* lt::plain_value(PyObject* logits, PyObject* const* rest) {
  return evaluate(*known(), logits, View(*known(), logits), rest, false, false).loss.release();
}
// values: input, linear_weight, linear_bias, then as above
PyObject* lt::linear_value(PyObject* const* values) {
  SmallLinear small(*known(), values, nullptr);
  if (small.taken) return small.loss.release();
  Ref logits(linear_of(*known(), values[0], values[1], values[2]));
  return logits ? plain_value(logits.it, values + 3) : nullptr;
}

// The forward of lt_kernels.ops.plain.PlainLoss: (context, logits, target, weight, offset, gamma, ignore_index, reduction)
PyObject* plain_forward(PyObject*, PyObject* const* in, Py_ssize_t count) {
  const Known* torch = ready("plain_forward", count, 8);
  const int wanted = torch ? needed(*torch, in[0], 1) : -1;
  if (wanted < 0) return nullptr;
  Evaluated made = evaluate(*torch, in[1], View(*torch, in[1]), in + 2, wanted, false);
  if (!made || !wanted) return made.loss.release();
  Ref tensors(PyTuple_Pack(5, in[1], in[2], in[3], in[4], made.saved ? made.saved.it : Py_None));
  return keep(*torch, in[0], tensors.it, made.gradient.it, in + 5) ? made.loss.release() : nullptr;
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
  if (wanted < 0) return nullptr;
  SmallLinear small(*torch, in + 1, wanted ? Ref(PyObject_GetAttr(in[0], torch->needs)).it : nullptr);
  Ref loss(std::move(small.loss)), gradient(std::move(small.gradients));
  if (!small.taken) {
    Ref logits(linear_of(*torch, in[1], in[2], in[3]));
    if (!logits) return nullptr;
    Evaluated made = evaluate(*torch, logits.it, View(*torch, logits.it), in + 4, wanted, true);
    loss = std::move(made.loss), gradient = std::move(made.gradient);
  }
  if (!loss || !wanted) return loss.release();
  Ref tensors(PyTuple_Pack(6, in[1], in[2], in[3], in[4], in[5], in[6]));
  return keep(*torch, in[0], tensors.it, gradient.it, in + 7) ? loss.release() : nullptr;
}

// Its backward: a product for the features and one for the class weights, a sum for the bias; of what is small nothing.
PyObject* linear_backward(PyObject*, PyObject* const* in, Py_ssize_t count) {
  const Known* torch = ready("linear_backward", count, 2);
  bool one = false, stays = true;
  Ref slope = torch ? handed_out(*torch, in[0], in[1], &one, &stays) : Ref();
  if (!slope) return torch ? otherwise(in[0], in[1]) : nullptr;
  if (PyTuple_Check(slope.it)) return small_backward(*torch, in[0], in[1], slope.it, one, stays);
  Ref tensors(PyObject_GetAttrString(in[0], "saved_tensors"));
  Ref needs(tensors ? PyObject_GetAttr(in[0], torch->needs) : nullptr);  // not with an error in the air
  if (!tensors || !needs || (!stays && PyObject_SetAttr(in[0], torch->gradient, Py_None))) return nullptr;
  if (!one) slope = PyNumber_Multiply(slope.it, in[1]);
  Ref found[3];
  for (int k = 0; k < 3 && slope; ++k) {
    if (PyTuple_GetItem(needs.it, k) != Py_True) continue;
    Ref turned(k == 1 ? PyObject_CallMethod(slope.it, "t", nullptr) : nullptr);
    if (k == 0) found[k] = product_of(*torch, slope.it, PyTuple_GetItem(tensors.it, 1));
    if (turned) found[k] = product_of(*torch, turned.it, PyTuple_GetItem(tensors.it, 0));
    if (k == 2) found[k] = PyObject_CallMethod(slope.it, "sum", "i", 0);
    if (!found[k]) return nullptr;
  }
  auto of = [&](int k) { return found[k] ? found[k].it : Py_None; };
  PyObject* no = Py_None;
  return slope ? PyTuple_Pack(9, of(0), of(1), of(2), no, no, no, no, no, no) : nullptr;
}
