// LADE's regulariser and its gradient in one call, from logits, targets and class counts: docs/math.md, section 7.
#include "lade.h"

#include <cmath>

#include "batch.h"
#include "few.h"
#include "node.h"
#include "pages.h"

using namespace lt;

namespace {

// Class counts in any of three dtypes.
struct Counts {
  const void* data = nullptr;
  char kind = 0;  // of float64, float32, int64: the first letter of its C type

  Counts(const Known& torch, PyObject* dtype)
      : kind(dtype == torch.float64 ? 'd' : dtype == torch.float32 ? 'f' : dtype == torch.int64 ? 'l' : 0) {}
  double of(int64_t c) const {
    if (kind == 'l') return double(static_cast<const int64_t*>(data)[c]);
    return kind == 'f' ? double(static_cast<const float*>(data)[c]) : static_cast<const double*>(data)[c];
  }
};

struct Lade {
  ColumnSums args{};
  Type type;
  Counts counts;
  double lam, factor;
  bool by_class, all;  // weights by the logit's class, not the row's; a sum over all classes, not those present
  void* value;

  int64_t size() const { return args.n * args.c; }
  bool run() { return type == kDouble ? run<double>() : run<float>(); }

  // factor * (sum_c counted_c (B_c + lam B_c^2) - sum_i p_y / (N_y + 1e-8) z_iy). False, and nothing done, where
  // a target is no class or the counts are none.
  template <class A> bool run() {
    const int64_t n = args.n, c = args.c;
    std::vector<double> prior(c), members(c);
    if (first_misfit(args.target, n, c, 0) || !share(prior)) return false;
    for (int64_t i = 0; i < n; ++i) members[args.target[i]] += 1;
    const double uniform = std::log(1.0 / double(c) + 1e-9), mean = std::log(double(n));
    std::vector<A> lse(c), slope(c), own(n), offset(by_class ? 0 : n);
    auto log_share = [&](int64_t j) { return uniform - std::log(prior[j] + 1e-9); };
    for (int64_t i = 0; !by_class && i < n; ++i) offset[i] = A(log_share(args.target[i]));
    args.row_offset = by_class ? nullptr : offset.data(), args.lse_out = lse.data();
    sum_columns(args, type);
    double total = 0;
    for (int64_t j = 0; j < c; ++j) {
      const double bound = double(lse[j]) - mean + (by_class ? log_share(j) : 0);
      const double counted = all || members[j] > 0 ? factor * prior[j] : 0;
      total += counted * (bound + lam * bound * bound);
      slope[j] = A(counted * (1 + 2 * lam * bound));
    }
    for (int64_t i = 0; i < n; ++i) {
      const int64_t y = args.target[i];
      const double each = -factor * prior[y] / (members[y] + 1e-8);
      own[i] = A(each), total += each * double(static_cast<const A*>(args.logits)[i * args.stride + y]);
    }
    *static_cast<A*>(value) = A(total);
    args.lse = lse.data(), args.d_lse = slope.data(), args.d_own = own.data();
    if (args.d_logits) slope_columns(args, type);
    return true;
  }

  bool share(std::vector<double>& prior) const {
    double total = 0;
    for (int64_t j = 0; j < args.c; ++j) {
      total += prior[j] = counts.of(j);
      if (!(prior[j] >= 0)) return false;
    }
    if (!(total > 0 && total <= std::numeric_limits<double>::max())) return false;
    for (double& each : prior) each /= total;
    return true;
  }
};

// values: logits, target, class_counts, lam, by class, all classes, factor. Nothing, and an error, if that fails.
struct Evaluated {
  Ref value, gradient;

