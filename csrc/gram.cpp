// Logit-weight repulsion: the CPU kernels of the operators of lt_kernels/ops/tiles.py.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "pieces.h"
#include "tensors.h"

namespace lt {
namespace {

constexpr int64_t kRows = 64;        // rows of a block of column sums: fixed, so that no sum depends on the threads
constexpr int64_t kCache = 1 << 20;  // bytes that stay in a core's L2 cache

// Row sums, column sums, the first class, second class and value of the active pairs, and their number. Values are
// cosines, or with a shift, which the raw form has, products.
using TileResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct TileInputs : TensorHolder {
  Tile args{};
  ScalarType sums;
  bool wide;
  int64_t classes;

  TileInputs(const Tensor& product, ScalarType type, const Tensor& scale, double threshold, int64_t row, int64_t column)
      : sums(scale.scalar_type()), wide(sums == ScalarType::Double), classes(scale.numel()) {
    expect(product, "product", type, {kAny, kAny});
    const Tensor& rows = keep(dense_rows(product));
    args.product = rows.const_data_ptr();
    args.rows = rows.size(0), args.columns = rows.size(1), args.stride = rows.stride(0);
    args.row = row, args.column = column, args.threshold = threshold;
    args.scale = numbers(scale, wide ? ScalarType::Double : ScalarType::Float, "scale", {classes});
    expect(row, "row", 0, classes - args.rows);
    expect(column, "column", 0, classes - args.columns);
  }
};

Tensor zeros(int64_t size, ScalarType type) {
  Tensor made = empty({size}, type);
  torch::stable::zero_(made);
  return made;
}

// The result of one tile, with room for `capacity` pairs.
struct Pairs {
  Tensor row_sum, column_sum, first, second, value, count;
  std::vector<int64_t> begins;

  Pairs(const Tile& tile, int64_t capacity, ScalarType sums)
      : row_sum(zeros(tile.rows, ScalarType::Double)), column_sum(zeros(tile.columns, ScalarType::Double)),
        first(zeros(capacity, ScalarType::Int)), second(zeros(capacity, ScalarType::Int)),
        value(zeros(capacity, sums)), count(empty({1}, ScalarType::Long)), begins(tile.rows + 1, 0) {}

  // Replaces the numbers of pairs by the places where each row's list begins; returns the number of all pairs.
  int64_t begin_lists() {
    for (size_t i = 1; i < begins.size(); ++i) begins[i] += begins[i - 1];
    return begins.back();
  }
  void give_memory(Tile& tile) const { tile.second = data<int32_t>(second), tile.value = value.mutable_data_ptr(); }
  // Sets the classes of the listed pairs, of which only the column within the tile is known.
  void set_classes(const Tile& tile) {
    for (int64_t i = 0; i < tile.rows; ++i)
      for (int64_t k = begins[i]; k < begins[i + 1]; ++k)
        data<int32_t>(first)[k] = int32_t(tile.row + i), tile.second[k] += int32_t(tile.column);
  }
  TileResult result(int64_t number) {
    *data<int64_t>(count) = number;
    return {row_sum, column_sum, first, second, value, count};
  }
};

// Runs a kernel over blocks of rows, each with its own column sums, and adds these in the order of the blocks.
template <class A> void with_columns(const Tile& tile, TileSums kernel, double* column_sum) {
  int64_t blocks = (tile.rows + kRows - 1) / kRows;
  std::vector<A> parts(blocks * tile.columns, A(0));
  in_pieces(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      kernel(tile, block * kRows, std::min((block + 1) * kRows, tile.rows), parts.data() + block * tile.columns);
  });
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t j = 0; j < tile.columns; ++j) column_sum[j] += double(parts[block * tile.columns + j]);
}

void with_columns(const TileInputs& in, const TileSums (&kernel)[2], const Tensor& column_sum) {
  if (in.wide) with_columns<double>(in.args, kernel[1], data<double>(column_sum));
  else with_columns<float>(in.args, kernel[0], data<double>(column_sum));
}

