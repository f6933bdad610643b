// CUDA kernels of kat_mm::upsample_cross_entropy and its backward: bilinear resizing of logits,
// cross entropy and accuracy, without the resized logits.
//
// Forward, a thread has one pixel of the labels and goes through the classes, which it interpolates
// from four logits each. Backward, a thread has one place of the logits and kClasses of their
// classes, and goes through the pixels that sample it: sums are gathered in a fixed order, without
// atomics.
#include "reduce.cuh"
#include "resize.cuh"

namespace kat_mm {
namespace {

constexpr int kThreads = 256;
constexpr int kBackwardThreads = 128;
constexpr int kClasses = 8;  // at a time
constexpr int kTerms = 4;  // the loss, the weight of its pixels, how many there are, how many right

// Within an image they are small enough for 32 bits.
struct Strides {
  int64_t image;
  int channel, row, column;
};

template <typename T>
struct Problem {
  int64_t images;
  int classes;
  Side<T> y, x;
  Strides strides;
  int64_t ignore_index;
};

__device__ __forceinline__ float exponential(float v) { return __expf(v); }
__device__ __forceinline__ double exponential(double v) { return exp(v); }
__device__ __forceinline__ float logarithm(float v) { return logf(v); }
__device__ __forceinline__ double logarithm(double v) { return log(v); }

template <typename T>
__device__ __forceinline__ T blend(T a, T b, T weight) {
  return a + weight * (b - a);
}

// Writes for each pixel the logarithm of its partition function less that of its class weight,
// which is infinite for pixels that don't count, and the sums of each block.
template <typename S, typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const S* __restrict__ logits, const int64_t* __restrict__ labels,
                   const T* __restrict__ class_weight, T* __restrict__ partition,
                   double* __restrict__ partials, Problem<T> p) {
  const int64_t pixels = p.images * p.y.out * p.x.out;
  const int64_t pixel = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  double terms[kTerms] = {0, 0, 0, 0};
  if (pixel < pixels) {
    const int column = static_cast<int>(pixel % p.x.out);
    const int64_t rest = pixel / p.x.out;
    const Sample<T> y = p.y.at(static_cast<int>(rest % p.y.out)), x = p.x.at(column);
    const S* image = logits + rest / p.y.out * p.strides.image;
    const int corners[4] = {y.first * p.strides.row + x.first * p.strides.column,
                            y.first * p.strides.row + x.second * p.strides.column,
                            y.second * p.strides.row + x.first * p.strides.column,
                            y.second * p.strides.row + x.second * p.strides.column};
    const T weights[4] = {(1 - y.weight) * (1 - x.weight), (1 - y.weight) * x.weight,
                          y.weight * (1 - x.weight), y.weight * x.weight};
    const auto value = [&](int c) -> T {
      const int at = c * p.strides.channel;
      T sum = weights[0] * widen(image[corners[0] + at]);
#pragma unroll
      for (int i = 1; i < 4; ++i) sum += weights[i] * widen(image[corners[i] + at]);
      return sum;
    };
    T largest = -INFINITY, sum = 0;
    int best = 0;
    for (int start = 0; start < p.classes; start += kClasses) {
      T values[kClasses], highest = largest;
#pragma unroll
      for (int k = 0; k < kClasses; ++k) {
        values[k] = start + k < p.classes ? value(start + k) : T(-INFINITY);
        if (values[k] > highest) {
          highest = values[k];
          best = start + k;
        }
      }
      if (highest > largest) sum *= exponential(largest - highest);
      largest = highest;
#pragma unroll
      for (int k = 0; k < kClasses; ++k) sum += exponential(values[k] - largest);
    }
    const T all = largest + logarithm(sum);
    const int64_t label = labels[pixel];
    T shifted = INFINITY;
    if (label != p.ignore_index) {
      // As torch's cross entropy: an assertion of the device.
      if (label < 0 || label >= p.classes) __trap();
      const T weight = class_weight ? class_weight[label] : T(1);
      terms[0] = weight * (all - value(static_cast<int>(label)));
      terms[1] = weight;
      terms[2] = 1;
      terms[3] = best == label;
      shifted = all - logarithm(weight);
    }
    partition[pixel] = shifted;
  }
  store_block_sums<double, kTerms, kThreads>(terms, partials + blockIdx.x * kTerms, 1);
}

// Adds up the blocks' sums, in a fixed order: the loss, and the other terms.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const double* __restrict__ partials, int64_t blocks, T* __restrict__ loss,
                  double* __restrict__ statistics) {
  __shared__ double totals[kTerms];
  double terms[kTerms] = {0, 0, 0, 0};
  for (int64_t block = threadIdx.x; block < blocks; block += kThreads) {
#pragma unroll
    for (int k = 0; k < kTerms; ++k) terms[k] += partials[block * kTerms + k];
  }
  store_block_sums<double, kTerms, kThreads>(terms, totals, 1);
  __syncthreads();
  if (threadIdx.x == 0) *loss = static_cast<T>(totals[0]);
  if (threadIdx.x > 0 && threadIdx.x < kTerms) statistics[threadIdx.x - 1] = totals[threadIdx.x];
}

