// CUDA kernels of kat_mm::upsample_bilinear and its backward, in any floating dtype.
//
// Forward, a thread writes kVector adjacent pixels of each of kPlanes planes, whose places and
// weights are the same; where channels are last in memory, it writes some channels of one pixel.
// Backward, a thread has one place of the input and gathers the pixels that sample it, in a fixed
// order, where torch's kernel adds each pixel to four places by atomics.
#include "resize.cuh"

namespace kat_mm {
namespace {

constexpr int kThreads = 256;
constexpr int kPlanes = 4;

template <typename S, typename T, int kVector>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const S* __restrict__ input, S* __restrict__ output, int64_t planes, Side<T> y,
                   Side<T> x) {
  const int columns = x.out / kVector;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= int64_t{columns} * y.out) return;
  const int row = static_cast<int>(index / columns), column = static_cast<int>(index % columns);
  const Sample<T> v = y.at(row);
  Sample<T> h[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) h[i] = x.at(column * kVector + i);
  const int64_t first = int64_t{blockIdx.y} * kPlanes;
  const int64_t in_plane = int64_t{y.in} * x.in;
#pragma unroll
  for (int p = 0; p < kPlanes; ++p) {
    const int64_t plane = first + p;
    if (plane >= planes) return;
    const S* upper = input + plane * in_plane + int64_t{v.first} * x.in;
    const S* lower = input + plane * in_plane + int64_t{v.second} * x.in;
    T values[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const T a = widen(upper[h[i].first]), b = widen(upper[h[i].second]);
      const T c = widen(lower[h[i].first]), d = widen(lower[h[i].second]);
      const T top = a + h[i].weight * (b - a), bottom = c + h[i].weight * (d - c);
      values[i] = top + v.weight * (bottom - top);
    }
    store<S, kVector>(output, (plane * y.out + row) * columns + column, narrow<S, kVector>(values));
  }
}

template <typename S, typename T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const S* __restrict__ grad, S* __restrict__ grad_input, int64_t planes,
                    Side<T> y, Side<T> x) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= int64_t{y.in} * x.in) return;
  const int row = static_cast<int>(index / x.in), column = static_cast<int>(index % x.in);
  const int y_end = y.first_output(row + 1), x_end = x.first_output(column + 1);
  const int y_start = y.first_output(row - 1), x_start = x.first_output(column - 1);
  const int64_t first = int64_t{blockIdx.y} * kPlanes;
  const int64_t out_plane = int64_t{y.out} * x.out;
  T sums[kPlanes] = {};
  for (int py = y_start; py < y_end; ++py) {
    const Sample<T> v = y.at(py);
    const T y_weight = (v.first == row ? 1 - v.weight : T(0)) + (v.second == row ? v.weight : T(0));
    for (int px = x_start; px < x_end; ++px) {
      const Sample<T> h = x.at(px);
      const T weight = y_weight * ((h.first == column ? 1 - h.weight : T(0)) +
                                   (h.second == column ? h.weight : T(0)));
      const S* pixel = grad + first * out_plane + int64_t{py} * x.out + px;
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) {
        if (first + p < planes) sums[p] += weight * widen(pixel[p * out_plane]);
      }
    }
  }
#pragma unroll
  for (int p = 0; p < kPlanes; ++p) {
    if (first + p < planes) {
      grad_input[(first + p) * y.in * x.in + index] = narrow(sums[p], S{});
    }
  }
}

