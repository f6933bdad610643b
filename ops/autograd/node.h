// The autograd node of an op: it keeps what the derivative needs, and calls the op's kernel for it.
//
// An Op has
//   kName               of the op, as autograd shows it,
//   Constants           what the derivative needs beside tensors,
//   kMaterializeGrads   whether a gradient that is not there is zero, or nothing is computed of it,
//   by_kernel(...)      the gradients by the kernel,
//   arguments(...)      of the Python function that computes them in all other cases.
#pragma once

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <string>
#include <type_traits>
#include <utility>

#include "plain.h"

namespace kat_mm {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using NodePointer = decltype(torch::autograd::Edge::function);  // std::shared_ptr up to torch 2.12

template <typename T>
auto new_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<torch::autograd::Node>>) {
    // torch's deleter, which frees long chains of nodes without recursion; later torch has none, so
    // that its name may only be looked up here.
    return std::shared_ptr<T>(new T(), [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<T>();
  }
}

// Hooks of torch.autograd.graph for new nodes, where this torch has them.
template <typename Pointer>
auto call_creation_hooks(const Pointer& node, int) -> decltype(fire_node_creation_hooks(node)) {
  return fire_node_creation_hooks(node);
}
template <typename Pointer>
void call_creation_hooks(const Pointer&, long) {}

[[noreturn]] inline void throw_error_of_python() {
  python_error error;
  error.persist();  // it may cross threads
  throw error;
}

// The gradients, as Python computes them of a tuple of arguments.
inline variable_list call_python(PyObject* function, PyObject* arguments) {
  THPObjectPtr owned(arguments);
  if (!owned) throw_error_of_python();
  THPObjectPtr result(PyObject_CallObject(function, owned.get()));
  if (!result) throw_error_of_python();
  variable_list grads;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(result.get()); ++i) {
    PyObject* grad = PyTuple_GET_ITEM(result.get(), i);
    grads.push_back(grad == Py_None ? Tensor() : THPVariable_Unpack(grad));
  }
  return grads;
}

template <typename Op>
struct OpNode final : torch::autograd::CppNode<Op> {
  typename Op::Constants constants;

  std::string name() const override { return std::string(Op::kName) + "Backward"; }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(this->mutex_);
    if (!Op::kMaterializeGrads && !grads[0].defined()) return variable_list(this->num_outputs());
    const variable_list saved = this->ctx_.get_saved_variables();
    const Tensor grad = grads[0].defined() ? grads[0] : this->input_metadata(0).zeros_like();
    bool plain = !at::GradMode::is_enabled() && is_plain_thread() && is_plain(grad);
    for (const Tensor& tensor : saved) plain = plain && (!tensor.defined() || is_plain(tensor));
    if (plain) return Op::by_kernel(grad, saved, constants, *this);
    return in_python(grad, saved, constants, *this);
  }

  // Compiled autograd takes what the node keeps out of its context, and calls Op::backward.
  void compiled_args(torch::autograd::CompiledNodeArgs& args) const override {
    auto& self = const_cast<OpNode&>(*this);
    self.ctx_.saved_data["constants"] = constants.pack();
    self.is_variable_input_.assign(this->num_outputs(), true);
    torch::autograd::VariableInfo info;
    const auto& metadata = this->input_metadata(0);
    info.device = metadata.device();
    info.scalar_type = metadata.dtype().toScalarType();
    info.size = metadata.shape_as_dim_vector().vec();
    info.requires_grad = true;
    info.is_empty = false;
    self.output_info_ = {info};
    torch::autograd::CppNode<Op>::compiled_args(args);
  }

  template <typename Needs>
  static variable_list in_python(const Tensor& grad, const variable_list& saved,
                                 const typename Op::Constants& constants, const Needs& needs) {
    const pybind11::gil_scoped_acquire gil;
    return call_python(Op::python, Op::arguments(grad, saved, constants, needs));
  }
};

// What an Op inherits for compiled autograd.
template <typename Op>
struct CompiledBackward {
  static constexpr bool is_traceable = false;
  static constexpr bool kMaterializeGrads = true;  // as of a torch.autograd.Function
  static inline PyObject* python = nullptr;

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    struct Needs {
      AutogradContext* context;
      bool task_should_compute_output(size_t i) const { return context->needs_input_grad(i); }
    };
    return OpNode<Op>::in_python(grads[0], context->get_saved_variables(),
                                 Op::Constants::unpack(context->saved_data["constants"]),
                                 Needs{context});
  }
};

// Makes `output` the result of a node that keeps `saved`, in which what no gradient needs is
// undefined, and has the gradients of `inputs`.
template <typename Op>
void set_node(const Tensor& output, const variable_list& inputs, variable_list saved,
              const typename Op::Constants& constants) {
  auto node = new_node<OpNode<Op>>();
  node->constants = constants;
  node->set_ctx_grad_fn(node);
  node->ctx_.set_materialize_grads(Op::kMaterializeGrads);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  node->ctx_.save_for_backward(std::move(saved));
  node->save_variables_to_ctx();
  torch::autograd::set_history(output, node);
  call_creation_hooks(NodePointer(node), 0);
}

// Gives the nodes of an Op in Python the name that they have.
template <typename Op>
void add_node_type() {
  static PyTypeObject type = {PyVarObject_HEAD_INIT(nullptr, 0)};
  static const std::string name = std::string(Op::kName) + "Backward";
  torch::autograd::_initFunctionPyTypeObject(type, name.c_str(), nullptr, nullptr);
  torch::autograd::registerCppFunction(typeid(OpNode<Op>), &type);
}

inline bool wants_node(const variable_list& inputs) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Tensor& tensor : inputs) {
    if (tensor.requires_grad()) return true;
  }
  return false;
}

}  // namespace kat_mm
