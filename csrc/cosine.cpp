// From features and class weights to the loss of their cosines, with a margin, and back: docs/math.md, section 5. The
// product is that of the raw rows; neither cosines nor normalised copies are made.
#include "cosine.h"

#include <cmath>

#include "few.h"
#include "node.h"
#include "pages.h"

using namespace lt;

namespace {

// The arguments of CosineLoss, behind its context.
enum {
  kInput, kWeights, kTarget, kWeight, kOffset, kClassMargin,
  kScale, kKind, kMargin, kInstance, kGuard, kGamma, kIgnore, kReduction, kArguments
};

// A table of numbers in the dtype of the arithmetic, converted where it has another one.
struct Numbers {
  std::vector<double> wide;
  std::vector<float> narrow;

  const void* of(const Known& torch, PyObject* table, int64_t size, Type type) {
    const bool is_wide = table != Py_None && View::dtype_of(torch, table) == torch.float64;
    const void* data = address(torch, table);
    if (!data || is_wide == (type == kDouble)) return data;
    if (is_wide) narrow.assign(static_cast<const double*>(data), static_cast<const double*>(data) + size);
    else wide.assign(static_cast<const float*>(data), static_cast<const float*>(data) + size);
    return is_wide ? static_cast<const void*>(narrow.data()) : wide.data();
  }
};

void each_row(DirectionsKernel kernel, const Directions& rows, int64_t n) {
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(rows.d, 1));
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { kernel(rows, begin, end); });
}

// Whether a tensor is a matrix of such numbers, row by row.
bool matrix(const Known& torch, const View& view, PyObject* dtype, PyObject* value) {
  return view.dims == 2 && view.dtype == dtype && here(torch, value);
}

// The loss of features [N, d] and class weights [C, d], and its gradient for the product of their rows.
struct Evaluated {
  Ref loss, gradient;

  Evaluated(const Known& torch, PyObject* const* values, bool wanted) {
    const View left(torch, values[kInput]), right(torch, values[kWeights]);
    const bool is_wide = left.dtype == torch.float64;
    if (!matrix(torch, left, is_wide ? torch.float64 : torch.float32, values[kInput]) ||
        !matrix(torch, right, left.dtype, values[kWeights]) || left.sizes[1] != right.sizes[1]) {
      PyErr_Format(PyExc_TypeError, "input and linear_weight must be dense [N, d] and [C, d] of float32 or float64");
      return;
    }
    Call call;
    call.type = is_wide ? kDouble : kFloat, call.reduction = PyLong_AsLongLong(values[kReduction]);
    Rows& args = call.args;
    args.n = left.sizes[0], args.c = args.stride = right.sizes[0], args.slots = 1;
    const int64_t bytes = is_wide ? 8 : 4;
    std::vector<char> scales((args.n + args.c) * bytes);
    args.row_scale = scales.data(), args.column_scale = scales.data() + args.n * bytes;
    norms(torch, values[kInput], args.n, left.sizes[1], call.type, scales.data());
    norms(torch, values[kWeights], args.c, left.sizes[1], call.type, scales.data() + args.n * bytes);
    if (PyErr_Occurred() || !within(scales.data(), args.n + args.c, is_wide)) return;
    Ref product(linear_of(torch, values[kInput], values[kWeights], Py_None));
    if (!product) return;
    Ref made(loss_of(torch, product.it, left.dtype, call.reduction, args.n));
    if (made && wanted) gradient = dense_like(torch, product.it, true);
    Numbers tables[3];
    args.logits = address(torch, product.it), args.d_logits = address(torch, gradient.it);
    args.target = static_cast<const int64_t*>(address(torch, values[kTarget]));
    args.offset.data = tables[0].of(torch, values[kOffset], args.c, call.type), args.offset.rows = 1;
    call.margins.weight = tables[1].of(torch, values[kWeight], args.c, call.type);
    call.margins.class_margin = tables[2].of(torch, values[kClassMargin], args.c, call.type);
    settings(call, values);
    call.loss = address(torch, made.it);
    ask_for_large_pages(args.d_logits, size_t(call.size() * bytes));
    if (!PyErr_Occurred() && ::run(call)) loss = std::move(made);
  }

