// Logit-weight repulsion by tiles of cosines: docs/math.md, section 6. T: dtype of the weights, A: of the arithmetic.
#pragma once

#include <cmath>

#include "table.h"
#include "vec.h"

namespace lt {
namespace LT_ISA {

// How far the product of two rounded unit rows may be from the float dot product of the rows themselves times their
// scales: the rounding errors e_i, e_j of the rows, d products and sums in float in either of them (2^-24 each, and
// half as much again for the lanes' sums), and the roundings of the scales. A: a number or a vector.
template <class A> inline A screening_bound(A error_i, A error_j, int64_t d) {
  return error_i + error_j + error_i * error_j + float(d + 16) * 1.1920929e-7f;
}

// The least rounded product that an active pair can have: rounding to bfloat16 moves it by at most 2^-9 of itself.
template <class A> inline A screening_limit(A threshold, A error_i, A error_j, int64_t d) {
  A least = threshold - screening_bound(error_i, error_j, d);
  return least - max(least, -least) * 0.00390625f;
}

template <class A> inline const A* numbers(const void* from) { return static_cast<const A*>(from); }

// The first column of row i of a tile that belongs to a pair j > i: the other half of the cosines is the same.
inline int64_t first_column(const Tile& tile, int64_t i) {
  int64_t first = tile.row + i + 1 - tile.column;
  return first < 0 ? 0 : first > tile.columns ? tile.columns : first;
}

template <class A, class T> inline A dot(const T* a, const T* b, int64_t d) {
  constexpr int W = Vec<A>::width;
  vec<A> even{}, odd{};
  int64_t k = 0;
  for (; k + 2 * W <= d; k += 2 * W) {
    even = even + load(a + k) * load(b + k);
    odd = odd + load(a + k + W) * load(b + k + W);
  }
  for (; k < d; k += W) {
    int count = int(d - k < W ? d - k : W);
    even = even + load_part<A>(a + k, count) * load_part<A>(b + k, count);
  }
  return sum<A>(even + odd);
}

// 1 / |w|: 0 for a row shorter than 1e-12, NaN for one that is not finite.
inline float inverse_norm(float square) {
  float norm = std::sqrt(square);
  if (!(norm <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::quiet_NaN();
  return norm <= 1e-12f ? 0.f : 1.f / norm;
}

// Rows [begin, end) to unit length in bfloat16, and the length of what the rounding took away.
template <class T> void gram_units(const Units& in, int64_t begin, int64_t end) {
  constexpr int W = Vec<float>::width;
  for (int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(in.weight) + i * in.stride;
    bf16* out = static_cast<bf16*>(in.unit) + i * in.d;
    float scale = in.scale[i] = inverse_norm(dot<float>(row, row, in.d));
    vfloat squares{};
    for (int64_t k = 0; k < in.d; k += W) {
      int count = int(in.d - k < W ? in.d - k : W);
      vfloat exact = (count == W ? load(row + k) : load_part<float>(row + k, count)) * scale;
      if (count == W) store(out + k, exact);
      else store_part<float>(out + k, exact, count);
      vfloat lost = (count == W ? load(out + k) : load_part<float>(out + k, count)) - exact;
      squares = squares + lost * lost;
    }
    in.error[i] = std::sqrt(sum<float>(squares));
  }
}

// All bits set where a pair of row i of the tile may be active, for one vector of its columns from j on.
inline vint survivors(const Tile& tile, const bf16* product, vfloat error, int64_t j, int count) {
  constexpr int W = Vec<float>::width;
  const float* errors = tile.error + tile.column + j;
  const vfloat threshold = splat(float(tile.threshold));
  if (count == W) return load(product + j) >= screening_limit(threshold, error, load(errors), tile.d);
  vfloat others = load_part<float>(errors, count), rest = load_part<float>(product + j, count);
  vint mask = rest >= screening_limit(threshold, error, others, tile.d);
  for (int lane = count; lane < W; ++lane) mask[lane] = 0;
  return mask;
}

// The pairs of each row in [begin, end) that may be active: counted, or written where the row's list begins.
inline void gram_screen(const Tile& tile, int64_t begin, int64_t end) {
  constexpr int W = Vec<float>::width;
  for (int64_t i = begin; i < end; ++i) {
    const bf16* product = static_cast<const bf16*>(tile.product) + i * tile.stride;
    const vfloat error = splat(tile.error[tile.row + i]);
    int64_t place = tile.second ? tile.begins[i] : 0;
    if (tile.second && place == tile.begins[i + 1]) continue;
    vint found{};
    for (int64_t j = first_column(tile, i); j < tile.columns; j += W) {
      vint mask = survivors(tile, product, error, j, int(tile.columns - j < W ? tile.columns - j : W));
      found = found - mask;
      if (!tile.second) continue;
      alignas(64) int32_t lanes[W];
      std::memcpy(lanes, &mask, sizeof mask);
      for (int lane = 0; lane < W; ++lane)
        if (lanes[lane]) tile.second[place++] = int32_t(j + lane);
    }
    if (tile.second) continue;
    for (int lane = 0; lane < W; ++lane) place += found[lane];
    tile.begins[i + 1] = place;
  }
}

// The float cosines of the listed pairs of the rows [begin, end).
template <class T> void gram_verify(const Tile& tile, int64_t begin, int64_t end) {
  using A = typename Arithmetic<T>::type;
  const A* scale = numbers<A>(tile.scale);
  for (int64_t i = begin; i < end; ++i)
    for (int64_t k = tile.begins[i]; k < tile.begins[i + 1]; ++k) {
      int64_t first = tile.row + i, second = tile.column + tile.second[k];
      const T* weight = static_cast<const T*>(tile.weight);
      A product = dot<A>(weight + first * tile.weight_stride, weight + second * tile.weight_stride, tile.d);
      static_cast<A*>(tile.value)[k] = product * scale[first] * scale[second];
    }
}

// One vector of a tile: its cosines, and all bits set where a pair is active.
template <class A> struct Cosines {
  vec<A> value;
  typename Vec<A>::ints active;

  Cosines(const Tile& tile, const A* product, A scale, int64_t j, int count) {
    const A* scales = numbers<A>(tile.scale) + tile.column + j;
    bool whole = count == Vec<A>::width;
    value = (whole ? load(product + j) : load_part<A>(product + j, count)) * scale *
            (whole ? load(scales) : load_part<A>(scales, count));
    active = value > A(tile.threshold);
    for (int lane = count; !whole && lane < Vec<A>::width; ++lane) active[lane] = 0;
  }
};

template <class A> inline void add_part(A* to, vec<A> value, int count) {
  if (count == Vec<A>::width) return store(to, load(to) + value);
  for (int lane = 0; lane < count; ++lane) to[lane] += value[lane];
}

// Sums of expm1 of the active cosines of the rows [begin, end): for each row, and into `down` for each column.
template <class A> void gram_sums(const Tile& tile, int64_t begin, int64_t end, void* down) {
  constexpr int W = Vec<A>::width;
  for (int64_t i = begin; i < end; ++i) {
    const A* product = numbers<A>(tile.product) + i * tile.stride;
    const A scale = numbers<A>(tile.scale)[tile.row + i];
    double total = 0;
    vec<A> part{};
    typename Vec<A>::ints found{};
    int step = 0;
    for (int64_t j = first_column(tile, i); j < tile.columns; j += W) {
      int count = int(tile.columns - j < W ? tile.columns - j : W);
      Cosines<A> cosine(tile, product, scale, j, count);
      vec<A> value = cosine.active ? exp(cosine.value) - A(1) : vec<A>{};
      add_part(static_cast<A*>(down) + j, value, count);
      part = part + value, found = found - cosine.active;
      if (++step % 16 == 0) total += double(sum<A>(part)), part = vec<A>{};  // short sums in A, long ones in double
    }
    tile.row_sum[i] = total + double(sum<A>(part));
    int64_t pairs = 0;
    for (int lane = 0; lane < W; ++lane) pairs += found[lane];
    tile.begins[i + 1] = pairs;
  }
}

// The active pairs of the rows [begin, end), written where each row's list begins.
template <class A> void gram_list(const Tile& tile, int64_t begin, int64_t end) {
  constexpr int W = Vec<A>::width;
  for (int64_t i = begin; i < end; ++i) {
    if (tile.begins[i] == tile.begins[i + 1]) continue;
    const A* product = numbers<A>(tile.product) + i * tile.stride;
    const A scale = numbers<A>(tile.scale)[tile.row + i];
    int64_t place = tile.begins[i];
    for (int64_t j = first_column(tile, i); j < tile.columns; j += W) {
      int count = int(tile.columns - j < W ? tile.columns - j : W);
      Cosines<A> cosine(tile, product, scale, j, count);
      for (int lane = 0; lane < count; ++lane) {
        if (!cosine.active[lane]) continue;
        tile.second[place] = int32_t(j + lane);
        static_cast<A*>(tile.value)[place++] = cosine.value[lane];
      }
    }
  }
}

// c_ij = e^s (slope_i + slope_j) of the active pairs of the rows [begin, end), times both scales, 0 for the others; and
// the sums of c_ij s_ij, for each row and into `down` for each column.
template <class A> void gram_coefficients(const Tile& tile, int64_t begin, int64_t end, void* down) {
  constexpr int W = Vec<A>::width;
  const A *slopes = numbers<A>(tile.slope), *scales = numbers<A>(tile.scale);
  for (int64_t i = begin; i < end; ++i) {
    const A *product = numbers<A>(tile.product) + i * tile.stride, scale = scales[tile.row + i];
    const A slope = slopes[tile.row + i];
    A* out = static_cast<A*>(tile.value) + i * tile.columns;
    int64_t j = first_column(tile, i);
    for (int64_t k = 0; k < j; ++k) out[k] = 0;
    double along = 0;
    for (; j < tile.columns; j += W) {
      int count = int(tile.columns - j < W ? tile.columns - j : W);
      Cosines<A> cosine(tile, product, scale, j, count);
      const A *others = slopes + tile.column + j, *lengths = scales + tile.column + j;
      vec<A> sums = slope + (count == W ? load(others) : load_part<A>(others, count));
      vec<A> push = cosine.active ? exp(cosine.value) * sums : vec<A>{};
      vec<A> pull = cosine.active ? push * cosine.value : vec<A>{};
      vec<A> factor = push * scale * (count == W ? load(lengths) : load_part<A>(lengths, count));
      if (count == W) store(out + j, factor);
      else store_part<A>(out + j, factor, count);
      add_part(static_cast<A*>(down) + j, pull, count);
      along += double(sum<A>(pull));
    }
    tile.row_sum[i] = along;
  }
}

// Rows [begin, end) of the gradient: own_i w_i + sum of c_ij w_j over the neighbours of i. Out: T, or A to be added to.
template <class T, class Out> void gram_gather(const Neighbours& in, int64_t begin, int64_t end) {
  using A = typename Arithmetic<T>::type;
  constexpr int W = Vec<A>::width, B = 32 * W;
  const T* weight = static_cast<const T*>(in.weight);
  for (int64_t i = begin; i < end; ++i) {
    Out* out = static_cast<Out*>(in.out) + i * in.d;
    const A own = numbers<A>(in.own)[i];
    const int64_t *list = in.begins + (i - in.first);
    if (list[0] == list[1] && own == 0) {
      std::memset(static_cast<void*>(out), 0, in.d * sizeof(Out));
      continue;
    }
    for (int64_t first = 0; first < in.d; first += B) {
      int count = int(in.d - first < B ? in.d - first : B);
      alignas(64) A total[B] = {};
      auto add = [&](int64_t row, A factor) {
        const T* from = weight + row * in.stride + first;
        for (int k = 0; k < count; k += W) {
          vec<A> value = count - k >= W ? load(from + k) : load_part<A>(from + k, count - k);
          store(total + k, load(total + k) + value * factor);
        }
      };
      if (own != 0) add(i, own);
      for (int64_t k = list[0]; k < list[1]; ++k) add(in.other[k], numbers<A>(in.factor)[k]);
      for (int k = 0; k < count; k += W) {
        if (count - k >= W) store(out + first + k, load(total + k));
        else store_part<A>(out + first + k, load(total + k), count - k);
      }
    }
  }
}

template <class T> void gram_pairs(const Neighbours& in, int64_t begin, int64_t end) {
  gram_gather<T, T>(in, begin, end);
}
template <class T> void gram_pairs_wide(const Neighbours& in, int64_t begin, int64_t end) {
  gram_gather<T, typename Arithmetic<T>::type>(in, begin, end);
}

}  // namespace LT_ISA
}  // namespace lt
