// Calls of the ops with their nodes of autograd.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>
#include <ATen/record_function.h>

#include "node.h"

namespace kat_mm {

using at::IValue;
using torch::jit::Stack;

inline c10::OperatorHandle find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
}

// Calls an op's kernel, of which autograd is to know nothing. The stack gets its results.
inline void call_kernel(const c10::OperatorHandle& op, Stack& stack) {
  const at::AutoDispatchBelowADInplaceOrView guard;  // no result is a view to autograd
  op.callBoxed(stack);
}

// Shows the call to profilers as a torch.autograd.Function of the op's name.
class Profiled {
 public:
  explicit Profiled(const char* name) : guard_(at::RecordScope::FUNCTION) {
    if (guard_.isActive()) guard_.before(name, at::sequence_number::peek());
  }

 private:
  at::RecordFunction guard_;
};

// kat_mm::rational of x, whose coefficients have one dimension or two. Saved: x, both of them.
struct Rational : CompiledBackward<Rational> {
  static constexpr const char* kName = "Rational";

  struct Constants {
    Rows numerator, denominator;
    int64_t channel_dim;

    IValue pack() const {
      return c10::List<int64_t>(
          {numerator.count, numerator.length, denominator.count, denominator.length, channel_dim});
    }
    static Constants unpack(const IValue& packed) {
      const auto list = packed.toIntVector();
      return {{list[0], list[1]}, {list[2], list[3]}, list[4]};
    }
  };

  static Tensor call(const Tensor& x, const Tensor& numerator, const Tensor& denominator,
                     const Constants& constants, std::optional<at::ScalarType> out_dtype) {
    static const auto op = find_op("kat_mm::rational");
    const variable_list inputs{x, numerator, denominator};
    const Profiled profiled(kName);
    Stack stack{x, constants.numerator.view(numerator), constants.denominator.view(denominator),
                constants.channel_dim, out_dtype};
    call_kernel(op, stack);
    Tensor y = std::move(stack[0]).toTensor();
    if (wants_node(inputs)) set_node<Rational>(y, inputs, inputs, constants);
    return y;
  }

  template <typename Needs>
  static bool wants_coefficients(const Needs& needs) {
    return needs.task_should_compute_output(1) || needs.task_should_compute_output(2);
  }

  template <typename Needs>
  static variable_list by_kernel(const Tensor& grad, const variable_list& saved,
                                 const Constants& constants, const Needs& needs) {
    static const auto op = find_op("kat_mm::rational_backward");
    const bool wanted = wants_coefficients(needs);
    Stack stack{grad,
                saved[0],
                constants.numerator.view(saved[1]),
                constants.denominator.view(saved[2]),
                constants.channel_dim,
                wanted};
    call_kernel(op, stack);
    variable_list grads(3);
    for (size_t i = 0; i < (wanted ? 3 : 1); ++i) {
      if (!needs.task_should_compute_output(i)) continue;
      grads[i] = std::move(stack[i]).toTensor();
      if (i > 0) reshape_new(grads[i], saved[i]);
    }
    return grads;
  }

  template <typename Needs>
  static PyObject* arguments(const Tensor& grad, const variable_list& saved,
                             const Constants& constants, const Needs& needs) {
    const auto& [a, b, channel_dim] = constants;
    return Py_BuildValue("(NNNN(LL)(LL)LO)", THPVariable_Wrap(grad), THPVariable_Wrap(saved[0]),
                         THPVariable_Wrap(saved[1]), THPVariable_Wrap(saved[2]), (long long)a.count,
                         (long long)a.length, (long long)b.count, (long long)b.length,
                         (long long)channel_dim, wants_coefficients(needs) ? Py_True : Py_False);
  }
};

// kat_mm::layer_norm_rational. Saved: x, the statistics, weight, bias, both coefficients.
struct LayerNormRational : CompiledBackward<LayerNormRational> {
  static constexpr const char* kName = "LayerNormRational";

  struct Constants {
    Rows numerator, denominator;
    double eps;

    IValue pack() const {
      return c10::List<double>({double(numerator.count), double(numerator.length),
                                double(denominator.count), double(denominator.length), eps});
    }
    static Constants unpack(const IValue& packed) {
      const auto list = packed.toDoubleVector();
      return {{int64_t(list[0]), int64_t(list[1])}, {int64_t(list[2]), int64_t(list[3])}, list[4]};
    }
  };

  // The inputs are x, weight, bias and the coefficients.
  static Tensor call(const variable_list& inputs, const Constants& constants,
                     std::optional<at::ScalarType> out_dtype) {
    static const auto op = find_op("kat_mm::layer_norm_rational");
    const Profiled profiled(kName);
    Stack stack{inputs[0],
                inputs[1],
                inputs[2],
                constants.numerator.view(inputs[3]),
                constants.denominator.view(inputs[4]),
                constants.eps,
                out_dtype};
    call_kernel(op, stack);
    Tensor y = std::move(stack[0]).toTensor();
    if (wants_node(inputs)) {
      set_node<LayerNormRational>(
          y, inputs,
          {inputs[0], std::move(stack[1]).toTensor(), inputs[1], inputs[2], inputs[3], inputs[4]},
          constants);
    }
    return y;
  }

  template <typename Needs>
  static variable_list by_kernel(const Tensor& grad, const variable_list& saved,
                                 const Constants& constants, const Needs&) {
    static const auto op = find_op("kat_mm::layer_norm_rational_backward");
    Stack stack{grad,
                saved[0],
                saved[1],
                saved[2],
                saved[3],
                constants.numerator.view(saved[4]),
                constants.denominator.view(saved[5])};
    call_kernel(op, stack);
    variable_list grads;
    for (IValue& value : stack) grads.push_back(std::move(value).toTensor());
    reshape_new(grads[3], saved[4]);
    reshape_new(grads[4], saved[5]);
    return grads;
  }

  template <typename Needs>
  static PyObject* arguments(const Tensor& grad, const variable_list& saved,
                             const Constants& constants, const Needs&) {
    const auto& [a, b, eps] = constants;
    return Py_BuildValue("(NNNNNNN(LL)(LL)d)", THPVariable_Wrap(grad), THPVariable_Wrap(saved[0]),
                         THPVariable_Wrap(saved[1]), THPVariable_Wrap(saved[2]),
                         THPVariable_Wrap(saved[3]), THPVariable_Wrap(saved[4]),
                         THPVariable_Wrap(saved[5]), (long long)a.count, (long long)a.length,
                         (long long)b.count, (long long)b.length, eps);
  }
};

}  // namespace kat_mm