template <typename S, typename T, int kVector>
__global__ void __launch_bounds__(kThreads)
    forward_last_kernel(const S* __restrict__ input, S* __restrict__ output, int64_t vectors,
                        int columns, Side<T> y, Side<T> x) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= vectors) return;
  const int channel = static_cast<int>(index % columns);
  const int64_t pixel = index / columns, line = pixel / x.out;
  const Sample<T> h = x.at(static_cast<int>(pixel % x.out));
  const Sample<T> v = y.at(static_cast<int>(line % y.out));
  const int64_t image = line / y.out * y.in;
  T corners[4][kVector], values[kVector];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = image + (i < 2 ? v.first : v.second);
    const int64_t place = row * x.in + (i % 2 ? h.second : h.first);
    widen(load<S, kVector>(input, place * columns + channel), corners[i]);
  }
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    const T top = corners[0][k] + h.weight * (corners[1][k] - corners[0][k]);
    const T bottom = corners[2][k] + h.weight * (corners[3][k] - corners[2][k]);
    values[k] = top + v.weight * (bottom - top);
  }
  store<S, kVector>(output, index, narrow<S, kVector>(values));
}

template <typename S, typename T, int kVector>
__global__ void __launch_bounds__(kThreads)
    backward_last_kernel(const S* __restrict__ grad, S* __restrict__ grad_input, int64_t vectors,
                         int columns, Side<T> y, Side<T> x) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= vectors) return;
  const int channel = static_cast<int>(index % columns);
  const int64_t place = index / columns, line = place / x.in;
  const int column = static_cast<int>(place % x.in), row = static_cast<int>(line % y.in);
  const int64_t image = line / y.in * y.out;
  const int y_end = y.first_output(row + 1), x_end = x.first_output(column + 1);
  const int x_start = x.first_output(column - 1);
  T sums[kVector] = {};
  for (int py = y.first_output(row - 1); py < y_end; ++py) {
    const Sample<T> v = y.at(py);
    const T y_weight = (v.first == row ? 1 - v.weight : T(0)) + (v.second == row ? v.weight : T(0));
    for (int px = x_start; px < x_end; ++px) {
      const Sample<T> h = x.at(px);
      const T weight = y_weight * ((h.first == column ? 1 - h.weight : T(0)) +
                                   (h.second == column ? h.weight : T(0)));
      T values[kVector];
      widen(load<S, kVector>(grad, ((image + py) * x.out + px) * columns + channel), values);
#pragma unroll
      for (int k = 0; k < kVector; ++k) sums[k] += weight * values[k];
    }
  }
  store<S, kVector>(grad_input, index, narrow<S, kVector>(sums));
}

// --- calls -------------------------------------------------------------------------------------

template <typename F>
void dispatch_planes(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Float) return f(float{}, float{});
  if (dtype == ScalarType::Half) return f(__half{}, float{});
  if (dtype == ScalarType::BFloat16) return f(__nv_bfloat16{}, float{});
  if (dtype == ScalarType::Double) return f(double{}, double{});
  KAT_MM_CHECK(false, "upsample_bilinear: the input must be of a floating dtype");
}

// Whether channels are last in memory, in vectors that a thread takes.
bool has_channels_last(const Tensor& x, int64_t vector) {
  const int64_t c = x.size(1);
  return c > 1 && c % vector == 0 && x.stride(1) == 1 && x.stride(3) == c &&
         x.stride(2) == c * x.size(3) && x.stride(0) == c * x.size(3) * x.size(2) &&
         reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
}

Tensor empty_channels_last(int64_t images, int64_t channels, int64_t height, int64_t width,
                           const Tensor& like) {
  const std::array<int64_t, 4> sizes = {images, channels, height, width};
  const std::array<int64_t, 4> strides = {channels * height * width, 1, channels * width, channels};
  return empty_strided({sizes.data(), 4}, {strides.data(), 4}, like.scalar_type(), like);
}

// Adjacent pixels of a plane, or channels of a pixel, that a thread takes.
template <typename S>
constexpr int kAdjacent = sizeof(S) == 8 ? 2 : 4;

dim3 grid_of(int64_t pixels, int64_t planes) {
  const int64_t rows = ceil_divide(planes, kPlanes);
  KAT_MM_CHECK(rows < 65536, "upsample_bilinear: ", planes, " planes are more than ",
               65535 * kPlanes);
  return dim3(grid_size(ceil_divide(pixels, kThreads)), static_cast<unsigned>(rows));
}

