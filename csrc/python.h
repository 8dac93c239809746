// What the extension's Python functions see of Python and of torch.
#pragma once

#include <Python.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <utility>

namespace lt {

// An owned reference, or none.
struct Ref {
  PyObject* it;
  Ref(PyObject* it = nullptr) : it(it) {}
  Ref(Ref&& other) : it(other.it) { other.it = nullptr; }
  Ref& operator=(Ref&& other) {
    std::swap(it, other.it);
    return *this;
  }
  ~Ref() { Py_XDECREF(it); }
  PyObject* release() {
    PyObject* given = it;
    it = nullptr;
    return given;
  }
  explicit operator bool() const { return it; }
};

// None, where arguments do not fit; but an interrupt, or what a hook of somebody else's raises, goes on.
inline PyObject* nothing() {
  if (PyErr_Occurred()) {
    bool ours = false;
    for (PyObject* kind : {PyExc_RuntimeError, PyExc_ValueError, PyExc_TypeError, PyExc_LookupError, PyExc_ArithmeticError,
                           PyExc_AttributeError})
      ours = ours || PyErr_ExceptionMatches(kind);
    if (!ours) return nullptr;
  }
  PyErr_Clear();
  Py_RETURN_NONE;
}

// What is looked up once: torch's functions and types, the names of attributes, and constants.
struct Known {
  PyObject *tensor, *parameter, *float32, *float64, *bfloat16, *int64, *add, *loss, *linear;
  PyObject *empty_like, *autocast, *transformed, *dtype, *is_cpu, *shape, *data_ptr, *is_contiguous, *is_neg, *requires_grad, *cpu;
  PyObject *contiguous, *grad_mode, *graph_stays, *item, *new_empty, *to, *needs, *save, *gradient, *settings;
  PyObject *modes, *tracing, *mm, *large_product, *large_linear, *reduction[4], *never;
  bool whole = false;

  Known() {
    Ref torch(PyImport_ImportModule("torch")), functions(PyImport_ImportModule("torch._C._nn"));
    Ref parameters(PyImport_ImportModule("torch.nn.parameter")), transforms(PyImport_ImportModule("torch._C._functorch"));
    Ref autograd(PyImport_ImportModule("torch._C._autograd")), products(PyImport_ImportModule("lt_kernels.ops.products"));
    Ref inner(PyImport_ImportModule("torch._C"));
    if (!torch || !inner || !functions || !parameters || !transforms || !autograd || !products) return;
    auto of = [](const Ref& owner, const char* name) { return PyObject_GetAttrString(owner.it, name); };
    tensor = of(torch, "Tensor"), parameter = of(parameters, "Parameter"), autocast = of(torch, "is_autocast_enabled");
    float32 = of(torch, "float32"), float64 = of(torch, "float64"), bfloat16 = of(torch, "bfloat16");
    int64 = of(torch, "int64"), add = of(torch, "add");
    mm = of(torch, "mm"), large_product = of(products, "product"), large_linear = of(products, "linear");
    contiguous = of(torch, "contiguous_format"), empty_like = of(torch, "empty_like");
    transformed = of(transforms, "peek_interpreter_stack"), modes = of(inner, "_len_torch_dispatch_stack");
    tracing = of(inner, "_is_tracing");
    grad_mode = of(torch, "is_grad_enabled"), graph_stays = of(autograd, "_get_current_graph_task_keep_graph");
    loss = of(functions, "cross_entropy_loss"), linear = of(functions, "linear");
    auto text = [](const char* word) { return PyUnicode_InternFromString(word); };
    cpu = text("cpu"), dtype = text("dtype"), is_cpu = text("is_cpu"), shape = text("shape"), data_ptr = text("data_ptr");
    is_contiguous = text("is_contiguous"), is_neg = text("is_neg"), requires_grad = text("requires_grad"), item = text("item");
    new_empty = text("new_empty"), to = text("to"), needs = text("needs_input_grad"), save = text("save_for_backward");
    gradient = text("gradient"), settings = text("settings");
    for (int code = 0; code < 4; ++code) reduction[code] = PyLong_FromLong(code);
    never = PyLong_FromLongLong(-(1ll << 62));  // no class, and nobody's ignore_index
    whole = !PyErr_Occurred();
  }
};

// Guarded by the interpreter's lock alone: an import may let go of it, and a static's own guard would then lock up.
inline const Known* known() {
  static const Known* kept = nullptr;
  if (!kept) kept = new Known;
  return kept->whole ? kept : nullptr;
}

// Of a tensor that is no subclass and whose memory holds its numbers, not their negatives (as of an imaginary part of a
// conjugate): the dtype, and up to two sizes; of anything else neither.
struct View {
  PyObject* dtype = nullptr;  // borrowed: dtypes live as long as torch
  Py_ssize_t dims = -1;
  int64_t sizes[2] = {0, 0};

