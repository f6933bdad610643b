// What both backends need of tensors: the memory layout of the groups, checks and allocation, all
// through PyTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "check.h"

// Since torch 2.13, the one that raises with the message of the error.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace kat_mm {

using IntArrayRef = torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kMaxOrder = 8;

// Memory as [outer, groups, run]: `run` adjacent elements share one group's coefficients. Adjacent
// channels of a group are adjacent in memory for channels-last and for channels-first tensors
// alike, so that this one view serves both.
struct GroupLayout {
  int64_t outer;
  int64_t groups;
  int64_t run;
};

// The coefficients of one call. A stride of 0 shares one row between all groups.
struct CoefficientRows {
  int64_t groups;
  int m, n;
  int64_t numerator_stride, denominator_stride;
};

// Allocates without the dispatcher, which would take longer than to launch a kernel.
inline Tensor empty_strided(IntArrayRef sizes, IntArrayRef strides, ScalarType dtype,
                            const Tensor& on_device_of) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(on_device_of.get(), &device_type));
  AtenTensorHandle result;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(),
                                                         to<int32_t>(from(dtype)), device_type,
                                                         on_device_of.get_device_index(), &result));
  return Tensor(result);
}

// The sizes and strides of a dense tensor, in another dtype.
inline Tensor empty_like(const Tensor& tensor, ScalarType dtype) {
  return empty_strided(tensor.sizes(), tensor.strides(), dtype, tensor);
}

template <size_t D>
Tensor empty(const std::array<int64_t, D>& sizes, ScalarType dtype, const Tensor& on_device_of) {
  std::array<int64_t, D> strides;
  int64_t stride = 1;
  for (size_t d = D; d-- > 0; stride *= sizes[d]) strides[d] = stride;
  return empty_strided({sizes.data(), D}, {strides.data(), D}, dtype, on_device_of);
}

// Asks before it calls the dispatcher, which takes a microsecond.
inline Tensor make_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline CoefficientRows check(const Tensor& x, const Tensor& numerator, const Tensor& denominator,
                             int64_t channel_dim) {
  KAT_MM_CHECK(numerator.dim() == 2 && denominator.dim() == 2,
               "rational: numerator and denominator must be 2-D");
  KAT_MM_CHECK(numerator.get_device_index() == x.get_device_index() &&
                   denominator.get_device_index() == x.get_device_index() &&
                   numerator.is_cpu() == x.is_cpu() && denominator.is_cpu() == x.is_cpu(),
               "rational: x, numerator and denominator must be on one device");
  bool supported = false;
  for (ScalarType dtype :
       {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float, ScalarType::Double}) {
    supported |= x.scalar_type() == dtype;
  }
  KAT_MM_CHECK(supported, "rational: x must be float16, bfloat16, float32 or float64");
  const ScalarType compute =
      x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  KAT_MM_CHECK(numerator.scalar_type() == compute && denominator.scalar_type() == compute,
               "rational: numerator and denominator must be float32 (float64 for a float64 x)");
  CoefficientRows rows{
      std::max(numerator.size(0), denominator.size(0)), static_cast<int>(numerator.size(1)) - 1,
      static_cast<int>(denominator.size(1)), numerator.size(0) == 1 ? 0 : numerator.size(1),
      denominator.size(0) == 1 ? 0 : denominator.size(1)};
  KAT_MM_CHECK(rows.m >= 1 && rows.m <= kMaxOrder && rows.n >= 1 && rows.n <= kMaxOrder,
               "rational: orders m and n must lie between 1 and ", kMaxOrder, ", got m = ", rows.m,
               " and n = ", rows.n);
  for (int64_t size : {numerator.size(0), denominator.size(0)}) {
    KAT_MM_CHECK(size >= 1 && (size == 1 || size == rows.groups), "rational: numerator has ",
                 numerator.size(0), " rows and denominator ", denominator.size(0),
                 "; each must have 1 or the number of groups");
  }
  KAT_MM_CHECK(channel_dim >= -x.dim() && channel_dim < x.dim(), "rational: channel_dim ",
               channel_dim, " is out of range for a tensor of ", x.dim(), " dimensions");
  const int64_t channels = x.size(channel_dim < 0 ? channel_dim + x.dim() : channel_dim);
  KAT_MM_CHECK(channels % rows.groups == 0, "rational: ", channels,
               " channels cannot be divided into ", rows.groups, " groups");
  return rows;
}

