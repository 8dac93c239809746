// From features and class weights to the loss and every gradient in one call, where that is so little work that the
// steps between the products are most of it: docs/kernels.md, "The short ways".
#include "linear.h"

#include <memory>
#include <new>

#include "node.h"

using namespace lt;

namespace {

constexpr int kWork[] = {18, 20, 22};  // by instruction set: log2 of the multiplications of one product that are few
constexpr int64_t kWeights = 1 << 13;  // class weights a row of features; more are not worth their turning
constexpr int64_t kFewest = 8;         // classes and features; fewer leave most of a vector empty
constexpr int64_t kGrain = 1 << 17;    // multiplications that are worth a thread
constexpr int64_t kMove = 8;           // as many as it takes to move a number
constexpr int64_t kRows = 16, kAtOnce = 3 * kRows, kClasses = 6;  // whole vectors of rows, whole tiles

// Memory that starts with a line of the cache, and with nothing in it.
template <class A> struct Memory {
  struct Free {
    void operator()(void* data) const { ::operator delete(data, std::align_val_t(64)); }
  };
  std::unique_ptr<void, Free> data;
  explicit Memory(int64_t size) : data(::operator new(size * sizeof(A), std::align_val_t(64))) {}
  operator A*() const { return static_cast<A*>(data.get()); }
};

struct Small {
  Rows args{};
  Margins margins{1.0, kPlain};
  Type type;
  int64_t reduction, d;
  const void *input, *weights, *bias;
  void *loss, *d_input = nullptr, *d_weights = nullptr, *d_bias = nullptr;

  int64_t size() const { return args.n * args.c * d; }
  bool run() const { return type == kDouble ? run<double>() : run<float>(); }

  // False, and nothing done, where a target is no class or has an offset of -inf.
  template <class A> bool run() const {
    if (first_misfit(args.target, args.n, args.c, args.ignore_index) || absent_target<A>(args) >= 0) return false;
    const int64_t n = args.n, c = args.c;
    const int64_t line = ((c + 15) / 16 | 1) * 16;  // of an odd number of cache lines: those of a column share no place
    const bool wanted = d_input || d_weights || d_bias;
    const Memory<A> turned(d * line), logits(n * c), numbers(kSaved * n);
    const A *x = static_cast<const A*>(input), *w = static_cast<const A*>(weights), one = 1;
    Rows rows = args;
    rows.logits = logits;
    if (wanted) rows.d_logits = logits;  // a row is read before its gradient is written
    const Losses<A> losses(rows, margins, nullptr, reduction, numbers, numbers, nullptr);
    const Plain plain{margins.weight, losses.divisor, numbers, nullptr};
    const Kernels& table = kernels();
    const auto multiply = table.product[type];
    each(c, 4, kMove * d, [&](int64_t from, int64_t to) { table.turn[type](w, d, turned, line, from, to); });
    auto some_rows = [&](int64_t from, int64_t to) {
      A* z = logits + from * c;
      multiply({to - from, d, c, x + from * d, d, 1, turned, line, z, c, bias});
      table.rows_plain[type](rows, plain, from, to);
      if (d_input) multiply({to - from, c, d, z, c, 1, w, d, static_cast<A*>(d_input) + from * d, d});
    };
    auto some_classes = [&](int64_t from, int64_t to) {
      const A* z = logits + from;
      if (d_weights) multiply({to - from, n, d, z, 1, c, x, d, static_cast<A*>(d_weights) + from * d, d});
      if (d_bias) multiply({1, n, to - from, &one, 0, 0, z, c, static_cast<A*>(d_bias) + from, c});
    };
    each(n, kRows, c * d, [&](int64_t from, int64_t to) {
      for (; from < to; from += kAtOnce) some_rows(from, std::min(from + kAtOnce, to));
    });
    if (d_weights || d_bias) each(c, kClasses, n * d, some_classes);
    *static_cast<A*>(loss) = losses.reduced(reduction);
    return true;
  }