  View() = default;
  View(const Known& torch, PyObject* value) {
    dtype = dtype_of(torch, value);
    Ref shape(dtype ? PyObject_GetAttr(value, torch.shape) : nullptr);
    if (!shape) return;
    dims = PyTuple_Size(shape.it);
    for (Py_ssize_t d = 0; d < dims && d < 2; ++d) sizes[d] = PyLong_AsLongLong(PyTuple_GetItem(shape.it, d));
  }
  static PyObject* dtype_of(const Known& torch, PyObject* value) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(value));
    if (type != torch.tensor && type != torch.parameter) return nullptr;
    if (Ref(PyObject_CallMethodObjArgs(value, torch.is_neg, nullptr)).it != Py_False) return nullptr;
    Ref place(PyObject_CallMethodObjArgs(value, torch.data_ptr, nullptr));
    if (!place) PyErr_Clear();  // what has no memory of its own
    if (!place || !PyLong_AsVoidPtr(place.it)) return nullptr;  // or none any more: a storage that was released
    return Ref(PyObject_GetAttr(value, torch.dtype)).it;
  }
  bool vector(int64_t size, PyObject* of) const { return dims == 1 && sizes[0] == size && dtype == of; }
};

// Whether the kernels can read a tensor on the spot.
inline bool here(const Known& torch, PyObject* value) {
  if (Ref(PyObject_GetAttr(value, torch.is_cpu)).it != Py_True) return false;
  return Ref(PyObject_CallMethodObjArgs(value, torch.is_contiguous, nullptr)).it == Py_True;
}
inline bool off(PyObject* function, PyObject* argument) {
  PyObject* answer = Ref(PyObject_CallFunctionObjArgs(function, argument, nullptr)).it;
  return answer == Py_False || answer == Py_None;
}
inline bool learned(const Known& torch, PyObject* table) {
  return table != Py_None && Ref(PyObject_GetAttr(table, torch.requires_grad)).it != Py_False;
}
inline bool few(int64_t rows, int64_t classes, int64_t most) {
  return rows > 0 && classes > 0 && rows <= most / classes;
}

// Whether an integer is one of C's; asking for its value would be an error else.
inline bool fits(PyObject* integer) {
  int beyond = 0;
  PyLong_AsLongLongAndOverflow(integer, &beyond);
  return !beyond;
}
// An integer of Python's, or the largest one of C's.
inline int64_t at_most(PyObject* integer) {
  return fits(integer) ? PyLong_AsLongLong(integer) : std::numeric_limits<int64_t>::max();
}

// The place of a word among others, or -1.
inline int place_of(PyObject* word, std::initializer_list<const char*> words) {
  for (int place = 0; PyUnicode_Check(word) && place < int(words.size()); ++place)
    if (PyUnicode_CompareWithASCIIString(word, words.begin()[place]) == 0) return place;
  return -1;
}
// A finite number of at least `least`, or NaN.
inline double number(PyObject* value, double least) {
  if (!PyFloat_Check(value) && !PyLong_CheckExact(value)) return NAN;
  const double found = PyFloat_AsDouble(value);
  PyErr_Clear();  // an integer beyond all floats
  return found >= least && found <= std::numeric_limits<double>::max() ? found : NAN;
}

// Products without a graph. Which library is faster, and where the result lies, is worth a look in Python
// (lt_kernels/ops/products.py) where the left side has so many numbers.
constexpr int64_t kLook = 1 << 14;

inline bool looks(const Known& torch, PyObject* left) {
  const View view(torch, left);
  return view.sizes[0] * view.sizes[1] >= kLook;
}
inline PyObject* linear_of(const Known& torch, PyObject* input, PyObject* weights, PyObject* bias) {
  PyObject* function = looks(torch, input) ? torch.large_linear : torch.linear;
  return PyObject_CallFunctionObjArgs(function, input, weights, bias, nullptr);
}
inline PyObject* product_of(const Known& torch, PyObject* left, PyObject* right) {
  return PyObject_CallFunctionObjArgs(looks(torch, left) ? torch.large_product : torch.mm, left, right, nullptr);
}

}  // namespace lt
