#include "plain.h"

#include <exception>
#include <optional>

#include "losses.h"

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

// (type, logits, n, c, stride, target, offset, weight, gamma, ignore_index, reduction, loss, saved or 0,
// gradient or 0) -> bool
PyObject* plain_loss(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (count != 14) return PyErr_Format(PyExc_TypeError, "plain_loss takes 14 arguments, got %zd", count);
  auto number = [&](int i) { return int64_t(PyLong_AsLongLong(values[i])); };
  auto address = [&](int i) { return reinterpret_cast<void*>(number(i)); };
  lt::Call call;
  call.type = lt::Type(number(0)), call.reduction = number(10), call.loss = address(11), call.saved = address(12);
  lt::Rows& args = call.args;
  args.logits = address(1), args.n = number(2), args.c = number(3), args.stride = number(4);
  args.target = static_cast<const int64_t*>(address(5)), args.slots = 1, args.start = 0, args.ignore_index = number(9);
  args.scale = 1, args.offset.data = address(6), args.offset.rows = 1, args.d_logits = address(13);
  call.margins.weight = address(7), call.margins.gamma = PyFloat_AsDouble(values[8]);
  if (PyErr_Occurred()) return nullptr;
  bool done = false;
  try {
    std::optional<lt::Unlocked> unlocked;
    if (args.n * args.c > lt::kShort) unlocked.emplace();
    done = call.run();
  } catch (const std::exception& error) {
    return PyErr_Format(PyExc_RuntimeError, "lt_kernels: %s", error.what());
  }
  return PyBool_FromLong(done);
}
