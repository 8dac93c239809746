// From the statistics of rows to losses and slopes: the CPU kernel of the operator of lt_kernels/ops/margins.py.

#include <tuple>

#include "margins.h"
#include "tensors.h"

namespace lt {
namespace {

struct Columns {
  const void *rest, *top, *own, *rival, *own_offset, *norm, *mean, *total, *share, *sample_weight;
  const int64_t* target;
  int64_t n, ignore_index, classes;  // classes: of the per-class tables, or -1 if there is none
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
    STD_TORCH_CHECK(!valid || in.classes < 0 || (in.target[i] >= 0 && in.target[i] < in.classes), "target holds ",
                    in.target[i], "; allowed are 0 to ", in.classes - 1);
    if (valid) check_present(row.offset, in.target[i]);
    Result<A> out = margins.row<A>(row, in.target[i], valid, smoothed, pick<A>(in.sample_weight, i, 1));
    loss[i] = out.loss, slopes[i] = out.d_rest, slopes[in.n + i] = out.d_own, slopes[2 * in.n + i] = out.d_offset;
    slopes[3 * in.n + i] = in.norm ? out.d_norm : A(0), slopes[4 * in.n + i] = out.d_mean;
  }
}

std::tuple<Tensor, Tensor> margins(
    Tensor rest, Tensor top, Tensor own, Tensor rival, Tensor target, Optional own_offset, Optional norm, Optional mean,
    Optional total, Optional share, Optional weight, Optional sample_weight, Optional class_margin,
    Optional class_smoothing, double scale, int64_t kind, double margin, double instance, bool guard, double gamma,
    double smoothing, double z_loss, int64_t ignore_index) {
  TensorHolder held;
  const ScalarType type = rest.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  expect(rest, "rest", type, {kAny});
  const int64_t n = rest.size(0);
  auto numbers = [&](const Optional& tensor, const char* name) { return held.numbers(tensor, type, name, {n}); };
  const Optional& table = weight ? weight : class_margin ? class_margin : class_smoothing;
  const int64_t classes = table ? table->numel() : -1;
  auto by_class = [&](const Optional& tensor, const char* name) { return held.numbers(tensor, type, name, {classes}); };
  Columns in{numbers(rest, "rest"), numbers(top, "top"), numbers(own, "own"), numbers(rival, "rival"),
             numbers(own_offset, "own_offset"),
             numbers(norm, "norm"), numbers(mean, "mean"), numbers(total, "total"), numbers(share, "share"), numbers(sample_weight, "sample_weight"),
             held.indices(target, "target", {n}), n, ignore_index, classes};
  Margins settings{scale, kind, margin, instance, guard, gamma, smoothing, z_loss};
  check_kind(settings);
  STD_TORCH_CHECK(!in.mean == !in.total && !in.mean == !in.share, "lt_kernels: mean, total and share must be given together");
  settings.weight = by_class(weight, "weight");
  settings.class_margin = by_class(class_margin, "class_margin");
  settings.class_smoothing = by_class(class_smoothing, "class_smoothing");
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
