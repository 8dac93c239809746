// From a row's statistics to its loss and slopes (derivatives): docs/math.md, sections 2 and 4. Scalar: once per row.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include <torch/headeronly/util/Exception.h>

namespace lt {

enum Kind { kPlain, kAdditive, kAngular, kSphere, kAngularAll };

// The margin function phi at the target's cosine, with its derivatives by the cosine and by the norm of the features.
template <class A> struct Phi { A value, slope, norm_slope; };

template <class A> inline A clamp(A x, A low, A high) { return x < low ? low : x > high ? high : x; }

// cos(theta + m (1 + instance * hard * (1 - cos) / 2)); with `guard` a straight line where this angle exceeds pi.
template <class A> inline Phi<A> angular(A own, A margin, bool hard, A instance, bool guard) {
  const A floor = std::sqrt(std::numeric_limits<A>::epsilon());  // of the sine, keeps the slope finite at cos = +-1
  A eta = hard ? instance * margin / 2 : A(0), c = clamp(own, A(-1), A(1)), angle = margin + eta * (1 - c);
  A sine = std::sqrt((1 - c) * (1 + c)), cos_m = std::cos(angle), sin_m = std::sin(angle);
  if (guard && (c < -cos_m || angle > A(3.14159265358979323846)))
    return {c - angle * sin_m, 1 + (sin_m + angle * cos_m) * eta, 0};
  A slope = cos_m + c * sin_m / (sine < floor ? floor : sine) + (sine * cos_m + c * sin_m) * eta;
  return {c * cos_m - sine * sin_m, slope, 0};
}

// norm * (lam cos(theta) + (-1)^k cos(M theta) - 2k) / (1 + lam), with lam the annealing. cos(M theta) is the Chebyshev
// polynomial T_M(cos), whose slope needs no division.
template <class A> inline Phi<A> sphere(A own, int order, A annealing, A norm) {
  A tiny = std::numeric_limits<A>::min(), c = clamp(own / (norm < tiny ? tiny : norm), A(-1), A(1));
  A step = std::floor(order * std::acos(c) / A(3.14159265358979323846));
  step = clamp(step, A(0), A(order - 1));
  A sign = int(step) % 2 ? A(-1) : A(1), first = 1, second = c, slope_first = 0, slope_second = 1;
  for (int k = 1; k < order; ++k) {
    A next = 2 * c * second - first, slope_next = 2 * second + 2 * c * slope_second - slope_first;
    first = second, second = next, slope_first = slope_second, slope_second = slope_next;
  }
  A share = 1 / (1 + annealing);  // of psi; the cosine has the rest, so that nothing overflows with lam
  A psi = share * (sign * second - 2 * step) + (1 - share) * c, slope = share * (sign * slope_second) + (1 - share);
  return {norm * psi, slope, psi - c * slope};
}

// The statistics of a row (csrc/table.h), the target's offset, the norm of its features, the sum of all shares and the
// target's share; and what follows from them.
template <class A> struct Numbers { A rest, top, own, rival, offset, norm, mean, total, share; };
template <class A> struct Result { A loss, d_rest, d_own, d_offset, d_norm, d_mean; };

inline void check_present(double offset, int64_t target) {
  STD_TORCH_CHECK(offset != -std::numeric_limits<double>::infinity(), "offset is -inf for class ", target,
                  ", which is a target: a class that is not there (class_counts of zero) cannot be one");
}

struct Margins {
  double scale;
  int64_t kind;
  double margin, instance;
  bool guard;
  double gamma, smoothing, z_loss;
  const void *weight = nullptr, *class_margin = nullptr, *class_smoothing = nullptr;  // [C], or none: the value above

  bool needs_rival() const { return kind == kAngular && instance != 0; }  // to tell whether the row is hard

  template <class A> static A per_class(const void* table, double value, int64_t target) {
    return table ? static_cast<const A*>(table)[target] : A(value);
  }
  template <class A> Phi<A> phi(const Numbers<A>& in, int64_t target) const {
    A m = per_class<A>(class_margin, kind == kSphere ? instance : margin, target);  // of a sphere the annealing
    switch (kind) {
      case kAdditive: return {in.own - m, 1, 0};
      case kAngular: return angular(in.own, m, in.rival > in.own, A(instance), guard);
      case kAngularAll: return angular(in.own, m, true, A(instance), guard);
      case kSphere: return sphere(in.own, int(margin), m, in.norm);
      default: return {in.own, 1, 0};
    }
  }

  // The loss and slopes of one row, times its own weight; all zero if its target is ignored.
  template <class A>
  Result<A> row(const Numbers<A>& in, int64_t target, bool valid, bool smoothed, A sample_weight) const {
    if (!valid) return {0, 0, 0, 0, 0, 0};
    Phi<A> p = phi(in, target);
    const A infinity = std::numeric_limits<A>::infinity();
    A own = A(scale) * p.value + in.offset;
    // NaN, as a softmax gives for an infinite target logit; and an infinite cosine has no angle.
    if (own == infinity || (kind >= kAngular && std::isinf(in.own))) own = std::numeric_limits<A>::quiet_NaN();
    own -= in.top == -infinity ? A(0) : in.top;  // exact if both are of one size, therefore before rest is subtracted
    A v = in.rest - own;
    A small = std::exp(-std::fabs(v)), entropy = (v > 0 ? v : A(0)) + std::log1p(small);
    A p_wrong = (v >= 0 ? A(1) : small) / (1 + small), p_target = (v >= 0 ? small : A(1)) / (1 + small);
    A focal = gamma != 0 ? std::pow(p_wrong, A(gamma)) : A(1), class_weight = per_class<A>(weight, 1.0, target);
    A loss = class_weight * focal * entropy;
    A d_v = class_weight * focal * (gamma != 0 ? p_wrong + A(gamma) * p_target * entropy : p_wrong);
    A d_u = -d_v, d_mean = 0;
    if (smoothed) {
      A part = per_class<A>(class_smoothing, smoothing, target);
      A larger = v > 0 ? in.total * in.rest - in.share * own : (in.total - in.share) * own;
      loss = (1 - part) * loss + part * (in.total * std::log1p(small) + larger - in.mean);
      d_u = -(1 - part) * d_v + part * (in.total * p_target - in.share);
      d_v = (1 - part) * d_v + part * in.total * p_wrong;
      d_mean = -part;
    }
    if (z_loss != 0) {
      A lse = (in.top == -infinity ? A(0) : in.top) + (v > 0 ? in.rest : own) + std::log1p(small);
      A steep = 2 * A(z_loss) * lse;
      loss += A(z_loss) * lse * lse, d_v += steep * p_wrong, d_u += steep * p_target;
    }
    loss *= sample_weight, d_v *= sample_weight, d_u *= sample_weight, d_mean *= sample_weight;
    return {loss, d_v, d_u * A(scale) * p.slope, d_u, d_u * A(scale) * p.norm_slope, d_mean};
  }
};

}  // namespace lt