template <bool kBackward>
Tensor resize_channels_last(const Tensor& from, int64_t height, int64_t width, bool align_corners) {
  Tensor to = empty_channels_last(from.size(0), from.size(1), height, width, from);
  dispatch_planes(from.scalar_type(), [&](auto s, auto t) {
    using S = decltype(s);
    using T = decltype(t);
    constexpr int V = kAdjacent<S>;
    const auto side = [&](int64_t given, int64_t wanted) {
      return kBackward ? Side<T>(wanted, given, align_corners)
                       : Side<T>(given, wanted, align_corners);
    };
    const auto kernel = kBackward ? backward_last_kernel<S, T, V> : forward_last_kernel<S, T, V>;
    const int64_t vectors = to.numel() / V;
    kernel<<<grid_size(ceil_divide(vectors, kThreads)), kThreads, 0,
             current_stream(from.get_device())>>>(
        static_cast<const S*>(from.data_ptr()), static_cast<S*>(to.data_ptr()), vectors,
        static_cast<int>(from.size(1) / V), side(from.size(2), height), side(from.size(3), width));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return to;
}

Tensor upsample_bilinear_cuda(Tensor input, int64_t height, int64_t width, bool align_corners) {
  KAT_MM_CHECK(input.dim() == 4 && height > 0 && width > 0 && input.numel() > 0,
               "upsample_bilinear: the input must be [B, C, h, w], and sizes above 0");
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  if (has_channels_last(input, 4)) {
    return resize_channels_last<false>(input, height, width, align_corners);
  }
  input = make_contiguous(input);
  const int64_t planes = input.size(0) * input.size(1);
  Tensor output =
      empty<4>({input.size(0), input.size(1), height, width}, input.scalar_type(), input);
  dispatch_planes(input.scalar_type(), [&](auto s, auto t) {
    using S = decltype(s);
    using T = decltype(t);
    const Side<T> y(input.size(2), height, align_corners), x(input.size(3), width, align_corners);
    const auto launch = [&](auto vector) {
      constexpr int V = decltype(vector)::value;
      forward_kernel<S, T, V><<<grid_of(height * (width / V), planes), kThreads, 0,
                                current_stream(input.get_device())>>>(
          static_cast<const S*>(input.data_ptr()), static_cast<S*>(output.data_ptr()), planes, y,
          x);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    };
    if (width % kAdjacent<S> == 0) {
      launch(Constant<kAdjacent<S>>{});
    } else {
      launch(Constant<1>{});
    }
  });
  return output;
}

Tensor upsample_bilinear_backward_cuda(Tensor grad, int64_t height, int64_t width,
                                       bool align_corners) {
  KAT_MM_CHECK(grad.dim() == 4 && height > 0 && width > 0 && grad.numel() > 0,
               "upsample_bilinear_backward: grad must be [B, C, H, W], and sizes above 0");
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  if (has_channels_last(grad, 4)) {
    return resize_channels_last<true>(grad, height, width, align_corners);
  }
  grad = make_contiguous(grad);
  const int64_t planes = grad.size(0) * grad.size(1);
  Tensor grad_input =
      empty<4>({grad.size(0), grad.size(1), height, width}, grad.scalar_type(), grad);
  dispatch_planes(grad.scalar_type(), [&](auto s, auto t) {
    using S = decltype(s);
    using T = decltype(t);
    const Side<T> y(height, grad.size(2), align_corners), x(width, grad.size(3), align_corners);
    backward_kernel<S, T>
        <<<grid_of(height * width, planes), kThreads, 0, current_stream(grad.get_device())>>>(
            static_cast<const S*>(grad.data_ptr()), static_cast<S*>(grad_input.data_ptr()), planes,
            y, x);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) {
  m.impl("upsample_bilinear", TORCH_BOX(&upsample_bilinear_cuda));
  m.impl("upsample_bilinear_backward", TORCH_BOX(&upsample_bilinear_backward_cuda));
}

}  // namespace kat_mm
