// Tensors of the stable ABI to what the kernels take, with the checks that the operators rely on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <optional>

#include "pages.h"
#include "table.h"

namespace lt {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using torch::headeronly::ScalarType;

inline Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return kFloat;
    case ScalarType::Double: return kDouble;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kHalf;
    default: STD_TORCH_CHECK(false, "lt_kernels: float32, float64, bfloat16 or float16 expected");
  }
}

inline ScalarType arithmetic(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// An uninitialised CPU tensor; straight through the shim, which costs a fraction of a dispatched call.
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
  if (size_t(step) >= kManyPages / 8) ask_for_large_pages(made.mutable_data_ptr(), size_t(step) * made.element_size());
  return made;
}

// Rows of a matrix must be dense; they may lie apart.
inline Tensor dense_rows(const Tensor& tensor) {
  return tensor.size(1) <= 1 || tensor.stride(1) == 1 ? tensor : torch::stable::contiguous(tensor);
}
inline Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

// Keeps made-dense copies alive while the kernels read them.
struct Held {
  Tensor tensors[16];
  int count = 0;

  const Tensor& keep(Tensor tensor) { return tensors[count++] = std::move(tensor); }
  const void* numbers(const Optional& tensor, ScalarType type, const char* name) {
    if (!tensor) return nullptr;
    STD_TORCH_CHECK(tensor->scalar_type() == type, "lt_kernels: ", name, " must have the dtype of the arithmetic");
    return keep(dense(*tensor)).const_data_ptr();
  }
  const int64_t* indices(const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long, "lt_kernels: ", name, " must be int64");
    return static_cast<const int64_t*>(keep(dense(tensor)).const_data_ptr());
  }
  Lookup lookup(const Optional& table, const Optional& index, int64_t n, int64_t c, ScalarType type, const char* name) {
    Lookup found;
    if (!table) return found;
    STD_TORCH_CHECK(table->scalar_type() == type, "lt_kernels: ", name, " must have the dtype of the arithmetic");
    const Tensor& rows = keep(dense_rows(*table));
    found.data = rows.const_data_ptr();
    found.rows = rows.size(0);
    found.stride = rows.stride(0);
    if (found.rows > 1 && index) found.index = indices(*index, "offset_row");
    bool fits = rows.size(1) == c && (found.rows == 1 || (found.index ? index->size(0) : found.rows) == n);
    STD_TORCH_CHECK(fits, "lt_kernels: ", name, " does not fit the logits");
    return found;
  }
};

}  // namespace lt
