// Logit-weight repulsion: the CPU kernels that screen pairs of classes by int8 products: docs/math.md, section 6.
#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "pieces.h"
#include "tensors.h"

namespace lt {
namespace {

constexpr int64_t kFewest = 256;  // pairs that are listed whatever the size of the tile

std::tuple<Tensor, Tensor, Tensor, Tensor> gram_units(Tensor weight) {
  TensorHolder held;
  expect_matrix(weight, "weight");
  const Tensor& rows = held.keep(dense_rows(weight));
  int64_t classes = rows.size(0), d = rows.size(1);
  STD_TORCH_CHECK(type_of(rows) != kDouble, "lt_kernels: weight must be float32, bfloat16 or float16, got float64");
  Tensor scale = empty({classes}, ScalarType::Float), step = empty({classes}, ScalarType::Float);
  Tensor error = empty({classes}, ScalarType::Float), unit = empty({classes, d}, ScalarType::Char);
  Units args{rows.const_data_ptr(), d, rows.stride(0), data<int8_t>(unit), data<float>(scale), data<float>(step),
             data<float>(error)};
  in_pieces(classes, 16384 / std::max<int64_t>(d, 1),
       [&](int64_t begin, int64_t end) { kernels().gram_units[type_of(rows)](args, begin, end); });
  return {scale, unit, step, error};
}

// left @ right of int8 matrices in int32, by torch's private operator: `int8_product` in lt_kernels/core/private.py.
void int8_product(const Tensor& left, const Tensor& right, Tensor& out) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(left), from(right), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::_int_mm", "out", stack, TORCH_ABI_VERSION));
  out = torch::stable::detail::to<Tensor>(stack[0]);
}

// The pairs of a tile that may be active. If there are too many, none is listed and `count` is -1.
struct Survivors {
  std::vector<int32_t> first, second;
  int64_t count = 0;

  // Lists the classes of the pairs whose bits are set.
  void list(const Tile& tile) {
    first.reserve(count), second.reserve(count);
    for (int64_t i = 0; i < tile.rows; ++i) {
      const uint64_t* word = tile.passed + i * tile.words();
      int64_t left = tile.begins[i + 1], column = tile.column + tile.first_column(i);
      for (; left > 0; ++word, column += 64)
        for (uint64_t bits = *word; bits; bits &= bits - 1, --left)
          first.push_back(int32_t(tile.row + i)), second.push_back(int32_t(column + __builtin_ctzll(bits)));
    }
  }
};

// Screens tiles by their int8 products. Each thread has one, whose memory it uses again for the next tile.
struct Screen {
  Tensor unit;
  const float *step, *error;
  double threshold;
  int64_t density;
  Tensor product = empty({0, 0}, ScalarType::Int);
  std::vector<uint64_t> passed;
  std::vector<int64_t> numbers;

  Survivors tile(int64_t row, int64_t column, int64_t side) {
    const int64_t classes = unit.size(0), d = unit.size(1);
    Tile tile{};
    tile.rows = std::min(side, classes - row), tile.columns = std::min(side, classes - column);
    if (product.size(0) != tile.rows || product.size(1) != tile.columns)
      product = empty({tile.rows, tile.columns}, ScalarType::Int);
    Tensor rows = torch::stable::narrow(unit, 0, row, tile.rows);
    Tensor columns = torch::stable::narrow(unit, 0, column, tile.columns);
    int8_product(rows, torch::stable::transpose(columns, 0, 1), product);
    tile.product = product.const_data_ptr(), tile.stride = tile.columns;
    tile.row = row, tile.column = column, tile.threshold = threshold, tile.step = step, tile.error = error, tile.d = d;
    passed.resize(tile.rows * tile.words()), numbers.assign(tile.rows + 1, 0);
    tile.passed = passed.data(), tile.begins = numbers.data();
    kernels().gram_screen(tile, 0, tile.rows);
    Survivors found;
    for (int64_t number : numbers) found.count += number;
    if (found.count > std::max<int64_t>(kFewest, tile.rows * tile.columns / density)) found.count = -1;
    else found.list(tile);
    return found;
  }
};

// Of the tiles [begin, end) of the upper triangle, counted row by row: the first and the second class of the pairs that
// may be active, and how many each tile has; -1, and no pairs, if that is more than one in `density`.
std::tuple<Tensor, Tensor, Tensor> gram_screen(Tensor unit, Tensor step, Tensor error, double threshold, int64_t side,
                                               int64_t density, int64_t begin, int64_t end) {
  expect(unit, "unit", ScalarType::Char, {kAny, kAny});
  TensorHolder held;
  const Tensor& rows = held.keep(dense(unit));
  const int64_t classes = rows.size(0);
  const void* steps = held.numbers(step, ScalarType::Float, "step", {classes});
  const void* errors = held.numbers(error, ScalarType::Float, "error", {classes});
  expect(side, "side", 1, kMost);
  expect(density, "density", 1, kMost);
  const int64_t sides = (classes + side - 1) / side;
  expect(end, "end", 0, sides * (sides + 1) / 2);
  expect(begin, "begin", 0, end);
  std::vector<std::pair<int64_t, int64_t>> places;
  for (int64_t i = 0, place = 0; i < sides; ++i)
    for (int64_t j = i; j < sides; ++j, ++place)
      if (begin <= place && place < end) places.emplace_back(i * side, j * side);
  std::vector<Survivors> found(places.size());
  with_workers(int64_t(places.size()), 1, [&](Pieces& pieces) {
    Screen screen{rows, static_cast<const float*>(steps), static_cast<const float*>(errors), threshold, density};
    for (int64_t from, to; pieces.take(from, to);)
      for (int64_t k = from; k < to; ++k) found[k] = screen.tile(places[k].first, places[k].second, side);
  });
  int64_t survivors = 0;
  for (const Survivors& one : found) survivors += int64_t(one.first.size());
  Tensor first = empty({survivors}, ScalarType::Int), second = empty({survivors}, ScalarType::Int);
  Tensor count = empty({int64_t(found.size())}, ScalarType::Long);
  int32_t *firsts = data<int32_t>(first), *seconds = data<int32_t>(second);
  for (size_t k = 0; k < found.size(); ++k) {
    data<int64_t>(count)[k] = found[k].count;
    firsts = std::copy(found[k].first.begin(), found[k].first.end(), firsts);
    seconds = std::copy(found[k].second.begin(), found[k].second.end(), seconds);
  }
  return {first, second, count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lt_kernels, CPU, library) {
  library.impl("gram_units", TORCH_BOX(&gram_units));
  library.impl("gram_screen", TORCH_BOX(&gram_screen));
}

}  // namespace lt