TileResult gram_tile(Tensor product, Tensor scale, double threshold, int64_t row, int64_t column, int64_t capacity,
                     Optional shift) {
  TileInputs in(product, scale.scalar_type(), scale, threshold, row, column);
  in.args.shift = in.numbers(shift, in.sums, "shift", {in.classes});
  expect(capacity, "capacity", 0, kMost);
  Pairs pairs(in.args, capacity, in.sums);
  in.args.row_sum = data<double>(pairs.row_sum), in.args.begins = pairs.begins.data();
  with_columns(in, shift ? kernels().gram_raw_sums : kernels().gram_sums, pairs.column_sum);
  int64_t active = pairs.begin_lists();
  if (active == 0 || active > capacity) return pairs.result(active);
  pairs.give_memory(in.args);
  TileKernel list = (shift ? kernels().gram_raw_list : kernels().gram_list)[in.wide];
  in_pieces(in.args.rows, 32, [&](int64_t begin, int64_t end) { list(in.args, begin, end); });
  pairs.set_classes(in.args);
  return pairs.result(active);
}

std::tuple<Tensor, Tensor, Tensor> gram_coefficients(Tensor product, Tensor scale, Tensor slope, double threshold,
                                                     int64_t row, int64_t column, Optional shift) {
  TileInputs in(product, scale.scalar_type(), scale, threshold, row, column);
  in.args.slope = in.numbers(slope, in.sums, "slope", {in.classes});
  in.args.shift = in.numbers(shift, in.sums, "shift", {in.classes});
  Tensor factor = empty({in.args.rows, in.args.columns}, in.sums);
  Tensor row_sum = empty({in.args.rows}, ScalarType::Double), column_sum = zeros(in.args.columns, ScalarType::Double);
  in.args.value = factor.mutable_data_ptr(), in.args.row_sum = data<double>(row_sum);
  with_columns(in, shift ? kernels().gram_raw_coefficients : kernels().gram_coefficients, column_sum);
  return {factor, row_sum, column_sum};
}

struct PairList {
  const int32_t *first, *second;
  const void *value, *shift;
  int64_t count, classes;
  bool project;
};

// The order that sorts the keys, which are below `size`, by counting; stable.
std::vector<int32_t> sorted(const std::vector<int32_t>& key, int64_t size) {
  std::vector<int32_t> next(size + 1, 0), order(key.size());
  for (int32_t one : key) ++next[one + 1];
  for (int64_t j = 0; j < size; ++j) next[j + 1] += next[j];
  for (size_t i = 0; i < key.size(); ++i) order[next[key[i]]++] = int32_t(i);
  return order;
}

// The smallest index among each class and its neighbours. Classes that share it are visited one after the other.
std::vector<int32_t> least_neighbours(const int32_t* first, const int32_t* second, int64_t count, int64_t classes) {
  std::vector<int32_t> least(classes);
  for (int64_t i = 0; i < classes; ++i) least[i] = int32_t(i);
  for (int64_t k = 0; k < count; ++k) {
    int32_t i = first[k], j = second[k];
    least[i] = std::min(least[i], j), least[j] = std::min(least[j], i);
  }
  return least;
}

void check_classes(const int32_t* first, const int32_t* second, int64_t count, int64_t classes) {
  for (int64_t k = 0; k < count; ++k) {
    STD_TORCH_CHECK(first[k] >= 0 && first[k] < classes, "first holds ", first[k], "; allowed are 0 to ", classes - 1);
    STD_TORCH_CHECK(second[k] >= 0 && second[k] < classes, "second holds ", second[k], "; allowed are 0 to ", classes - 1);
  }
}

