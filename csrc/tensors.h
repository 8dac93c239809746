// From tensors of torch's stable ABI to the kernels' arguments, with checks of every dtype, size and range.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <optional>
#include <string>
#include <vector>

#include "pages.h"
#include "table.h"

namespace lt {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using torch::headeronly::ScalarType;

inline Type type_of(const Tensor& tensor, const char* name = "the first tensor") {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return kFloat;
    case ScalarType::Double: return kDouble;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kHalf;
    default: STD_TORCH_CHECK(false, "lt_kernels: ", name, " must be float32, float64, bfloat16 or float16");
  }
}

inline ScalarType arithmetic(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class A> A* data(const Tensor& tensor) { return static_cast<A*>(tensor.mutable_data_ptr()); }

constexpr int64_t kAny = -1;  // an expected size that may be any
using Sizes = std::initializer_list<int64_t>;

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    default: return "another dtype";
  }
}
inline std::string shape_of(const int64_t* sizes, size_t dims) {
  std::string text = "[";
  for (size_t d = 0; d < dims; ++d) text += (d ? ", " : "") + (sizes[d] == kAny ? "any" : std::to_string(sizes[d]));
  return text + "]";
}
[[noreturn]] inline void refuse(const Tensor& tensor, const char* name, ScalarType type, Sizes sizes) {
  std::vector<int64_t> found(size_t(tensor.dim()));
  for (size_t d = 0; d < found.size(); ++d) found[d] = tensor.size(int64_t(d));
  STD_TORCH_CHECK(false, "lt_kernels: ", name, " must be ", name_of(type), " ", shape_of(sizes.begin(), sizes.size()),
                  ", got ", name_of(tensor.scalar_type()), " ", shape_of(found.data(), found.size()));
}

// Checks that a tensor has this dtype and these sizes; the error names the argument. The device needs no check: torch
// dispatches on the devices of all arguments, so only CPU tensors arrive here.
inline void expect(const Tensor& tensor, const char* name, ScalarType type, Sizes sizes) {
  bool fits = tensor.scalar_type() == type && size_t(tensor.dim()) == sizes.size();
  for (size_t d = 0; fits && d < sizes.size(); ++d)
    fits = sizes.begin()[d] == kAny || tensor.size(int64_t(d)) == sizes.begin()[d];
  if (!fits) refuse(tensor, name, type, sizes);
}
inline void expect_matrix(const Tensor& tensor, const char* name) {
  type_of(tensor, name);
  STD_TORCH_CHECK(tensor.dim() == 2, "lt_kernels: ", name, " must have 2 dimensions, got ", tensor.dim());
}
// Checks that least <= value <= most.
inline void expect(int64_t value, const char* name, int64_t least, int64_t most) {
  STD_TORCH_CHECK(value >= least && value <= most, "lt_kernels: ", name, " must be from ", least, " to ", most, ", got ",
                  value);
}
constexpr int64_t kMost = int64_t(1) << 62;

// An uninitialised CPU tensor of at most 4 dimensions. It calls torch's shim without the dispatcher, which is faster.
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) {
  int64_t strides[4], step = 1;
  for (int64_t d = int64_t(sizes.size()) - 1; d >= 0; --d) {
    strides[d] = step;
    step *= sizes.begin()[d];
  }
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      sizes.size(), sizes.begin(), strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
      aoti_torch_device_type_cpu(), 0, &handle));
  Tensor made(handle);
  if (size_t(step) >= kLargePagesFrom / 8)  // elements of at most 8 bytes
    ask_for_large_pages(made.mutable_data_ptr(), size_t(step) * made.element_size());
  return made;
}

// Checks the kind of margin function, and for SphereFace its order, which is passed as the margin.
template <class M> void check_kind(const M& margins) {
  expect(margins.kind, "kind", 0, 4);
  STD_TORCH_CHECK(margins.kind != 3 || (margins.margin >= 1 && margins.margin < 2147483648.0),
                  "lt_kernels: margin must be from 1 to 2147483647 for this kind, got ", margins.margin);
}

// The kernels need contiguous rows; the rows themselves may be strided.
inline Tensor dense_rows(const Tensor& tensor) {
  return tensor.size(1) <= 1 || tensor.stride(1) == 1 ? tensor : torch::stable::contiguous(tensor);
}
inline Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

// Holds the tensors of one call, copies that were made contiguous included, while the kernels read their memory.
struct TensorHolder {
  Tensor tensors[16];
  int count = 0;

  const Tensor& keep(Tensor tensor) {
    STD_TORCH_CHECK(tensor.numel() == 0 || tensor.const_data_ptr(), "lt_kernels: a tensor's storage was released");
    return tensors[count++] = std::move(tensor);
  }
  const void* numbers(const Optional& tensor, ScalarType type, const char* name, Sizes sizes) {
    if (!tensor) return nullptr;
    expect(*tensor, name, type, sizes);
    return keep(dense(*tensor)).const_data_ptr();
  }
  const int64_t* indices(const Tensor& tensor, const char* name, Sizes sizes) {
    return static_cast<const int64_t*>(numbers(tensor, ScalarType::Long, name, sizes));
  }
  Lookup lookup(const Optional& table, const Optional& index, int64_t n, int64_t c, ScalarType type, const char* name) {
    Lookup found;
    if (!table) return found;
    expect(*table, name, type, {kAny, c});
    const Tensor& rows = keep(dense_rows(*table));
    found.data = rows.const_data_ptr();
    found.rows = rows.size(0);
    found.stride = rows.stride(0);
    const int64_t* chosen = index ? indices(*index, "offset_row", {n}) : nullptr;
    if (found.rows > 1) found.index = chosen;
    const bool fits = found.rows == 1 || found.rows == n || (chosen && found.rows > 0);
    STD_TORCH_CHECK(fits, "lt_kernels: ", name, " must have 1 or ", n, " rows, or some that offset_row chooses from, got ",
                    found.rows);
    return found;
  }
};

}  // namespace lt
