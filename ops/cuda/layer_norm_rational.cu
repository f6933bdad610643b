// CUDA kernels of kat_mm::layer_norm_rational and its backward: a layer norm over the last
// dimension and the rational function of its result, in one pass over memory each.
//
// Forward, a warp holds one row in registers. Backward, a block takes several rows at a time and
// each of its threads the same channels of all of them, so that the coefficients of its group and
// the sums of all parameter gradients stay in registers.
#include "reduce.cuh"

namespace kat_mm {
namespace {

constexpr int kM = 5, kN = 4;
constexpr int kV = 4;                          // channels in a vector
constexpr int kMaxVectors = 8;                 // of a row, for one lane
constexpr int kForwardRows = 4;                // a block, one for each warp
constexpr int kBackwardRows = 4;               // a step of a block
constexpr int kMaxThreads = 32 * kMaxVectors;  // backward, one for each vector of a row
constexpr int kColumnRows = 8;
constexpr int kTerms = Coefficients<float, kM, kN>::kTerms;

// Padded to whole vectors, to be read from shared memory with few instructions.
struct alignas(16) SharedCoefficients {
  Coefficients<float, kM, kN> c;
};

struct Shape {
  int64_t rows;
  int columns;        // vectors in a row
  int group_columns;  // of one group
  float channels;
};

// --- kernels -----------------------------------------------------------------------------------

// Statistics are written as [rows, 2]: mean and reciprocal standard deviation.
template <typename Y>
__global__ void __launch_bounds__(32 * kForwardRows)
    forward_kernel(const float* __restrict__ x, const float* __restrict__ weight,
                   const float* __restrict__ bias, const float* __restrict__ numerator,
                   const float* __restrict__ denominator, Y* __restrict__ y,
                   float2* __restrict__ statistics, CoefficientRows rows, Shape shape,
                   Divisor by_group, float eps) {
  extern __shared__ SharedCoefficients coefficients[];
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * kForwardRows + threadIdx.x / 32;
  const int64_t start = row * shape.columns;
  float values[kMaxVectors][kV];
  float sum = 0;
#pragma unroll
  for (int v = 0; v < kMaxVectors; ++v) {
    const int column = v * 32 + lane;
    if (row >= shape.rows || column >= shape.columns) break;
    widen(load<float, kV>(x, start + column), values[v]);
#pragma unroll
    for (int e = 0; e < kV; ++e) sum += values[v][e];
  }
  for (int group = threadIdx.x; group < rows.groups; group += blockDim.x) {
    coefficients[group].c = load_coefficients<float, kM, kN>(numerator, denominator, rows, group);
  }
  __syncthreads();
  if (row >= shape.rows) return;

  const float mean = warp_sum(sum) / shape.channels;
  float squares = 0;
#pragma unroll
  for (int v = 0; v < kMaxVectors; ++v) {
    if (v * 32 + lane >= shape.columns) break;
#pragma unroll
    for (int e = 0; e < kV; ++e) {
      values[v][e] -= mean;
      squares += values[v][e] * values[v][e];
    }
  }
  const float scale = rsqrtf(warp_sum(squares) / shape.channels + eps);
  if (lane == 0) statistics[row] = {mean, scale};
#pragma unroll
  for (int v = 0; v < kMaxVectors; ++v) {
    const int column = v * 32 + lane;
    if (column >= shape.columns) break;
    const auto c = coefficients[by_group.quotient(uint32_t(column))].c;
    float w[kV], b[kV];
    widen(load<float, kV>(weight, column), w);
    widen(load<float, kV>(bias, column), b);
#pragma unroll
    for (int e = 0; e < kV; ++e) values[v][e] = rational(c, values[v][e] * scale * w[e] + b[e]);
    store(y, start + column, narrow<Y, kV>(values[v]));
  }
}

// Partial sums are written as [kTerms, groups, parts] for the coefficients, and as
// [parts, 2, channels] for weight and bias; parts are blocks.
template <typename G>
__global__ void __launch_bounds__(kMaxThreads, 2)
    backward_kernel(const G* __restrict__ grad, const float* __restrict__ x,
                    const float2* __restrict__ statistics, const float* __restrict__ weight,
                    const float* __restrict__ bias, const float* __restrict__ numerator,
                    const float* __restrict__ denominator, float* __restrict__ grad_x,
                    float* __restrict__ partials, float* __restrict__ affine_partials,
                    CoefficientRows rows, Shape shape) {
  __shared__ float shared[kTerms][kMaxThreads];
  const int column = threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warps = blockDim.x / 32;
  const bool active = column < shape.columns;  // the rest of the last warp only joins the sums

  Coefficients<float, kM, kN> c = {};
  float w[kV] = {}, b[kV] = {};
  if (active) {
    c = load_coefficients<float, kM, kN>(numerator, denominator, rows,
                                         column / shape.group_columns);
    widen(load<float, kV>(weight, column), w);
    widen(load<float, kV>(bias, column), b);
  }
  const Slopes<float, kM, kN> slopes(c);
  float sums[kTerms] = {}, weight_sums[kV] = {}, bias_sums[kV] = {};

  int parity = 0;
  for (int64_t first = int64_t{blockIdx.x} * kBackwardRows; first < shape.rows;
       first += int64_t{gridDim.x} * kBackwardRows, parity ^= 1) {
    // Rows beyond the last one have a scale and a gradient of zero, which adds nothing.
    Vector<float, kV> xs[kBackwardRows] = {};
    Vector<G, kV> gs[kBackwardRows] = {};
    float2 stats[kBackwardRows] = {};
#pragma unroll
    for (int r = 0; r < kBackwardRows; ++r) {
      if (active && first + r < shape.rows) {
        xs[r] = load<float, kV>(x, (first + r) * shape.columns + column);
        gs[r] = load<G, kV>(grad, (first + r) * shape.columns + column);
        stats[r] = statistics[first + r];
      }
    }
    float deltas[kBackwardRows][kV];       // gradient of the normalised x
    float totals[2 * kBackwardRows] = {};  // of each row: sum of deltas, and of deltas times it
#pragma unroll
    for (int r = 0; r < kBackwardRows; ++r) {
      float values[kV], grads[kV];
      widen(xs[r], values);
      widen(gs[r], grads);
#pragma unroll
      for (int e = 0; e < kV; ++e) {
        const float normed = (values[e] - stats[r].x) * stats[r].y;
        const float g = rational_backward(c, slopes, normed * w[e] + b[e], grads[e], sums, 1);
        weight_sums[e] += g * normed;
        bias_sums[e] += g;
        deltas[r][e] = g * w[e];
        totals[2 * r] += deltas[r][e];
        totals[2 * r + 1] += deltas[r][e] * normed;
      }
    }
    // Two buffers in turns: one barrier a step is enough.
    float (*exchange)[2 * kBackwardRows] = reinterpret_cast<float (*)[2 * kBackwardRows]>(
        &shared[0][0] + parity * 2 * kBackwardRows * (kMaxThreads / 32));
#pragma unroll
    for (int i = 0; i < 2 * kBackwardRows; ++i) {
      const float sum = warp_sum(totals[i]);
      if (lane == 0) exchange[warp][i] = sum;
      totals[i] = 0;
    }
    __syncthreads();
    for (int other = 0; other < warps; ++other) {
#pragma unroll
      for (int i = 0; i < 2 * kBackwardRows; ++i) totals[i] += exchange[other][i];
    }
#pragma unroll
    for (int r = 0; r < kBackwardRows; ++r) {
      if (active && first + r < shape.rows) {
        float values[kV];
        widen(xs[r], values);
        const float shift = totals[2 * r] / shape.channels;
        const float slope = totals[2 * r + 1] / shape.channels;
#pragma unroll
        for (int e = 0; e < kV; ++e) {
          const float normed = (values[e] - stats[r].x) * stats[r].y;
          values[e] = stats[r].y * (deltas[r][e] - shift - normed * slope);
        }
        store(grad_x, (first + r) * shape.columns + column, narrow<float, kV>(values));
      }
    }
  }

  const int64_t part = blockIdx.x, parts = gridDim.x;
  if (active) {
    store(affine_partials, 2 * part * shape.columns + column, narrow<float, kV>(weight_sums));
    store(affine_partials, (2 * part + 1) * shape.columns + column, narrow<float, kV>(bias_sums));
  }
  __syncthreads();  // the last step may still read what is overwritten now
#pragma unroll
  for (int k = 0; k < kTerms; ++k) shared[k][column] = sums[k];
  __syncthreads();
  for (int i = threadIdx.x; i < rows.groups * kTerms; i += blockDim.x) {
    const float* from = &shared[i % kTerms][i / kTerms * shape.group_columns];
    float sum = 0;
    for (int t = 0; t < shape.group_columns; ++t) sum += from[t];
    partials[(i % kTerms * rows.groups + i / kTerms) * parts + part] = sum;
  }
}

// Adds the partial sums [parts, 2, channels] of weight and bias, in fp64: 32 channels a block.
__global__ void __launch_bounds__(32 * kColumnRows)
    reduce_affine_kernel(const float* __restrict__ partials, float* __restrict__ grad_weight,
                         float* __restrict__ grad_bias, int channels, int64_t parts) {
  wait_for_previous_kernel();
  __shared__ double shared[kColumnRows][32];
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32;
  const int column = blockIdx.x * 32 + lane;
  double sum = 0;
  if (column < 2 * channels) {
    for (int64_t part = row; part < parts; part += kColumnRows) {
      sum += double(partials[part * 2 * channels + column]);
    }
  }
  shared[row][lane] = sum;
  __syncthreads();
  if (row > 0 || column >= 2 * channels) return;
  for (int r = 1; r < kColumnRows; ++r) sum += shared[r][lane];
  (column < channels ? grad_weight[column] : grad_bias[column - channels]) = float(sum);
}

// --- launches ----------------------------------------------------------------------------------

// Contiguous, and at an address that vectors can be read from.
Tensor make_readable(const Tensor& tensor) {
  const Tensor contiguous = make_contiguous(tensor);
  if (reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 == 0) return contiguous;
  Tensor copy = empty_like(contiguous, contiguous.scalar_type());
  torch::stable::copy_(copy, contiguous);
  return copy;
}

// Checks what the kernels ask for beyond the checks of `rational`, and returns the sizes.
Shape check_shape(const Operands& in, const Tensor& weight, const Tensor& bias) {
  const int64_t channels = in.x.size(-1);
  KAT_MM_CHECK(in.x.scalar_type() == ScalarType::Float, "layer_norm_rational: x must be float32");
  for (const Tensor* tensor : {&weight, &bias}) {
    KAT_MM_CHECK(tensor->scalar_type() == ScalarType::Float && tensor->dim() == 1 &&
                     tensor->size(0) == channels &&
                     tensor->get_device_index() == in.x.get_device_index(),
                 "layer_norm_rational: weight and bias must be float32 [", channels,
                 "], on the device of x");
  }
  KAT_MM_CHECK(in.rows.m <= kM && in.rows.n <= kN,
               "layer_norm_rational: orders m and n must be at most 5 and 4, got ", in.rows.m,
               " and ", in.rows.n);
  KAT_MM_CHECK(
      channels % (kV * in.rows.groups) == 0 && channels <= 32 * kMaxVectors * kV,
      "layer_norm_rational: channels must be at most 1024 and a multiple of 4 in each of the ",
      in.rows.groups, " groups, got ", channels);
  return {channels == 0 ? 0 : in.x.numel() / channels, int(channels / kV),
          int(channels / kV / in.rows.groups), float(channels)};
}

template <typename F>
void dispatch_output(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Float) return f(float{});
  if (dtype == ScalarType::Half) return f(__half{});
  if (dtype == ScalarType::BFloat16) return f(__nv_bfloat16{});
  KAT_MM_CHECK(false, "layer_norm_rational: the output must be float32, float16 or bfloat16");
}

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* write(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

std::tuple<Tensor, Tensor> layer_norm_rational_cuda(Tensor x, Tensor weight, Tensor bias,
                                                    Tensor numerator, Tensor denominator,
                                                    double eps,
                                                    std::optional<ScalarType> out_dtype) {
  const Operands in(make_readable(x), numerator, denominator, -1);
  const Shape shape = check_shape(in, weight, bias);
  const torch::stable::accelerator::DeviceGuard guard(in.x.get_device_index());
  weight = make_readable(weight);
  bias = make_readable(bias);
  Tensor y = empty_like(in.x, out_dtype.value_or(ScalarType::Float));
  Tensor statistics = empty<2>({shape.rows, 2}, ScalarType::Float, in.x);
  if (in.x.numel() == 0) return {y, statistics};
  dispatch_output(y.scalar_type(), [&](auto tag) {
    using Y = decltype(tag);
    forward_kernel<Y>
        <<<grid_size(ceil_divide(shape.rows, kForwardRows)), 32 * kForwardRows,
           in.rows.groups * sizeof(SharedCoefficients), current_stream(in.x.get_device())>>>(
            read<float>(in.x), read<float>(weight), read<float>(bias), read<float>(in.numerator),
            read<float>(in.denominator), write<Y>(y), write<float2>(statistics), in.rows, shape,
            Divisor(shape.group_columns, shape.columns), static_cast<float>(eps));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {y, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_norm_rational_backward_cuda(
    Tensor grad, Tensor x, Tensor statistics, Tensor weight, Tensor bias, Tensor numerator,
    Tensor denominator) {
  const Operands in(make_readable(x), numerator, denominator, -1);
  const Shape shape = check_shape(in, weight, bias);
  const torch::stable::accelerator::DeviceGuard guard(in.x.get_device_index());
  weight = make_readable(weight);
  bias = make_readable(bias);
  grad = make_readable(match_memory(grad, in.x));
  KAT_MM_CHECK(statistics.scalar_type() == ScalarType::Float && statistics.is_contiguous() &&
                   statistics.numel() == 2 * shape.rows &&
                   statistics.get_device_index() == in.x.get_device_index(),
               "layer_norm_rational_backward: statistics must be those of the forward pass");
  Tensor grad_x = empty_like(in.x, ScalarType::Float);
  Tensor grad_weight = empty_like(weight, ScalarType::Float);
  Tensor grad_bias = empty_like(bias, ScalarType::Float);
  CoefficientGrads grads(in.numerator, in.denominator, true);
  if (in.x.numel() == 0) {
    grads.zero();
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
    return {grad_x, grad_weight, grad_bias, grads.numerator, grads.denominator};
  }
  const int device = in.x.get_device();
  const int threads = 32 * int(ceil_divide(shape.columns, 32));
  const int64_t channels = int64_t{shape.columns} * kV;
  const int64_t parts =
      std::min(wave(2 * (kMaxThreads / threads), device), ceil_divide(shape.rows, kBackwardRows));
  Tensor partials = empty<3>({kTerms, in.rows.groups, parts}, ScalarType::Float, in.x);
  Tensor affine_partials = empty<3>({parts, 2, channels}, ScalarType::Float, in.x);
  dispatch_output(grad.scalar_type(), [&](auto tag) {
    using G = decltype(tag);
    backward_kernel<G><<<grid_size(parts), threads, 0, current_stream(device)>>>(
        read<G>(grad), read<float>(in.x), read<float2>(statistics), read<float>(weight),
        read<float>(bias), read<float>(in.numerator), read<float>(in.denominator),
        write<float>(grad_x), write<float>(partials), write<float>(affine_partials), in.rows,
        shape);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  reduce_coefficient_grads<float, kM, kN>(partials, in.denominator, grads, in.rows, parts);
  launch_behind(reduce_affine_kernel, ceil_divide(2 * channels, 32), 32 * kColumnRows, device,
                read<float>(affine_partials), write<float>(grad_weight), write<float>(grad_bias),
                static_cast<int>(channels), parts);
  return {grad_x, grad_weight, grad_bias, grads.numerator, grads.denominator};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) {
  m.impl("layer_norm_rational", TORCH_BOX(&layer_norm_rational_cuda));
  m.impl("layer_norm_rational_backward", TORCH_BOX(&layer_norm_rational_backward_cuda));
}

}  // namespace kat_mm