  // Whether products of the rows are finite; an error, for other ways to serve, where a row is too long.
  static bool within(const void* inverse, int64_t count, bool is_wide) {
    for (int64_t i = 0; i < count; ++i) {
      const double one = is_wide ? static_cast<const double*>(inverse)[i] : static_cast<const float*>(inverse)[i];
      if (one == 0 || one > 0x1p-50) continue;
      PyErr_SetString(PyExc_ValueError, "input");
      return false;
    }
    return true;
  }
  static void norms(const Known& torch, PyObject* rows, int64_t n, int64_t d, Type type, void* inverse) {
    if (const void* data = address(torch, rows)) each_row(kernels().row_norms[type], {data, d, inverse}, n);
  }
  static void settings(Call& call, PyObject* const* values) {
    Margins& m = call.margins;
    m.scale = call.args.scale = PyFloat_AsDouble(values[kScale]), m.kind = int(PyLong_AsLongLong(values[kKind]));
    m.margin = PyFloat_AsDouble(values[kMargin]), m.instance = PyFloat_AsDouble(values[kInstance]);
    m.guard = values[kGuard] == Py_True, m.gamma = PyFloat_AsDouble(values[kGamma]);
    call.args.ignore_index = PyLong_AsLongLong(values[kIgnore]);
  }
};

// The product of two matrices without its part along `rows`, row by row.
Ref tangents(const Known& torch, PyObject* left, PyObject* right, PyObject* rows) {
  Ref product(left ? product_of(torch, left, right) : nullptr);
  if (!product) return {};
  const View view(torch, product.it), line(torch, rows);
  const bool fits = view.sizes[0] == line.sizes[0] && view.sizes[1] == line.sizes[1];
  if (!fits || !matrix(torch, view, line.dtype, product.it)) {
    PyErr_Format(PyExc_RuntimeError, "lt_kernels: features or class weights changed their shape before the backward");
    return {};
  }
  Directions in{address(torch, rows), view.sizes[1], nullptr, address(torch, product.it)};
  if (PyErr_Occurred()) return {};
  each_row(kernels().row_tangents[view.dtype == torch.float64 ? kDouble : kFloat], in, view.sizes[0]);
  return product;
}

}  // namespace

// The forward of lt_kernels.ops.cosine.CosineLoss: (context, input, linear_weight, target, weight, offset, margins [C],
// scale, kind, margin, instance, guard, gamma, ignore_index, reduction)
PyObject* cosine_forward(PyObject*, PyObject* const* in, Py_ssize_t count) {
  const Known* torch = ready("cosine_forward", count, 1 + kArguments);
  const int wanted = torch ? needed(*torch, in[0], 2) : -1;
  if (wanted < 0) return nullptr;
  Evaluated made(*torch, in + 1, wanted);
  if (!made.loss || !wanted) return made.loss.release();
  const Ref tensors(PyTuple_Pack(3, in[1], in[2], in[3]));
  return keep(*torch, in[0], tensors.it, made.gradient.it, in + 1 + kGamma) ? made.loss.release() : nullptr;
}

