// Plain cross-entropy of few logits by torch's own functions, reached with fewer steps than Python takes. Whatever is
// unusual or wrong is None: others name it.
#include "few.h"

#include <cmath>
#include <cstdint>

namespace {

// An owned reference, or none.
struct Ref {
  PyObject* it;
  Ref(PyObject* it = nullptr) : it(it) {}
  Ref(Ref&& other) : it(other.it) { other.it = nullptr; }
  ~Ref() { Py_XDECREF(it); }
  PyObject* release() {
    PyObject* given = it;
    it = nullptr;
    return given;
  }
  explicit operator bool() const { return it; }
};

// None, whatever went wrong; but an interrupt goes on.
PyObject* nothing() {
  if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception)) return nullptr;
  PyErr_Clear();
  Py_RETURN_NONE;
}

// What is looked up once: torch's functions and types, the names of attributes, and constants.
struct Known {
  PyObject *tensor, *parameter, *float32, *float64, *int64, *add, *loss, *softmax, *smooth, *linear, *autocast, *cpu;
  PyObject *dtype, *is_cpu, *shape, *data_ptr, *one, *reduction[3], *never;
  bool whole = false;

  Known() {
    Ref torch(PyImport_ImportModule("torch")), functions(PyImport_ImportModule("torch._C._nn"));
    Ref parameters(PyImport_ImportModule("torch.nn.parameter"));
    if (!torch || !functions || !parameters) return;
    auto of = [](const Ref& owner, const char* name) { return PyObject_GetAttrString(owner.it, name); };
    tensor = of(torch, "Tensor"), parameter = of(parameters, "Parameter"), autocast = of(torch, "is_autocast_enabled");
    float32 = of(torch, "float32"), float64 = of(torch, "float64"), int64 = of(torch, "int64");
    add = of(torch, "add"), softmax = of(torch, "log_softmax");
    loss = of(functions, "nll_loss"), linear = of(functions, "linear");
    smooth = of(functions, "cross_entropy_loss");
    auto text = [](const char* word) { return PyUnicode_InternFromString(word); };
    cpu = text("cpu"), dtype = text("dtype"), is_cpu = text("is_cpu"), shape = text("shape"), data_ptr = text("data_ptr");
    one = PyLong_FromLong(1);
    for (int code = 0; code < 3; ++code) reduction[code] = PyLong_FromLong(code);
    never = PyLong_FromLongLong(-(1ll << 62));  // no class, and nobody's ignore_index
    whole = !PyErr_Occurred();
  }
};

// Guarded by the interpreter's lock alone: an import may let go of it, and a static's own guard would then lock up.
const Known* known() {
  static const Known* kept = nullptr;
  if (!kept) kept = new Known;
  return kept->whole ? kept : nullptr;
}

// Of a tensor that is no subclass: the dtype, and up to two sizes; of anything else neither.
struct View {
  PyObject* dtype = nullptr;  // borrowed: dtypes live as long as torch
  Py_ssize_t dims = -1;
  int64_t sizes[2] = {0, 0};

  View(const Known& torch, PyObject* value) {
    dtype = dtype_of(torch, value);
    Ref shape(dtype ? PyObject_GetAttr(value, torch.shape) : nullptr);
    if (!shape) return;
    dims = PyTuple_Size(shape.it);
    for (Py_ssize_t d = 0; d < dims && d < 2; ++d) sizes[d] = PyLong_AsLongLong(PyTuple_GetItem(shape.it, d));
  }
  static PyObject* dtype_of(const Known& torch, PyObject* value) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(value));
    return type == torch.tensor || type == torch.parameter ? Ref(PyObject_GetAttr(value, torch.dtype)).it : nullptr;
  }
  bool vector(int64_t size, PyObject* of) const { return dims == 1 && sizes[0] == size && dtype == of; }
};

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

// (logits, target, weight, offset, focal_gamma, label_smoothing, ignore_index, reduction, most logits)
PyObject* few_cross_entropy(PyObject*, PyObject* const* values, Py_ssize_t count) {
  const Known* torch = allowed ? known() : nullptr;
  if (!torch || count != 9) return nothing();
  const View rows(*torch, values[0]);
  if (!few(rows.sizes[0], rows.sizes[1], PyLong_AsLongLong(values[8])) || !plain(*torch, rows, values[0])) return nothing();
  const Settings settings(values + 1);
  if (!settings.fit(*torch, rows.sizes[1], rows.dtype)) return nothing();
  return settings.evaluate(*torch, values[0], rows.sizes[0], rows.dtype == torch->float64);
}

// (input, linear_weight, linear_bias, target, weight, offset, focal_gamma, label_smoothing, ignore_index, reduction, most,
// bytes of the memory budget)
PyObject* few_linear_cross_entropy(PyObject*, PyObject* const* values, Py_ssize_t count) {
  const Known* torch = allowed ? known() : nullptr;
  if (!torch || count != 12) return nothing();
  const View rows(*torch, values[0]), table(*torch, values[1]);
  const int64_t classes = table.sizes[0];
  const int64_t most = PyLong_AsLongLong(values[10]), room = PyLong_AsLongLong(values[11]) / 16;  // with their gradient
  if (table.dims != 2 || table.dtype != rows.dtype || !few(rows.sizes[0], classes, most < room ? most : room)) return nothing();
  if (!plain(*torch, rows, values[0])) return nothing();
  if (values[2] != Py_None && !View(*torch, values[2]).vector(classes, rows.dtype)) return nothing();
  const Settings settings(values + 3);
  if (!settings.fit(*torch, classes, rows.dtype)) return nothing();
  Ref cast(PyObject_CallFunctionObjArgs(torch->autocast, torch->cpu, nullptr));
  if (cast.it != Py_False) return nothing();
  Ref logits(PyObject_CallFunctionObjArgs(torch->linear, values[0], values[1], values[2], nullptr));
  return logits ? settings.evaluate(*torch, logits.it, rows.sizes[0], rows.dtype == torch->float64) : nothing();
}