// The pairs as adjacency lists by place, with the coefficients of the gradient; `own` gets that of w_i in row i. With
// a shift nothing is divided by norms.
template <class A> struct Graph {
  std::vector<int32_t> place;
  std::vector<int64_t> begins;
  std::vector<Edge<A>> edges;

  Graph(const PairList& in, const std::vector<int32_t>& order, const A* scale, const A* slope, A* own)
      : place(in.classes), begins(in.classes + 1, 0), edges(2 * in.count) {
    for (int64_t at = 0; at < in.classes; ++at) place[order[at]] = int32_t(at);
    for (int64_t k = 0; k < in.count; ++k) ++begins[place[in.first[k]] + 1], ++begins[place[in.second[k]] + 1];
    for (int64_t at = 0; at < in.classes; ++at) begins[at + 1] += begins[at];
    std::vector<int64_t> next = begins;
    for (int64_t k = 0; k < in.count; ++k) {
      const int32_t i = in.first[k], j = in.second[k], here = place[i], there = place[j];
      if (in.shift) {
        const A r = static_cast<const A*>(in.value)[k], *shift = static_cast<const A*>(in.shift);
        const A factor = slope[i] * std::exp(r - shift[i]) + slope[j] * std::exp(r - shift[j]);
        edges[next[here]++] = {there, factor}, edges[next[there]++] = {here, factor};
        continue;
      }
      const A s = static_cast<const A*>(in.value)[k], e = std::exp(s), sum = slope[i] + slope[j];
      const A factor = e * sum * scale[i] * scale[j];
      edges[next[here]++] = {there, factor}, edges[next[there]++] = {here, factor};
      if (in.project) own[i] -= s * e * sum, own[j] -= s * e * sum;
    }
    for (int64_t i = 0; i < in.classes && !in.shift; ++i) own[i] *= scale[i] * scale[i];
  }
};

