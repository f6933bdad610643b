// A linear layer as one node of autograd, with the casts of autocast in it.
#pragma once

#include <ATen/SavedTensorHooks.h>

#include "ops.h"

namespace kat_mm {

// x W^T + b. Saved, in the dtype of the product: x if W has a gradient, W if x has one.
struct Linear : CompiledBackward<Linear> {
  static constexpr const char* kName = "Linear";
  static constexpr bool kMaterializeGrads = false;

  struct Constants {
    bool has_bias;

    IValue pack() const { return has_bias; }
    static Constants unpack(const IValue& packed) { return {packed.toBool()}; }
  };

  // The inputs are x, W and perhaps b, to be cast to `dtype`.
  static Tensor call(const variable_list& inputs, at::ScalarType dtype) {
    const Profiled profiled(kName);
    const bool has_node = wants_node(inputs);
    variable_list cast = inputs;
    // The cache of casts keeps what autograd knows of them, or that it knows nothing.
    for (Tensor& tensor : cast) {
      if (tensor.scalar_type() == dtype) continue;
      if (has_node) {
        const at::AutoDispatchBelowADInplaceOrView guard;
        tensor = tensor.to(dtype);
      } else {
        tensor = at::autocast::cached_cast(dtype, tensor, tensor.device().type());
      }
    }
    Tensor y;
    {
      // Below what tracks views too: of three dimensions or more the result is one of a matrix, and
      // as such could not be changed in place.
      const at::AutoDispatchBelowADInplaceOrView guard;
      const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
      y = at::linear(cast[0], cast[1], cast.size() > 2 ? cast[2] : Tensor());
    }
    if (has_node) {
      variable_list saved(2);
      if (inputs[1].requires_grad()) saved[0] = cast[0];
      if (inputs[0].requires_grad()) saved[1] = cast[1];
      set_node<Linear>(y, inputs, std::move(saved), {inputs.size() > 2});
    }
    return y;
  }

  template <typename Needs>
  static variable_list by_kernel(const Tensor& grad, const variable_list& saved,
                                 const Constants& constants, const Needs& needs) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const Tensor &x = saved[0], &weight = saved[1];
    const Tensor rows = grad.reshape({-1, grad.size(-1)});
    variable_list grads(constants.has_bias ? 3 : 2);
    if (needs.task_should_compute_output(0)) {
      auto sizes = grad.sizes().vec();
      sizes.back() = weight.size(1);
      grads[0] = rows.mm(weight).view(sizes);
    }
    if (needs.task_should_compute_output(1)) {
      grads[1] = rows.t().mm(x.reshape({-1, x.size(-1)}));
    }
    if (constants.has_bias && needs.task_should_compute_output(2)) grads[2] = rows.sum(0);
    return grads;  // which the engine casts to the dtypes of the inputs
  }

  template <typename Needs>
  static PyObject* arguments(const Tensor& grad, const variable_list& saved,
                             const Constants& constants, const Needs& needs) {
    const auto wanted = [&](int i) {
      return i < 2 + constants.has_bias && needs.task_should_compute_output(i) ? Py_True : Py_False;
    };
    return Py_BuildValue(
        "(NNNOOO)", THPVariable_Wrap(grad), THPVariable_Wrap(connect(saved[0], needs, 0)),
        THPVariable_Wrap(connect(saved[1], needs, 1)), wanted(0), wanted(1), wanted(2));
  }

 private:
  // A cast input, as autograd knows it: with the derivative of the input, for derivatives of this.
  // Undefined if it is not saved.
  template <typename Needs>
  static Tensor connect(const Tensor& tensor, const Needs& needs, size_t input) {
    if constexpr (std::is_base_of_v<torch::autograd::Node, Needs>) {
      const auto& edge = needs.next_edge(input);
      if (tensor.defined() && at::GradMode::is_enabled() && edge.is_valid() &&
          !tensor.requires_grad()) {
        Tensor connected = tensor.detach();
        torch::autograd::impl::set_gradient_edge(connected, edge);
        return connected;
      }
    }
    return tensor;
  }
};

}  // namespace kat_mm