  Evaluated(const Known& torch, PyObject* const* values, bool wanted) {
    const View view(torch, values[0]);
    Lade call{{}, view.dtype == torch.float64 ? kDouble : kFloat, {torch, View::dtype_of(torch, values[2])}};
    if (view.dims != 2 || !call.counts.kind || (call.type == kFloat && view.dtype != torch.float32)) {
      PyErr_Format(PyExc_TypeError, "logits must be a tensor [N, C] of float32 or float64, with counts");
      return;
    }
    Ref made(one_number(torch, values[0], view.dtype));
    if (made && wanted) gradient = dense_like(torch, values[0], true);
    call.args.n = view.sizes[0], call.args.c = call.args.stride = view.sizes[1];
    call.args.logits = address(torch, values[0]), call.args.d_logits = address(torch, gradient.it);
    call.args.target = static_cast<const int64_t*>(address(torch, values[1]));
    call.counts.data = address(torch, values[2]), call.value = address(torch, made.it);
    call.lam = PyFloat_AsDouble(values[3]), call.factor = PyFloat_AsDouble(values[6]);
    call.by_class = values[4] == Py_True, call.all = values[5] == Py_True;
    ask_for_large_pages(call.args.d_logits, size_t(call.size()) * (call.type == kDouble ? 8 : 4));
    if (!PyErr_Occurred() && run(call)) value = std::move(made);
  }
};

}  // namespace

// The forward of lt_kernels.ops.columns.LadeLoss: (context, logits, target, class_counts, lam, by class, all classes,
// factor)
PyObject* lade_forward(PyObject*, PyObject* const* in, Py_ssize_t count) {
  const Known* torch = ready("lade_forward", count, 8);
  const int wanted = torch ? needed(*torch, in[0], 1) : -1;
  if (wanted < 0) return nullptr;
  Evaluated made(*torch, in + 1, wanted);
  if (!made.value || !wanted) return made.value.release();
  return keep(*torch, in[0], Ref(PyTuple_Pack(1, in[1])).it, made.gradient.it) ? made.value.release() : nullptr;
}

// Its backward: (context, incoming gradient)
PyObject* lade_backward(PyObject*, PyObject* const* in, Py_ssize_t count) {
  const Known* torch = ready("lade_backward", count, 2);
  bool one = false, stays = true;
  Ref made = torch ? handed_out(*torch, in[0], in[1], &one, &stays) : Ref();
  if (!made) return torch ? otherwise(in[0], in[1]) : nullptr;
  if (!stays && PyObject_SetAttr(in[0], torch->gradient, Py_None)) return nullptr;
  if (!one || stays) made = PyNumber_Multiply(made.it, in[1]);
  PyObject* no = Py_None;
  return made ? PyTuple_Pack(7, made.it, no, no, no, no, no, no) : nullptr;
}

// (logits, target, class_counts, lam, importance, classes, factor, the way to the forward): the regulariser, or None
// where a call is unusual or wrong, which others name.
PyObject* few_lade(PyObject*, PyObject* const* values, Py_ssize_t count) {
  const Known* torch = few_allowed();
  if (!torch || count != 8) return nothing();
  const View view(*torch, values[0]), counts(*torch, values[2]);
  const int64_t rows = view.sizes[0], classes = view.sizes[1];
  if (view.dims != 2 || rows <= 0 || classes <= 0) return nothing();
  if ((view.dtype != torch->float32 && view.dtype != torch->float64) || !here(*torch, values[0])) return nothing();
  if (!View(*torch, values[1]).vector(rows, torch->int64) || !here(*torch, values[1])) return nothing();
  if (!counts.vector(classes, counts.dtype) || !here(*torch, values[2])) return nothing();
  const int importance = place_of(values[4], {"sample", "class"}), every = place_of(values[5], {"present", "all"});
  if (importance < 0 || every < 0 || std::isnan(number(values[3], 0))) return nothing();
  if (!off(torch->transformed, nullptr)) return nothing();
  PyObject *by_class = importance ? Py_True : Py_False, *all = every ? Py_True : Py_False;
  PyObject* const in[] = {values[0], values[1], values[2], values[3], by_class, all, values[6]};
  Ref value;
  if (Ref(PyObject_CallNoArgs(torch->grad_mode)).it == Py_False) value = Evaluated(*torch, in, false).value.release();
  else value = PyObject_CallFunctionObjArgs(values[7], in[0], in[1], in[2], in[3], in[4], in[5], in[6], nullptr);
  return value ? value.release() : nothing();
}