// For few pairs: whole rows, in the order of the classes, with the neighbours read from the class weights in place.
void gather_rows(const Neighbours& args, int64_t classes, PairsKernel kernel) {
  in_pieces(classes, 16384 / std::max<int64_t>(args.d, 1),
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// For many pairs: a strip of columns of all class weights is copied, in visiting order, and stays in the L2 cache while
// all rows gather from it.
void gather_strips(const Neighbours& args, int64_t classes, int64_t size, PairsKernel kernel) {
  int64_t width = std::max<int64_t>(kStrip, kCache / (classes * size) / kStrip * kStrip);
  with_workers((args.d + width - 1) / width, 1, [&](Pieces& pieces) {
    std::vector<char> room(classes * width * size + 64);
    char* copy = room.data() + 64 - reinterpret_cast<uintptr_t>(room.data()) % 64;  // aligned to cache lines
    for (int64_t begin, end; pieces.take(begin, end);)
      for (int64_t strip = begin; strip < end; ++strip) {
        Neighbours part = args;
        part.from = strip * width, part.to = std::min(part.from + width, args.d);
        part.weight = copy, part.stride = width;
        const char* from = static_cast<const char*>(args.weight) + part.from * size;
        for (int64_t i = 0; i < classes; ++i)
          std::memcpy(copy + i * width * size, from + args.order[i] * args.stride * size,
                      (part.to - part.from) * size);
        kernel(part, 0, classes);
      }
  });
}

template <class A>
void gather(const PairList& in, Neighbours& args, const A* scale, const A* slope, A* own, int64_t size,
            PairsKernel kernel) {
  const bool many = in.classes > 0 && in.count >= 2 * in.classes;
  std::vector<int32_t> order(in.classes);
  for (int64_t i = 0; i < in.classes; ++i) order[i] = int32_t(i);
  if (many) order = sorted(least_neighbours(in.first, in.second, in.count, in.classes), in.classes);
  Graph<A> graph(in, order, scale, slope, own);
  args.own = own, args.order = order.data(), args.begins = graph.begins.data(), args.edges = graph.edges.data();
  if (many) gather_strips(args, in.classes, size, kernel);
  else gather_rows(args, in.classes, kernel);
}

Tensor gram_pairs(Tensor weight, Tensor scale, Tensor slope, Tensor own, Tensor first, Tensor second, Tensor value,
                  Tensor count, bool project, bool wide, Optional shift) {
  TensorHolder held;
  expect_matrix(weight, "weight");
  const Tensor& rows = held.keep(dense_rows(weight));
  const int64_t classes = rows.size(0), d = rows.size(1), room = first.numel();
  const ScalarType sums = arithmetic(rows);
  const int64_t pairs = *held.indices(count, "count", {1});
  expect(pairs, "count", 0, room);
  PairList list{static_cast<const int32_t*>(held.numbers(first, ScalarType::Int, "first", {room})),
                static_cast<const int32_t*>(held.numbers(second, ScalarType::Int, "second", {room})),
                held.numbers(value, sums, "value", {room}), held.numbers(shift, sums, "shift", {classes}), pairs, classes,
                project};
  check_classes(list.first, list.second, pairs, classes);
  const void *scales = held.numbers(scale, sums, "scale", {classes});
  const void* slopes = held.numbers(slope, sums, "slope", {classes});
  expect(own, "own", sums, {classes});
  Tensor factor = torch::stable::clone(dense(own)), out = empty({classes, d}, wide ? sums : rows.scalar_type());
  Neighbours args{rows.const_data_ptr(), rows.stride(0), 0, d};
  args.out = out.mutable_data_ptr(), args.d = d;
  PairsKernel kernel = (wide ? kernels().gram_pairs_wide : kernels().gram_pairs)[type_of(rows)];
  if (sums == ScalarType::Double)
    gather(list, args, static_cast<const double*>(scales), static_cast<const double*>(slopes), data<double>(factor), 8,
           kernel);
  else
    gather(list, args, static_cast<const float*>(scales), static_cast<const float*>(slopes), data<float>(factor),
           type_of(rows) == kFloat ? 4 : 2, kernel);
  return out;
}

// The order in which runs of pairs are visited: by the smallest neighbour of their class, if most runs then share their
// last partner with the run before, whose row is still in the cache. Otherwise the order of the list, which is tile by
// tile, so that it stays within two ranges of classes.
std::vector<int32_t> visit_order(const Listed& in, int64_t pairs, int64_t classes, const std::vector<int64_t>& begins) {
  const int64_t runs = begins.size() - 1;
  std::vector<int32_t> least = least_neighbours(in.first, in.second, pairs, classes), key(runs);
  for (int64_t run = 0; run < runs; ++run) key[run] = least[in.first[begins[run]]];
  std::vector<int32_t> order = sorted(key, classes);
  int64_t alike = 0;
  auto partner = [&](int64_t place) { return in.second[begins[order[place] + 1] - 1]; };
  for (int64_t place = 1; place < runs; ++place) alike += partner(place) == partner(place - 1);
  for (int64_t run = 0; 2 * alike < runs && run < runs; ++run) order[run] = int32_t(run);
  return order;
}

// The cosines of listed pairs. Neighbouring pairs with the same first class are one run.
Tensor gram_listed(Tensor weight, Tensor scale, Tensor first, Tensor second) {
  TensorHolder held;
  expect_matrix(weight, "weight");
  const Tensor& rows = held.keep(dense_rows(weight));
  const int64_t classes = rows.size(0), d = rows.size(1), pairs = first.numel();
  const ScalarType sums = arithmetic(rows);
  const auto* from = static_cast<const int32_t*>(held.numbers(first, ScalarType::Int, "first", {pairs}));
  const auto* to = static_cast<const int32_t*>(held.numbers(second, ScalarType::Int, "second", {pairs}));
  check_classes(from, to, pairs, classes);
  Tensor value = empty({pairs}, sums);
  std::vector<int64_t> begins;
  for (int64_t k = 0; k < pairs; ++k)
    if (k == 0 || from[k] != from[k - 1]) begins.push_back(k);
  begins.push_back(pairs);
  Listed args{rows.const_data_ptr(), d, rows.stride(0), held.numbers(scale, sums, "scale", {classes}), from, to};
  std::vector<int32_t> order = visit_order(args, pairs, classes, begins);
  args.begins = begins.data(), args.order = order.data(), args.value = value.mutable_data_ptr();
  const int64_t runs = order.size(), work = d * (pairs / std::max<int64_t>(runs, 1));
  in_pieces(runs, 65536 / std::max<int64_t>(work, 1),
       [&](int64_t begin, int64_t end) { kernels().gram_verify[type_of(rows)](args, begin, end); });
  return value;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lt_kernels, CPU, library) {
  library.impl("gram_tile", TORCH_BOX(&gram_tile));
  library.impl("gram_coefficients", TORCH_BOX(&gram_coefficients));
  library.impl("gram_pairs", TORCH_BOX(&gram_pairs));
  library.impl("gram_listed", TORCH_BOX(&gram_listed));
}

}  // namespace lt