// Its backward: (context, incoming gradient). A product for the features and one for the class weights.
PyObject* cosine_backward(PyObject*, PyObject* const* in, Py_ssize_t count) {
  const Known* torch = ready("cosine_backward", count, 2);
  bool one = false, stays = true;
  Ref slope = torch ? handed_out(*torch, in[0], in[1], &one, &stays) : Ref();
  if (!slope) return torch ? otherwise(in[0], in[1]) : nullptr;
  Ref tensors(PyObject_GetAttrString(in[0], "saved_tensors"));
  Ref needs(tensors ? PyObject_GetAttr(in[0], torch->needs) : nullptr);  // not with an error in the air
  if (!needs) return nullptr;
  PyObject *input = PyTuple_GetItem(tensors.it, 0), *weights = PyTuple_GetItem(tensors.it, 1);
  // What was saved may come back as something else: hooks may say so; and autocast multiplies in another dtype.
  const View made(*torch, slope.it);
  if (!matrix(*torch, View(*torch, input), made.dtype, input) ||
      !matrix(*torch, View(*torch, weights), made.dtype, weights) || !off(torch->autocast, torch->cpu))
    return otherwise(in[0], in[1]);
  if (!stays && PyObject_SetAttr(in[0], torch->gradient, Py_None)) return nullptr;
  if (!one) slope = PyNumber_Multiply(slope.it, in[1]);
  Ref d_input, d_weights;
  if (slope && PyTuple_GetItem(needs.it, 0) == Py_True) d_input = tangents(*torch, slope.it, weights, input);
  if (slope && !PyErr_Occurred() && PyTuple_GetItem(needs.it, 1) == Py_True)
    d_weights = tangents(*torch, Ref(PyObject_CallMethod(slope.it, "t", nullptr)).it, input, weights);
  if (!slope || PyErr_Occurred()) return nullptr;
  PyObject *no = Py_None, *first = d_input ? d_input.it : no, *second = d_weights ? d_weights.it : no;
  return PyTuple_Pack(kArguments, first, second, no, no, no, no, no, no, no, no, no, no, no, no);
}

// (as the forward from input to reduction, label_smoothing, average, bytes of the memory budget, the way to the forward):
// the loss, or None where a call is unusual or wrong, which others name.
PyObject* few_cosine_cross_entropy(PyObject*, PyObject* const* values, Py_ssize_t count) {
  const Known* torch = few_allowed();
  if (!torch || count != 18) return nothing();
  const View left(*torch, values[kInput]), right(*torch, values[kWeights]);
  const int64_t rows = left.sizes[0], classes = right.sizes[0];
  const bool is_wide = left.dtype == torch->float64;
  if (!few(rows, classes, at_most(values[16]) / (is_wide ? 16 : 8))) return nothing();  // with their gradient
  if (!matrix(*torch, left, is_wide ? torch->float64 : torch->float32, values[kInput])) return nothing();
  if (!matrix(*torch, right, left.dtype, values[kWeights]) || left.sizes[1] != right.sizes[1]) return nothing();
  if (!View(*torch, values[kTarget]).vector(rows, torch->int64) || !here(*torch, values[kTarget])) return nothing();
  for (PyObject* table : {values[kWeight], values[kOffset], values[kClassMargin]}) {
    if (table == Py_None) continue;
    const View view(*torch, table);
    if (view.dtype != torch->float32 && view.dtype != torch->float64) return nothing();
    if (!view.vector(classes, view.dtype) || learned(*torch, table) || !here(*torch, table)) return nothing();
  }
  if (!(number(values[kScale], 0) > 0) || std::isnan(number(values[kGamma], 0))) return nothing();
  if (number(values[14], 0) != 0 || !PyLong_CheckExact(values[kIgnore]) || !fits(values[kIgnore]))
    return nothing();
  const int reduction = place_of(values[kReduction], {"none", "mean", "sum"});
  const int batch = place_of(values[15], {"weighted", "batch"});
  if (reduction < 0 || batch < 0) return nothing();
  if (!off(torch->transformed, nullptr) || !off(torch->autocast, torch->cpu)) return nothing();
  PyObject* in[kArguments];
  std::copy(values, values + kArguments, in);
  in[kReduction] = torch->reduction[batch && reduction == kWeightedMean ? kMean : reduction];
  Ref loss;
  if (Ref(PyObject_CallNoArgs(torch->grad_mode)).it == Py_False) loss = Evaluated(*torch, in, false).loss.release();
  else loss = PyObject_CallFunctionObjArgs(values[17], in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], in[8],
                                           in[9], in[10], in[11], in[12], in[13], nullptr);
  return loss ? loss.release() : nothing();
}