// Finds the layout if the elements of x fill their memory without gaps, in any order of the
// dimensions; nothing otherwise.
inline std::optional<GroupLayout> dense_layout(const Tensor& x, int64_t channel_dim,
                                               int64_t groups) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  if (channel_dim < 0) channel_dim += x.dim();
  std::vector<int64_t> dims;  // from the slowest to the fastest in memory
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (sizes[d] != 1) dims.push_back(d);
  }
  std::sort(dims.begin(), dims.end(),
            [&](int64_t p, int64_t q) { return strides[p] > strides[q]; });
  int64_t expected = 1;
  int64_t inner = 0;  // elements behind the channel dimension
  for (auto d = dims.rbegin(); d != dims.rend(); ++d) {
    if (strides[*d] != expected) return std::nullopt;
    if (*d == channel_dim) inner = expected;
    expected *= sizes[*d];
  }
  // One group needs no walk over groups, and a single channel has no place in `dims`.
  if (groups == 1) return GroupLayout{1, 1, expected};
  const int64_t channels = sizes[channel_dim];
  return GroupLayout{expected / (channels * inner), groups, channels / groups * inner};
}

// x itself where its memory is dense, or a dense copy; the layout comes with it.
inline Tensor make_dense(const Tensor& x, int64_t channel_dim, int64_t groups,
                         GroupLayout& layout) {
  if (x.numel() == 0) {
    layout = GroupLayout{0, groups, 0};
    return x;
  }
  if (auto found = dense_layout(x, channel_dim, groups)) {
    layout = *found;
    return x;
  }
  Tensor copy = torch::stable::empty_like(x);  // of dense strides
  torch::stable::copy_(copy, x);
  layout = *dense_layout(copy, channel_dim, groups);
  return copy;
}

// The elements of `tensor` in the memory order of `like`, which is dense.
inline Tensor match_memory(const Tensor& tensor, const Tensor& like) {
  bool same = tensor.dim() == like.dim();
  for (int64_t d = 0; same && d < like.dim(); ++d) same = tensor.size(d) == like.size(d);
  KAT_MM_CHECK(same && tensor.is_cpu() == like.is_cpu() &&
                   tensor.get_device_index() == like.get_device_index(),
               "rational_backward: grad must have the shape and the device of x");
  for (int64_t d = 0; d < like.dim(); ++d) {
    same &= like.size(d) <= 1 || tensor.stride(d) == like.stride(d);
  }
  if (same) return tensor;
  Tensor copy = empty_like(like, tensor.scalar_type());
  torch::stable::copy_(copy, tensor);
  return copy;
}

// The arguments that forward and backward share, checked, with x in dense memory.
struct Operands {
  CoefficientRows rows;
  GroupLayout layout;
  Tensor x, numerator, denominator;

  Operands(const Tensor& x, const Tensor& numerator, const Tensor& denominator, int64_t channel_dim)
      : rows(check(x, numerator, denominator, channel_dim)),
        x(make_dense(x, channel_dim, rows.groups, layout)),
        numerator(make_contiguous(numerator)),
        denominator(make_contiguous(denominator)) {}
};

// The coefficient gradients: of the coefficients' shapes, or empty where they are not wanted.
struct CoefficientGrads {
  bool wanted;
  Tensor numerator, denominator;

  CoefficientGrads(const Tensor& like_numerator, const Tensor& like_denominator, bool wanted)
      : wanted(wanted),
        numerator(allocate(like_numerator, wanted)),
        denominator(allocate(like_denominator, wanted)) {}

  void zero() {
    torch::stable::zero_(numerator);
    torch::stable::zero_(denominator);
  }

 private:
  static Tensor allocate(const Tensor& like, bool wanted) {
    return wanted ? empty_like(like, like.scalar_type()) : empty<1>({0}, like.scalar_type(), like);
  }
};

// Calls f(X, Y, T) with the C++ types of x, of its output (or that output's gradient) and of the
// arithmetic.
template <typename Half, typename BFloat16, typename F>
void dispatch_dtypes(ScalarType x, ScalarType y, const F& f) {
  if (x == y) {
    if (x == ScalarType::Float) return f(float{}, float{}, float{});
    if (x == ScalarType::Double) return f(double{}, double{}, double{});
    if (x == ScalarType::Half) return f(Half{}, Half{}, float{});
    if (x == ScalarType::BFloat16) return f(BFloat16{}, BFloat16{}, float{});
  } else if (x == ScalarType::Float) {
    if (y == ScalarType::Half) return f(float{}, Half{}, float{});
    if (y == ScalarType::BFloat16) return f(float{}, BFloat16{}, float{});
  }
  KAT_MM_CHECK(false,
               "rational: unsupported dtypes; the output must have the dtype of x, or a half "
               "dtype for a float32 x");
}

// A number that is known at compile time, as an argument.
template <int I>
using Constant = std::integral_constant<int, I>;

}  // namespace kat_mm