template <typename S, typename T>
__global__ void __launch_bounds__(kBackwardThreads)
    backward_kernel(const T* __restrict__ grad, const S* __restrict__ logits,
                    const int64_t* __restrict__ labels, const T* __restrict__ class_weight,
                    const T* __restrict__ partition, S* __restrict__ grad_logits, Problem<T> p) {
  const int64_t place = int64_t{blockIdx.x} * kBackwardThreads + threadIdx.x;
  if (place >= p.images * p.y.in * p.x.in) return;
  const int column = static_cast<int>(place % p.x.in);
  const int row = static_cast<int>(place / p.x.in % p.y.in);
  const int64_t image = place / p.x.in / p.y.in;
  const int start = blockIdx.y * kClasses;
  logits += image * p.strides.image + int64_t{start} * p.strides.channel;
  const int64_t pixel_base = image * p.y.out * p.x.out;
  const int columns[3] = {max(column - 1, 0), column, min(column + 1, p.x.in - 1)};
  const int x_ends[3] = {p.x.first_output(column - 1), p.x.first_output(column),
                         p.x.first_output(column + 1)};
  const int y_ends[3] = {p.y.first_output(row - 1), p.y.first_output(row),
                         p.y.first_output(row + 1)};
  T sums[kClasses] = {};
  // The pixels between this place and the one before it, then those behind it.
#pragma unroll 1
  for (int below = 0; below < 2; ++below) {
    if (y_ends[below] >= y_ends[below + 1]) continue;
    const int rows[2] = {max(row - 1 + below, 0), min(row + below, p.y.in - 1)};
    T corners[2][3][kClasses];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        const S* from = logits + rows[i] * p.strides.row + columns[j] * p.strides.column;
#pragma unroll
        for (int k = 0; k < kClasses; ++k) {
          corners[i][j][k] = start + k < p.classes ? widen(from[k * p.strides.channel]) : T(0);
        }
      }
    }
#pragma unroll 1
    for (int py = y_ends[below]; py < y_ends[below + 1]; ++py) {
      const Sample<T> y = p.y.at(py);
      const T y_weight =
          (y.first == row ? 1 - y.weight : T(0)) + (y.second == row ? y.weight : T(0));
      const int64_t line = pixel_base + int64_t{py} * p.x.out;
#pragma unroll
      for (int right = 0; right < 2; ++right) {
        T from[kClasses], step[kClasses];
#pragma unroll
        for (int k = 0; k < kClasses; ++k) {
          from[k] = blend(corners[0][right][k], corners[1][right][k], y.weight);
          step[k] = blend(corners[0][right + 1][k], corners[1][right + 1][k], y.weight) - from[k];
        }
#pragma unroll 1
        for (int px = x_ends[right]; px < x_ends[right + 1]; ++px) {
          const Sample<T> x = p.x.at(px);
          const T weight = y_weight * ((x.first == column ? 1 - x.weight : T(0)) +
                                       (x.second == column ? x.weight : T(0)));
          const T shifted = partition[line + px];
#pragma unroll
          for (int k = 0; k < kClasses; ++k) {
            sums[k] += weight * exponential(from[k] + x.weight * step[k] - shifted);
          }
          const int64_t label = labels[line + px] - start;
          if (label >= 0 && label < kClasses && label + start != p.ignore_index) {
            const T of_label = weight * (class_weight ? class_weight[label + start] : T(1));
#pragma unroll
            for (int k = 0; k < kClasses; ++k) sums[k] -= k == label ? of_label : T(0);
          }
        }
      }
    }
  }
  grad_logits += image * p.strides.image + int64_t{start} * p.strides.channel +
                 row * p.strides.row + column * p.strides.column;
  const T scale = *grad;
#pragma unroll
  for (int k = 0; k < kClasses; ++k) {
    if (start + k < p.classes) grad_logits[k * p.strides.channel] = narrow(scale * sums[k], S{});
  }
}

// --- calls -------------------------------------------------------------------------------------

template <typename F>
void dispatch_logits(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Float) return f(float{}, float{});
  if (dtype == ScalarType::Half) return f(__half{}, float{});
  if (dtype == ScalarType::BFloat16) return f(__nv_bfloat16{}, float{});
  if (dtype == ScalarType::Double) return f(double{}, double{});
  KAT_MM_CHECK(false, "upsample_cross_entropy: logits must be of a floating dtype");
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

