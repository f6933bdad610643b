// The Python module of the ops' autograd nodes: plain calls without Python's part in them.
//
// It is bound to the torch and the Python that built it, and optional. Each function returns None
// for a call that is not plain, or not right: Python then takes it, and says what is wrong.
#include "linear.h"

namespace kat_mm {
namespace {

bool enabled = true;
bool supported_devices[2] = {};  // CPU, CUDA

// What the kernel of layer_norm_rational takes.
struct {
  int64_t channels, m, n;
} limits;

bool is_float(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16 ||
         dtype == at::kDouble;
}

// The tensor of an argument, if it is of no subclass.
const Tensor* tensor_of(PyObject* object) {
  return THPVariable_CheckExact(object) ? &THPVariable_Unpack(object) : nullptr;
}

// The number of an argument, if it is an int of Python's that is not too large.
std::optional<int64_t> int_of(PyObject* object) {
  if (!PyLong_CheckExact(object)) return std::nullopt;
  int overflow;
  const int64_t value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow ? std::nullopt : std::optional(value);
}

// Whether rational's kernel takes them as they are.
bool fit(const Tensor& x, const Tensor& numerator, const Tensor& denominator,
         const Rational::Constants& constants) {
  const auto& [a, b, channel_dim] = constants;
  if (!a.fit(numerator) || !b.fit(denominator)) return false;
  if (a.length < 2 || a.length > 9 || b.length < 1 || b.length > 8) return false;
  const int64_t groups = std::max(a.count, b.count);
  if (a.count < 1 || b.count < 1 || (a.count != b.count && std::min(a.count, b.count) > 1)) {
    return false;
  }
  const auto dtype = x.scalar_type();
  if (!is_float(dtype)) return false;
  const auto compute = dtype == at::kDouble ? at::kDouble : at::kFloat;
  if (numerator.scalar_type() != compute || denominator.scalar_type() != compute) return false;
  if (numerator.device() != x.device() || denominator.device() != x.device()) return false;
  if (!supported_devices[x.is_cuda()]) return false;
  return channel_dim >= -x.dim() && channel_dim < x.dim() && x.size(channel_dim) % groups == 0;
}

PyObject* call_rational(const Tensor& x, const Tensor& numerator, const Tensor& denominator,
                        const Rational::Constants& constants) {
  if (!enabled || !is_plain_thread() || !is_plain(x) || !is_plain(numerator) ||
      !is_plain(denominator) || !fit(x, numerator, denominator, constants)) {
    Py_RETURN_NONE;
  }
  const auto out_dtype = autocast_dtype(x);
  if (out_dtype && x.scalar_type() != at::kFloat) Py_RETURN_NONE;
  Tensor y;
  {
    const pybind11::gil_scoped_release no_gil;
    y = Rational::call(x, numerator, denominator, constants, out_dtype);
  }
  return THPVariable_Wrap(std::move(y));
}

// rational(x, numerator, denominator, channel_dim): coefficients [rows, length].
PyObject* rational(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_VALUE(count == 4, "rational takes 4 arguments");
  const Tensor* tensors[3];
  for (int i = 0; i < 3; ++i) {
    if (!(tensors[i] = tensor_of(arguments[i]))) Py_RETURN_NONE;
  }
  const auto& [x, a, b] = tensors;
  const auto channel_dim = int_of(arguments[3]);
  if (a->dim() != 2 || b->dim() != 2 || !channel_dim) Py_RETURN_NONE;
  const Rational::Constants constants{
      {a->size(0), a->size(1)}, {b->size(0), b->size(1)}, *channel_dim};
  return call_rational(*x, *a, *b, constants);
  END_HANDLE_TH_ERRORS
}

// The shapes of a GroupRational's coefficients by its attributes num_groups, order and
// shared_numerator.
bool read_rows(PyObject* const* attributes, Rows& numerator, Rows& denominator) {
  PyObject *order = attributes[1], *shared = attributes[2];
  if (!PyTuple_CheckExact(order) || PyTuple_GET_SIZE(order) != 2 || !PyBool_Check(shared)) {
    return false;
  }
  const auto groups = int_of(attributes[0]);
  const auto m = int_of(PyTuple_GET_ITEM(order, 0)), n = int_of(PyTuple_GET_ITEM(order, 1));
  if (!groups || !m || !n || *m > 8 || *n > 8) return false;
  denominator = {*groups, *n};
  numerator = {shared == Py_True ? 1 : *groups, *m + 1};
  return true;
}

// The channel dimension that a GroupRational's attribute means, if it is right.
std::optional<int64_t> read_channel_dim(PyObject* attribute, int64_t dims) {
  if (const auto dim = int_of(attribute)) return dim;
  if (attribute != Py_None || dims == 3) return std::nullopt;
  return dims > 3 ? 1 : -1;
}

// group_rational(x, weight_numerator, weight_denominator, num_groups, order, shared_numerator,
// channel_dim), as GroupRational has them.
PyObject* group_rational(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_VALUE(count == 7, "group_rational takes 7 arguments");
  const Tensor* tensors[3];
  for (int i = 0; i < 3; ++i) {
    if (!(tensors[i] = tensor_of(arguments[i]))) Py_RETURN_NONE;
  }
  const auto& [x, a, b] = tensors;
  Rational::Constants constants;
  if (!read_rows(arguments + 3, constants.numerator, constants.denominator)) Py_RETURN_NONE;
  const auto channel_dim = read_channel_dim(arguments[6], x->dim());
  if (!channel_dim) Py_RETURN_NONE;
  constants.channel_dim = *channel_dim;
  return call_rational(*x, *a, *b, constants);
  END_HANDLE_TH_ERRORS
}

// Whether layer_norm_rational's kernel takes them, but for the device.
bool fit(const variable_list& inputs, const LayerNormRational::Constants& constants) {
  const Tensor& x = inputs[0];
  const auto& [a, b, eps] = constants;
  if (x.scalar_type() != at::kFloat || x.dim() == 0) return false;
  for (const Tensor& tensor : inputs) {
    if (tensor.scalar_type() != at::kFloat || tensor.device() != x.device()) return false;
  }
  const int64_t channels = x.size(-1);
  for (const Tensor* tensor : {&inputs[1], &inputs[2]}) {
    if (tensor->dim() != 1 || tensor->size(0) != channels) return false;
  }
  return a.fit(inputs[3]) && b.fit(inputs[4]) && a.length >= 2 && a.length <= limits.m + 1 &&
         b.length >= 1 && b.length <= limits.n && b.count >= 1 && channels <= limits.channels &&
         channels % (4 * b.count) == 0;
}

// layer_norm_rational(x, weight, bias, weight_numerator, weight_denominator, num_groups, order,
// shared_numerator, channel_dim, eps), as nn.LayerNorm and GroupRational have them.
PyObject* layer_norm_rational(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_VALUE(count == 10, "layer_norm_rational takes 10 arguments");
  if (!enabled || !is_plain_thread()) Py_RETURN_NONE;
  variable_list inputs;
  inputs.reserve(5);
  for (int i = 0; i < 5; ++i) {
    const Tensor* tensor = tensor_of(arguments[i]);
    if (!tensor || !is_plain(*tensor)) Py_RETURN_NONE;
    inputs.push_back(*tensor);
  }
  LayerNormRational::Constants constants;
  if (!read_rows(arguments + 5, constants.numerator, constants.denominator)) Py_RETURN_NONE;
  const int64_t dims = inputs[0].dim();
  const auto channel_dim = read_channel_dim(arguments[8], dims);
  if (!channel_dim || (*channel_dim != -1 && *channel_dim != dims - 1)) Py_RETURN_NONE;
  constants.eps = PyFloat_AsDouble(arguments[9]);
  if (PyErr_Occurred()) return nullptr;
  if (!fit(inputs, constants)) Py_RETURN_NONE;
  Tensor y;
  {
    const pybind11::gil_scoped_release no_gil;
    y = LayerNormRational::call(inputs, constants, autocast_dtype(inputs[0]));
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// linear(x, weight, bias or None), as torch.nn.functional.linear.
PyObject* linear(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_VALUE(count == 3, "linear takes 3 arguments");
  // Hooks of saved tensors are to see what they always saw.
  if (!enabled || !is_plain_thread() ||
      !at::SavedTensorDefaultHooks::get_tls_state().stack.empty()) {
    Py_RETURN_NONE;
  }
  variable_list inputs;
  inputs.reserve(3);
  for (int i = 0; i < (arguments[2] == Py_None ? 2 : 3); ++i) {
    const Tensor* tensor = tensor_of(arguments[i]);
    if (!tensor || !is_plain(*tensor)) Py_RETURN_NONE;
    inputs.push_back(*tensor);
  }
  const Tensor &x = inputs[0], &weight = inputs[1];
  const auto device = x.device();
  const bool autocast = at::autocast::is_autocast_enabled(device.type());
  const auto dtype = autocast ? at::autocast::get_autocast_dtype(device.type()) : x.scalar_type();
  for (const Tensor& tensor : inputs) {
    const auto its = tensor.scalar_type();
    const bool fits = autocast ? is_float(its) && its != at::kDouble : its == dtype;
    if (!fits || tensor.device() != device) Py_RETURN_NONE;
  }
  if (!is_float(dtype) || x.dim() < 2 || weight.dim() != 2 || x.size(-1) != weight.size(1) ||
      (inputs.size() > 2 && (inputs[2].dim() != 1 || inputs[2].size(0) != weight.size(0)))) {
    Py_RETURN_NONE;
  }
  if (x.size(-1) == 0 || weight.size(0) == 0) Py_RETURN_NONE;  // whose rows have no number
  Tensor y;
  {
    const pybind11::gil_scoped_release no_gil;
    y = Linear::call(inputs, dtype);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// serve_rational(cpu, cuda, gradients): the devices that have kernels, and what computes gradients
// in calls that are not plain.
PyObject* serve_rational(PyObject*, PyObject* arguments) {
  int cpu, cuda;
  PyObject* gradients;
  if (!PyArg_ParseTuple(arguments, "ppO", &cpu, &cuda, &gradients)) return nullptr;
  supported_devices[0] = cpu;
  supported_devices[1] = cuda;
  Rational::python = Py_NewRef(gradients);
  Py_RETURN_NONE;
}

// serve_layer_norm_rational(channels, m, n, gradients): the most that the kernel takes.
PyObject* serve_layer_norm_rational(PyObject*, PyObject* arguments) {
  PyObject* gradients;
  if (!PyArg_ParseTuple(arguments, "LLLO", &limits.channels, &limits.m, &limits.n, &gradients)) {
    return nullptr;
  }
  LayerNormRational::python = Py_NewRef(gradients);
  Py_RETURN_NONE;
}

// serve_linear(gradients).
PyObject* serve_linear(PyObject*, PyObject* gradients) {
  Linear::python = Py_NewRef(gradients);
  Py_RETURN_NONE;
}

// enable(wanted): turns all of it on or off.
PyObject* enable(PyObject*, PyObject* wanted) {
  const int value = PyObject_IsTrue(wanted);
  if (value < 0) return nullptr;
  enabled = value;
  Py_RETURN_NONE;
}

PyObject* is_enabled(PyObject*, PyObject*) { return PyBool_FromLong(enabled); }

// What a table of methods has in the place of a function of another type.
template <typename Function>
PyCFunction as_method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace
}  // namespace kat_mm

#define KAT_MM_JOIN(prefix, name) prefix##name
#define KAT_MM_INIT(name) KAT_MM_JOIN(PyInit_, name)

PyMODINIT_FUNC KAT_MM_INIT(TORCH_EXTENSION_NAME)() {
  using namespace kat_mm;
  static PyMethodDef methods[] = {
      {"rational", as_method(rational), METH_FASTCALL, nullptr},
      {"group_rational", as_method(group_rational), METH_FASTCALL, nullptr},
      {"layer_norm_rational", as_method(layer_norm_rational), METH_FASTCALL, nullptr},
      {"linear", as_method(linear), METH_FASTCALL, nullptr},
      {"serve_linear", serve_linear, METH_O, nullptr},
      {"serve_rational", serve_rational, METH_VARARGS, nullptr},
      {"serve_layer_norm_rational", serve_layer_norm_rational, METH_VARARGS, nullptr},
      {"enable", enable, METH_O, nullptr},
      {"is_enabled", is_enabled, METH_NOARGS, nullptr},
      {}};
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "autograd", nullptr, -1, methods};
  add_node_type<Rational>();
  add_node_type<LayerNormRational>();
  add_node_type<Linear>();
  return PyModule_Create(&definition);
}
