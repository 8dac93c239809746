// Three numbers a row to the loss: the operator of lt_kernels/ops/margins.py on a CPU.

#include <tuple>

#include "margins.h"
#include "tensors.h"

namespace lt {
namespace {

struct Columns {
  const void *rest, *top, *own, *rival, *own_offset, *norm, *mean, *total, *share;
  const int64_t* target;
  int64_t n, ignore_index;
};

template <class A> A pick(const void* numbers, int64_t i, A otherwise) {
  return numbers ? static_cast<const A*>(numbers)[i] : otherwise;
}

template <class A> void all_rows(const Columns& in, const Margins& margins, A* loss, A* slopes) {
  bool smoothed = in.mean && in.total && in.share;
  for (int64_t i = 0; i < in.n; ++i) {
    Numbers<A> row{pick<A>(in.rest, i, 0), pick<A>(in.top, i, 0), pick<A>(in.own, i, 0), pick<A>(in.rival, i, 0),
                   pick<A>(in.own_offset, i, 0), pick<A>(in.norm, i, 1), pick<A>(in.mean, i, 0), pick<A>(in.total, i, 0), pick<A>(in.share, i, 0)};
    bool valid = in.target[i] != in.ignore_index;
    if (valid) check_present(row.offset, in.target[i]);
    Result<A> out = margins.row<A>(row, in.target[i], valid, smoothed);
    loss[i] = out.loss, slopes[i] = out.d_rest, slopes[in.n + i] = out.d_own, slopes[2 * in.n + i] = out.d_offset;
    slopes[3 * in.n + i] = in.norm ? out.d_norm : A(0), slopes[4 * in.n + i] = out.d_mean;
  }
}

std::tuple<Tensor, Tensor> margins(
    Tensor rest, Tensor top, Tensor own, Tensor rival, Tensor target, Optional own_offset, Optional norm, Optional mean,
    Optional total, Optional share, Optional weight, Optional class_margin, Optional class_smoothing, double scale,
    int64_t kind, double margin, double instance, bool guard, double gamma, double smoothing, int64_t ignore_index) {
  Held held;
  ScalarType type = rest.scalar_type();
  auto numbers = [&](const Optional& tensor, const char* name) { return held.numbers(tensor, type, name); };
  Columns in{numbers(rest, "rest"), numbers(top, "top"), numbers(own, "own"), numbers(rival, "rival"), numbers(own_offset, "offset"),
             numbers(norm, "norm"), numbers(mean, "mean"), numbers(total, "total"), numbers(share, "share"),
             held.indices(target, "target"), rest.size(0), ignore_index};
  Margins settings{scale, int(kind), margin, instance, guard, gamma, smoothing};
  settings.weight = numbers(weight, "weight");
  settings.class_margin = numbers(class_margin, "margin");
  settings.class_smoothing = numbers(class_smoothing, "label_smoothing");
  Tensor loss = empty({in.n}, type), slopes = empty({5, in.n}, type);
  if (type == ScalarType::Double)
    all_rows(in, settings, static_cast<double*>(loss.mutable_data_ptr()), static_cast<double*>(slopes.mutable_data_ptr()));
  else
    all_rows(in, settings, static_cast<float*>(loss.mutable_data_ptr()), static_cast<float*>(slopes.mutable_data_ptr()));
  return {loss, slopes};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lt_kernels, CPU, library) { library.impl("margins", TORCH_BOX(&margins)); }

}  // namespace lt
