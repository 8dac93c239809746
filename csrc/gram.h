// Logit-weight repulsion by tiles of cosines: docs/math.md, section 6. T: dtype of the weights, A: of the arithmetic.
#pragma once

#include <cmath>

#include "table.h"
#include "vec.h"

namespace lt {
namespace LT_ISA {

// A bound on the difference between the product of two rounded unit rows and the cosine as float32 computes it. error_i
// and error_j are the lengths of the rounding errors of the rows; the product of the rounded rows is exact in integers.
// The float32 dot product has at most d roundings of 2^-24, the scales and steps a few more. The bound has twice that,
// which covers the second-order terms: the lengths of the unit rows and of the errors are rounded themselves.
template <class A> inline A screening_bound(A error_i, A error_j, int64_t d) {
  return error_i + error_j + error_i * error_j + float(d + 16) * 1.1920929e-7f;
}

template <class A> inline const A* numbers(const void* from) { return static_cast<const A*>(from); }

// The dot products of row a with N rows. Each depends on its two rows alone, to the bit, not on N or on their order. So
// the verification of screened pairs, the pairs of a list that is kept across steps and the norms agree.
template <class A, class T, int N> inline void dots(const T* a, const T* const (&b)[N], int64_t d, A (&product)[N]) {
  constexpr int W = Vec<A>::width;
  vec<A> even[N] = {}, odd[N] = {};
  int64_t k = 0;
  for (; k + 2 * W <= d; k += 2 * W) {
    vec<A> low = load(a + k), high = load(a + k + W);
    for (int n = 0; n < N; ++n) even[n] = even[n] + low * load(b[n] + k), odd[n] = odd[n] + high * load(b[n] + k + W);
  }
  for (; k < d; k += W) {
    int count = int(d - k < W ? d - k : W);
    vec<A> rest = load_part<A>(a + k, count);
    for (int n = 0; n < N; ++n) even[n] = even[n] + rest * load_part<A>(b[n] + k, count);
  }
  for (int n = 0; n < N; ++n) product[n] = sum<A>(even[n] + odd[n]);
}

template <class A, class T> inline A dot(const T* a, const T* b, int64_t d) {
  const T* const other[1] = {b};
  A product[1];
  dots(a, other, d, product);
  return product[0];
}

// 1 / |w|: 0 for a row of length at most 1e-12, which has no direction; NaN for a row that is not finite.
template <class A> inline A inverse_norm(A square) {
  A norm = std::sqrt(square);
  if (!(norm <= std::numeric_limits<A>::max())) return std::numeric_limits<A>::quiet_NaN();
  return norm <= A(1e-12) ? A(0) : A(1) / norm;
}

inline void store(int8_t* to, vint value, int count) {
  typedef int8_t bytes __attribute__((vector_size(Vec<float>::width)));
  bytes small = __builtin_convertvector(value, bytes);
  std::memcpy(to, &small, count);
}

// The largest absolute value of a row.
template <class T> inline float largest_entry(const T* row, int64_t d) {
  constexpr int W = Vec<float>::width;
  vfloat best{};
  for (int64_t k = 0; k < d; k += W) {
    vfloat x = d - k < W ? load_part<float>(row + k, int(d - k)) : load(row + k);
    best = max(best, max(x, -x));
  }
  return largest<float>(best);
}

// Rounds the unit rows [begin, end) to steps of 1/127 of their largest entry; also the lengths of the rounding errors.
template <class T> void gram_units(const Units& in, int64_t begin, int64_t end) {
  constexpr int W = Vec<float>::width;
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  for (int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(in.weight) + i * in.stride;
    int8_t* out = in.unit + i * in.d;
    float scale = in.scale[i] = inverse_norm(dot<float>(row, row, in.d));
    if (!(scale > 0)) {  // no direction
      in.step[i] = in.error[i] = 0;
      std::memset(out, 0, in.d);
      continue;
    }
    float limit = largest_entry(row, in.d), step = in.step[i] = limit * scale / 127.f, inverse = 1.f / step;
    vfloat squares{};
    for (int64_t k = 0; k < in.d; k += W) {
      int count = int(in.d - k < W ? in.d - k : W);
      vfloat exact = (count == W ? load(row + k) : load_part<float>(row + k, count)) * scale;
      vfloat shifted = exact * inverse + magic, lost = (shifted - magic) * step - exact;
      store(out + k, bits<vint>(shifted) - bits<int32_t>(magic), count);
      squares = squares + lost * lost;
    }
    in.error[i] = std::sqrt(sum<float>(squares));
  }
}

// A mask of the pairs of row i of the tile that may be active, for one vector of columns from j on.
inline vint survivors(const Tile& tile, int64_t i, int64_t j, int count) {
  constexpr int W = Vec<float>::width;
  const int32_t* from = static_cast<const int32_t*>(tile.product) + i * tile.stride + j;
  const float *steps = tile.step + tile.column + j, *errors = tile.error + tile.column + j;
  const bool whole = count == W;
  vint product{};
  std::memcpy(&product, from, whole ? sizeof product : count * sizeof *from);
  vfloat step = whole ? load(steps) : load_part<float>(steps, count);
  vfloat error = whole ? load(errors) : load_part<float>(errors, count);
  vfloat rounded = __builtin_convertvector(product, vfloat) * tile.step[tile.row + i] * step;
  vint mask = rounded >= float(tile.threshold) - screening_bound(splat(tile.error[tile.row + i]), error, tile.d);
  for (int lane = count; !whole && lane < W; ++lane) mask[lane] = 0;
  return mask;
}

// The pairs of the rows [begin, end) that may be active, as bits, and their number in each row.
inline void gram_screen(const Tile& tile, int64_t begin, int64_t end) {
  constexpr int W = Vec<float>::width;
  for (int64_t i = begin; i < end; ++i) {
    int64_t found = 0;
    uint64_t* word = tile.passed + i * tile.words();
    for (int64_t j = tile.first_column(i); j < tile.columns; j += 64) {
      uint64_t bits = 0;
      for (int n = 0; n < 64 && j + n < tile.columns; n += W)
        bits |= signs(survivors(tile, i, j + n, int(tile.columns - j - n < W ? tile.columns - j - n : W))) << n;
      *word++ = bits;
      found += __builtin_popcountll(bits);
    }
    tile.begins[i + 1] = found;
  }
}

// The cosines of N pairs of a run, starting at the k-th pair.
template <class T, int N> inline void verify(const Listed& in, int64_t k) {
  using A = typename Arithmetic<T>::type;
  const A* scale = numbers<A>(in.scale);
  const T *weight = static_cast<const T*>(in.weight), *others[N];
  A product[N];
  for (int n = 0; n < N; ++n) others[n] = weight + in.second[k + n] * in.stride;
  dots(weight + in.first[k] * in.stride, others, in.d, product);
  for (int n = 0; n < N; ++n)
    static_cast<A*>(in.value)[k + n] = product[n] * scale[in.first[k]] * scale[in.second[k + n]];
}

// The cosines of the runs at the places [begin, end) of the visiting order, several at a time, so that the row of the
// first class, which they share, is loaded once.
template <class T> void gram_verify(const Listed& in, int64_t begin, int64_t end) {
  for (int64_t place = begin; place < end; ++place) {
    int64_t k = in.begins[in.order[place]], last = in.begins[in.order[place] + 1];
    for (; k + 4 <= last; k += 4) verify<T, 4>(in, k);
    for (; k + 2 <= last; k += 2) verify<T, 2>(in, k);
    if (k < last) verify<T, 1>(in, k);
  }
}

template <class A> inline vec<A> some(const A* from, int count) {
  return count == Vec<A>::width ? load(from) : load_part<A>(from, count);
}

// One vector of a tile: a mask of the active pairs, and their cosines, or with Raw their products.
template <class A, bool Raw> struct Values {
  vec<A> value;
  typename Vec<A>::ints active;

  Values(const Tile& tile, const A* product, A scale, int64_t j, int count) {
    const A* scales = numbers<A>(tile.scale) + tile.column + j;
    bool whole = count == Vec<A>::width;
    const vec<A> products = whole ? load(product + j) : load_part<A>(product + j, count);
    value = products * scale * (whole ? load(scales) : load_part<A>(scales, count));
    active = value > A(tile.threshold);
    if constexpr (Raw) value = products;
    for (int lane = count; !whole && lane < Vec<A>::width; ++lane) active[lane] = 0;
  }
};

template <class A> inline void add_part(A* to, vec<A> value, int count) {
  if (count == Vec<A>::width) return store(to, load(to) + value);
  for (int lane = 0; lane < count; ++lane) to[lane] += value[lane];
}

// Sums of exp(cosine) - 1 over the active pairs of the rows [begin, end): for each row, and added to each column's sum.
// With Raw, of exp(product - shift) - exp(-shift), with the shift of the row and with that of the column.
template <class A, bool Raw> void gram_sums(const Tile& tile, int64_t begin, int64_t end, void* column_sum) {
  constexpr int W = Vec<A>::width;
  const A* shifts = numbers<A>(tile.shift);
  for (int64_t i = begin; i < end; ++i) {
    const A* product = numbers<A>(tile.product) + i * tile.stride;
    const A scale = numbers<A>(tile.scale)[tile.row + i];
    const A shift = Raw ? shifts[tile.row + i] : A(0), floor = Raw ? std::exp(-shift) : A(1);
    double total = 0;
    vec<A> part{};
    typename Vec<A>::ints found{};
    int step = 0;
    for (int64_t j = tile.first_column(i); j < tile.columns; j += W) {
      int count = int(tile.columns - j < W ? tile.columns - j : W);
      Values<A, Raw> pair(tile, product, scale, j, count);
      vec<A> value, down;
      if constexpr (Raw) {
        const vec<A> other = some(shifts + tile.column + j, count);
        value = pair.active ? exp(pair.value - shift) - floor : vec<A>{};
        down = pair.active ? exp(pair.value - other) - exp(-other) : vec<A>{};
      } else {
        down = value = pair.active ? exp(pair.value) - A(1) : vec<A>{};
      }
      add_part(static_cast<A*>(column_sum) + j, down, count);
      part = part + value, found = found - pair.active;
      if (++step % 16 == 0) total += double(sum<A>(part)), part = vec<A>{};  // A for 16 terms, double for longer sums
    }
    tile.row_sum[i] = total + double(sum<A>(part));
    int64_t pairs = 0;
    for (int lane = 0; lane < W; ++lane) pairs += found[lane];
    tile.begins[i + 1] = pairs;
  }
}

// Lists the active pairs of the rows [begin, end), each row's from its place in the list on.
template <class A, bool Raw> void gram_list(const Tile& tile, int64_t begin, int64_t end) {
  constexpr int W = Vec<A>::width;
  for (int64_t i = begin; i < end; ++i) {
    if (tile.begins[i] == tile.begins[i + 1]) continue;
    const A* product = numbers<A>(tile.product) + i * tile.stride;
    const A scale = numbers<A>(tile.scale)[tile.row + i];
    int64_t place = tile.begins[i];
    for (int64_t j = tile.first_column(i); j < tile.columns; j += W) {
      int count = int(tile.columns - j < W ? tile.columns - j : W);
      Values<A, Raw> pair(tile, product, scale, j, count);
      for (int lane = 0; lane < count; ++lane) {
        if (!pair.active[lane]) continue;
        tile.second[place] = int32_t(j + lane);
        static_cast<A*>(tile.value)[place++] = pair.value[lane];
      }
    }
  }
}

// The coefficients c_ij = e^s (slope_i + slope_j) of the active pairs of the rows [begin, end), times both scales, and
// 0 for all other pairs; and the sums of c_ij s_ij, for each row, and added to each column's sum. With Raw,
// c_ij = slope_i e^(r - shift_i) + slope_j e^(r - shift_j) of the products r, times no scales.
template <class A, bool Raw> void gram_coefficients(const Tile& tile, int64_t begin, int64_t end, void* column_sum) {
  constexpr int W = Vec<A>::width;
  const A *slopes = numbers<A>(tile.slope), *scales = numbers<A>(tile.scale), *shifts = numbers<A>(tile.shift);
  for (int64_t i = begin; i < end; ++i) {
    const A *product = numbers<A>(tile.product) + i * tile.stride, scale = scales[tile.row + i];
    const A slope = slopes[tile.row + i];
    A* out = static_cast<A*>(tile.value) + i * tile.columns;
    int64_t j = tile.first_column(i);
    for (int64_t k = 0; k < j; ++k) out[k] = 0;
    double row_total = 0;
    for (; j < tile.columns; j += W) {
      int count = int(tile.columns - j < W ? tile.columns - j : W);
      Values<A, Raw> pair(tile, product, scale, j, count);
      const vec<A> other_slope = some(slopes + tile.column + j, count);
      vec<A> coefficient, factor;
      if constexpr (Raw) {
        const vec<A> other = exp(pair.value - some(shifts + tile.column + j, count)) * other_slope;
        factor = coefficient = pair.active ? exp(pair.value - shifts[tile.row + i]) * slope + other : vec<A>{};
      } else {
        coefficient = pair.active ? exp(pair.value) * (slope + other_slope) : vec<A>{};
        factor = coefficient * scale * some(scales + tile.column + j, count);
      }
      vec<A> weighted = pair.active ? coefficient * pair.value : vec<A>{};
      if (count == W) store(out + j, factor);
      else store_part<A>(out + j, factor, count);
      add_part(static_cast<A*>(column_sum) + j, weighted, count);
      row_total += double(sum<A>(weighted));
    }
    tile.row_sum[i] = row_total;
  }
}

// One row of the gradient, own * w_self + the sum of factor * w_other; `weight` points to the first column.
template <class T, class A> struct Gather {
  static constexpr int W = Vec<A>::width;
  const T* weight;
  int64_t stride, self;
  A own;
  const Edge<A>*edges, *last;

  // N vectors of columns from k on, whose sums stay in registers.
  template <int N, class Out> void whole(int64_t k, Out* out) const {
    vec<A> total[N];
    for (int n = 0; n < N; ++n) total[n] = own == 0 ? vec<A>{} : load(weight + self * stride + k + n * W) * own;
    for (const Edge<A>* edge = edges; edge < last; ++edge) {
      const T* from = weight + edge->other * stride + k;
      for (int n = 0; n < N; ++n) total[n] = total[n] + load(from + n * W) * edge->factor;
    }
    for (int n = 0; n < N; ++n) store(out + k + n * W, total[n]);
  }
  template <class Out> void part(int64_t k, int count, Out* out) const {
    vec<A> total = own == 0 ? vec<A>{} : load_part<A>(weight + self * stride + k, count) * own;
    for (const Edge<A>* edge = edges; edge < last; ++edge)
      total = total + load_part<A>(weight + edge->other * stride + k, count) * edge->factor;
    store_part<A>(out + k, total, count);
  }
};

// Prefetches cache lines that are written soon: the strips of two rows are too far apart for the hardware prefetcher.
template <class Out> inline void prefetch_strip(Out* to, int64_t columns) {
  const int64_t step = 64 / sizeof(Out);
  for (int64_t k = 0; k < columns && k < 8 * step; k += step) __builtin_prefetch(to + k, 1);
}

// The rows of the gradient at the places [begin, end), by groups of columns. Out, the dtype of the result, is T or A.
template <class T, class Out> void gram_gather(const Neighbours& in, int64_t begin, int64_t end) {
  using A = typename Arithmetic<T>::type;
  constexpr int W = Vec<A>::width, N = kStrip / W < 8 ? kStrip / W : 8;  // 8 sums fit into 16 registers
  const Edge<A>* edges = static_cast<const Edge<A>*>(in.edges);
  const int64_t columns = in.to - in.from;
  for (int64_t place = begin; place < end; ++place) {
    const int32_t i = in.order[place];
    Out* out = static_cast<Out*>(in.out) + i * in.d + in.from;
    const Gather<T, A> row{static_cast<const T*>(in.weight), in.stride, place, numbers<A>(in.own)[i],
                           edges + in.begins[place], edges + in.begins[place + 1]};
    if (row.edges == row.last && row.own == 0) {
      std::memset(static_cast<void*>(out), 0, columns * sizeof(Out));
      continue;
    }
    if (place + 2 < end) prefetch_strip(static_cast<Out*>(in.out) + in.order[place + 2] * in.d + in.from, columns);
    int64_t k = 0;
    for (; k + N * W <= columns; k += N * W) row.template whole<N>(k, out);
    for (; k + W <= columns; k += W) row.template whole<1>(k, out);
    if (k < columns) row.part(k, int(columns - k), out);
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