ScalarType compute_dtype(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <typename T>
Problem<T> describe(const Tensor& logits, const Tensor& labels, int64_t ignore_index,
                    bool align_corners) {
  return {logits.size(0),
          static_cast<int>(logits.size(1)),
          Side<T>(logits.size(2), labels.size(1), align_corners),
          Side<T>(logits.size(3), labels.size(2), align_corners),
          {logits.stride(0), static_cast<int>(logits.stride(1)), static_cast<int>(logits.stride(2)),
           static_cast<int>(logits.stride(3))},
          ignore_index};
}

void check(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& class_weight) {
  KAT_MM_CHECK(logits.dim() == 4 && labels.dim() == 3 && logits.size(0) == labels.size(0),
               "upsample_cross_entropy: logits must be [B, C, h, w] and labels [B, H, W]");
  KAT_MM_CHECK(logits.numel() > 0 || labels.numel() == 0,
               "upsample_cross_entropy: the logits are empty and the labels are not");
  int64_t extent = 1;
  for (int64_t d = 1; d < 4; ++d) extent += (logits.size(d) - 1) * logits.stride(d);
  KAT_MM_CHECK(extent < (int64_t{1} << 31),
               "upsample_cross_entropy: the logits of an image must lie within 2^31 elements");
  KAT_MM_CHECK(labels.scalar_type() == ScalarType::Long,
               "upsample_cross_entropy: labels must be int64");
  KAT_MM_CHECK(labels.get_device_index() == logits.get_device_index() && !labels.is_cpu(),
               "upsample_cross_entropy: logits and labels must be on one device");
  if (class_weight) {
    KAT_MM_CHECK(class_weight->numel() == logits.size(1) &&
                     class_weight->scalar_type() == compute_dtype(logits) &&
                     class_weight->get_device_index() == logits.get_device_index(),
                 "upsample_cross_entropy: class_weight must be [C] in float32 (float64 for "
                 "float64 logits), on the device of the logits");
  }
}

std::tuple<Tensor, Tensor, Tensor> upsample_cross_entropy_cuda(Tensor logits, Tensor labels,
                                                               std::optional<Tensor> class_weight,
                                                               int64_t ignore_index,
                                                               bool align_corners) {
  check(logits, labels, class_weight);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  labels = make_contiguous(labels);
  if (class_weight) class_weight = make_contiguous(*class_weight);
  const int64_t blocks = ceil_divide(labels.numel(), kThreads);
  Tensor loss = empty<0>({}, compute_dtype(logits), logits);
  Tensor statistics = empty<1>({kTerms - 1}, ScalarType::Double, logits);
  Tensor partition =
      empty<3>({labels.size(0), labels.size(1), labels.size(2)}, compute_dtype(logits), logits);
  Tensor partials = empty<2>({blocks, kTerms}, ScalarType::Double, logits);
  const cudaStream_t stream = current_stream(logits.get_device());
  dispatch_logits(logits.scalar_type(), [&](auto s, auto t) {
    using S = decltype(s);
    using T = decltype(t);
    if (blocks > 0) {
      forward_kernel<S, T><<<grid_size(blocks), kThreads, 0, stream>>>(
          data<S>(logits), data<int64_t>(labels), class_weight ? data<T>(*class_weight) : nullptr,
          mutable_data<T>(partition), mutable_data<double>(partials),
          describe<T>(logits, labels, ignore_index, align_corners));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    reduce_kernel<T><<<1, kThreads, 0, stream>>>(
        data<double>(partials), blocks, mutable_data<T>(loss), mutable_data<double>(statistics));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {loss, statistics, partition};
}

Tensor upsample_cross_entropy_backward_cuda(Tensor grad, Tensor logits, Tensor labels,
                                            Tensor partition, std::optional<Tensor> class_weight,
                                            int64_t ignore_index, bool align_corners) {
  check(logits, labels, class_weight);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  labels = make_contiguous(labels);
  partition = make_contiguous(partition);
  if (class_weight) class_weight = make_contiguous(*class_weight);
  KAT_MM_CHECK(grad.numel() == 1 && grad.scalar_type() == compute_dtype(logits) &&
                   partition.scalar_type() == compute_dtype(logits),
               "upsample_cross_entropy_backward: grad and partition must be those of the "
               "forward pass");
  Tensor grad_logits = torch::stable::empty_like(logits);
  if (logits.numel() == 0) return grad_logits;
  const bool same = [&] {
    for (int64_t d = 0; d < 4; ++d) {
      if (grad_logits.stride(d) != logits.stride(d)) return false;
    }
    return true;
  }();
  if (!same) logits = torch::stable::contiguous(logits);
  if (!same) grad_logits = torch::stable::empty_like(logits);
  const int64_t places = logits.size(0) * logits.size(2) * logits.size(3);
  const dim3 grid(grid_size(ceil_divide(places, kBackwardThreads)),
                  static_cast<unsigned>(ceil_divide(logits.size(1), kClasses)));
  dispatch_logits(logits.scalar_type(), [&](auto s, auto t) {
    using S = decltype(s);
    using T = decltype(t);
    backward_kernel<S, T><<<grid, kBackwardThreads, 0, current_stream(logits.get_device())>>>(
        data<T>(grad), data<S>(logits), data<int64_t>(labels),
        class_weight ? data<T>(*class_weight) : nullptr, data<T>(partition),
        mutable_data<S>(grad_logits), describe<T>(logits, labels, ignore_index, align_corners));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&upsample_cross_entropy_cuda));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&upsample_cross_entropy_backward_cuda));
}

}  // namespace kat_mm