  // On all threads, so many at a time, each of so many multiplications.
  template <class Do> static void each(int64_t count, int64_t unit, int64_t work, Do some) {
    const int64_t grain = std::max<int64_t>(1, kGrain / (unit * work));
    torch::stable::parallel_for(0, (count + unit - 1) / unit, grain, [&](int64_t begin, int64_t end) {
      some(begin * unit, std::min(end * unit, count));
    });
  }
};

// Whether a call is so small, and its tensors can be read on the spot.
bool serves(const Known& torch, PyObject* const* values, const View& rows, const View& table) {
  const int64_t n = rows.sizes[0], c = table.sizes[0], d = rows.sizes[1];
  if (rows.dims != 2 || table.dims != 2 || table.sizes[1] != d || rows.dtype != table.dtype) return false;
  if (rows.dtype != torch.float32 && rows.dtype != torch.float64) return false;
  if (!few(n, c, kShort) || c < kFewest || d < kFewest || c > kBlock) return false;
  if (n * c > (int64_t(1) << kWork[instruction_set()]) / d || c * d > n * kWeights) return false;
  if (PyLong_AsLongLong(values[8]) == kNone || PyFloat_AsDouble(values[6]) != 0) return false;
  PyObject* bias = values[2];
  if (bias != Py_None && (!View(torch, bias).vector(c, rows.dtype) || !here(torch, bias))) return false;
  return here(torch, values[0]) && here(torch, values[1]);
}

}  // namespace

lt::SmallLinear::SmallLinear(const Known& torch, PyObject* const* values, PyObject* needs) {
  const View view(torch, values[0]), table(torch, values[1]);
  taken = serves(torch, values, view, table);
  PyErr_Clear();  // what has no strides
  if (!taken) return;
  Ref made[3];
  for (int k = 0; needs && k < 3; ++k)
    if (PyTuple_GetItem(needs, k) == Py_True) made[k] = dense_like(torch, values[k], true);
  Ref value(one_number(torch, values[0], view.dtype));
  Small call;
  Rows& args = call.args;
  call.type = view.dtype == torch.float64 ? kDouble : kFloat, call.reduction = PyLong_AsLongLong(values[8]);
  args.n = view.sizes[0], args.c = args.stride = table.sizes[0], call.d = view.sizes[1];
  args.target = static_cast<const int64_t*>(address(torch, values[3])), args.slots = 1, args.scale = 1;
  args.ignore_index = PyLong_AsLongLong(values[7]);
  args.offset.data = address(torch, values[5]), args.offset.rows = 1, call.margins.weight = address(torch, values[4]);
  call.input = address(torch, values[0]), call.weights = address(torch, values[1]);
  call.bias = address(torch, values[2]);
  call.d_input = address(torch, made[0].it), call.d_weights = address(torch, made[1].it);
  call.d_bias = address(torch, made[2].it), call.loss = address(torch, value.it);
  if (PyErr_Occurred() || !run(call)) return;
  auto of = [&](int k) { return made[k] ? made[k].it : Py_None; };
  gradients = PyTuple_Pack(3, of(0), of(1), of(2));
  if (gradients) loss = std::move(value);
}

PyObject* lt::small_backward(const Known& torch, PyObject* context, PyObject* grad, PyObject* made, bool one,
                             bool stays) {
  Ref tensors(PyObject_GetAttrString(context, "saved_tensors"));  // which says whether they are still what they were
  if (!tensors || (!stays && PyObject_SetAttr(context, torch.gradient, Py_None))) return nullptr;
  Ref found[3];
  for (int k = 0; k < 3; ++k) {
    PyObject* each = PyTuple_GetItem(made, k);
    const bool as_it_is = each == Py_None || (one && !stays);
    if (as_it_is) Py_INCREF(each);
    found[k] = as_it_is ? each : PyNumber_Multiply(each, grad);
    if (!found[k]) return nullptr;
  }
  PyObject* no = Py_None;
  return PyTuple_Pack(9, found[0].it, found[1].it, found[2].it, no, no, no, no, no, no);
}
