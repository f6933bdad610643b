// Which calls are plain ones: of dense tensors on a CPU or a CUDA device, in a thread where nothing
// transforms, traces or watches them. All others are for Python.
#pragma once

#include <ATen/ATen.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>

namespace kat_mm {

// Whether no transform of torch.func, mode or tracer is on.
inline bool is_plain_thread() {
  const auto included = c10::impl::tls_local_dispatch_key_set().included_;
  return (included - c10::default_included_set - c10::autocast_dispatch_keyset).empty() &&
         !at::impl::torch_function_mode_enabled();
}

// Whether a tensor is dense, of no subclass, without a tangent and no sample or dual number of
// torch.func. That it conjugates or negates lazily, only its keys tell.
inline bool is_plain(const at::Tensor& tensor) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet kPlain(
      {DispatchKey::CPU, DispatchKey::CUDA, DispatchKey::AutogradCPU, DispatchKey::AutogradCUDA,
       DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA, DispatchKey::ADInplaceOrView});
  return tensor.defined() && (tensor.key_set().raw_repr() & ~kPlain.raw_repr()) == 0 &&
         !tensor._fw_grad(/*level=*/0).defined();
}

// The dtype that autocast asks for in the place of that of x, if any.
inline std::optional<at::ScalarType> autocast_dtype(const at::Tensor& x) {
  const auto device = x.device().type();
  if (x.scalar_type() == at::kDouble || !at::autocast::is_autocast_enabled(device)) {
    return std::nullopt;
  }
  const auto dtype = at::autocast::get_autocast_dtype(device);
  if (dtype == x.scalar_type() || (dtype != at::kHalf && dtype != at::kBFloat16)) {
    return std::nullopt;
  }
  return dtype;
}

// Rows of coefficients, which parameters have in one dimension.
struct Rows {
  int64_t count, length;

  // A view of a tensor of one dimension as [count, length], without the dispatcher and autograd.
  at::Tensor view(const at::Tensor& tensor) const {
    if (tensor.dim() == 2) return tensor;
    auto impl = c10::make_intrusive<c10::TensorImpl>(
        c10::TensorImpl::VIEW, c10::Storage(tensor.storage()), tensor.key_set(), tensor.dtype());
    impl->set_storage_offset(tensor.storage_offset());
    impl->set_sizes_contiguous({count, length});
    return at::Tensor(std::move(impl));
  }

  // Whether a tensor holds that many numbers, in its one dimension or in two.
  bool fit(const at::Tensor& tensor) const {
    if (tensor.dim() == 1) return tensor.numel() == count * length && tensor.is_contiguous();
    return tensor.dim() == 2 && tensor.size(0) == count && tensor.size(1) == length;
  }
};

// Gives a new tensor the shape of another one with as many elements.
inline void reshape_new(at::Tensor& tensor, const at::Tensor& like) {
  if (tensor.dim() == like.dim()) return;
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(like.sizes());
}

}  // namespace kat_mm
