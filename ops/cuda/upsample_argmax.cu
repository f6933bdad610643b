// CUDA kernel of kat_mm::upsample_argmax: in which class logits are the largest that were resized
// bilinearly, cut to a window, and resized again.
//
// A thread has one pixel of the labels and goes through the classes. The second resizing takes four
// values of the first, each of which is computed from four logits; where one of the two changes
// nothing, it is left out.
#include "resize.cuh"

namespace kat_mm {
namespace {

constexpr int kThreads = 256;
constexpr int kClasses = 4;  // at a time, for loads that do not wait for each other

// The first resizing, whose window begins at (top, left), and the second.
template <typename T>
struct Chain {
  Side<T> y, x;
  int top, left;
  Side<T> window_y, window_x;
  int64_t images;
  int classes;
};

// Rounds as torch's kernel does, which has a weight for each of the corners.
template <typename T>
__device__ __forceinline__ T blend(T a, T b, T c, T d, const Sample<T>& y, const Sample<T>& x) {
  return (1 - y.weight) * ((1 - x.weight) * a + x.weight * b) +
         y.weight * ((1 - x.weight) * c + x.weight * d);
}

// The first resizing at one place, for any class.
template <typename S, typename T>
struct Resized {
  const S* corners[4];
  Sample<T> y, x;

  __device__ __forceinline__ Resized(const S* image, const Chain<T>& p, int row, int column)
      : y(p.y.at(row)), x(p.x.at(column)) {
    corners[0] = image + int64_t{y.first} * p.x.in + x.first;
    corners[1] = image + int64_t{y.first} * p.x.in + x.second;
    corners[2] = image + int64_t{y.second} * p.x.in + x.first;
    corners[3] = image + int64_t{y.second} * p.x.in + x.second;
  }

  __device__ __forceinline__ T at(int64_t offset) const {
    return blend<T>(widen(corners[0][offset]), widen(corners[1][offset]), widen(corners[2][offset]),
                    widen(corners[3][offset]), y, x);
  }
};

template <typename S, typename T, bool kTwice>
__global__ void __launch_bounds__(kThreads)
    argmax_kernel(const S* __restrict__ logits, int64_t* __restrict__ labels, Chain<T> p) {
  const int64_t pixel = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (pixel >= p.images * p.window_y.out * p.window_x.out) return;
  const int column = static_cast<int>(pixel % p.window_x.out);
  const int64_t rest = pixel / p.window_x.out;
  const int row = static_cast<int>(rest % p.window_y.out);
  const int64_t plane = int64_t{p.y.in} * p.x.in;
  const S* image = logits + rest / p.window_y.out * p.classes * plane;
  T largest = -INFINITY;
  int best = 0;
  const auto search = [&](const auto& value) {
    for (int start = 0; start < p.classes; start += kClasses) {
      T values[kClasses];
#pragma unroll
      for (int k = 0; k < kClasses; ++k) {
        values[k] = value(min(start + k, p.classes - 1) * plane);
      }
#pragma unroll
      for (int k = 0; k < kClasses; ++k) {
        // The first of equal ones, and NaN before all, as argmax has it.
        const bool wins = values[k] > largest || (values[k] != values[k] && largest == largest);
        if (wins && start + k < p.classes) {
          largest = values[k];
          best = start + k;
        }
      }
    }
  };
  if constexpr (kTwice) {
    const Sample<T> y = p.window_y.at(row), x = p.window_x.at(column);
    const Resized<S, T> a(image, p, p.top + y.first, p.left + x.first);
    const Resized<S, T> b(image, p, p.top + y.first, p.left + x.second);
    const Resized<S, T> c(image, p, p.top + y.second, p.left + x.first);
    const Resized<S, T> d(image, p, p.top + y.second, p.left + x.second);
    search([&](int64_t at) { return blend<T>(a.at(at), b.at(at), c.at(at), d.at(at), y, x); });
  } else {
    const Resized<S, T> a(image, p, p.top + row, p.left + column);
    search([&](int64_t at) { return a.at(at); });
  }
  labels[pixel] = best;
}

template <typename F>
void dispatch_logits(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Float) return f(float{}, float{});
  if (dtype == ScalarType::Half) return f(__half{}, float{});
  if (dtype == ScalarType::BFloat16) return f(__nv_bfloat16{}, float{});
  if (dtype == ScalarType::Double) return f(double{}, double{});
  KAT_MM_CHECK(false, "upsample_argmax: logits must be of a floating dtype");
}

Tensor upsample_argmax_cuda(Tensor logits, int64_t via_height, int64_t via_width, int64_t top,
                            int64_t left, int64_t window_height, int64_t window_width,
                            int64_t height, int64_t width, bool align_corners) {
  KAT_MM_CHECK(logits.dim() == 4 && logits.numel() > 0 && height > 0 && width > 0,
               "upsample_argmax: logits must be [B, C, h, w], and sizes above 0");
  KAT_MM_CHECK(top >= 0 && left >= 0 && window_height > 0 && window_width > 0 &&
                   top + window_height <= via_height && left + window_width <= via_width,
               "upsample_argmax: the window must lie within what logits are resized to");
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  logits = make_contiguous(logits);
  Tensor labels = empty<3>({logits.size(0), height, width}, ScalarType::Long, logits);
  dispatch_logits(logits.scalar_type(), [&](auto s, auto t) {
    using S = decltype(s);
    using T = decltype(t);
    const Chain<T> chain = {Side<T>(logits.size(2), via_height, align_corners),
                            Side<T>(logits.size(3), via_width, align_corners),
                            static_cast<int>(top),
                            static_cast<int>(left),
                            Side<T>(window_height, height, align_corners),
                            Side<T>(window_width, width, align_corners),
                            logits.size(0),
                            static_cast<int>(logits.size(1))};
    const bool twice = window_height != height || window_width != width;
    const auto kernel = twice ? argmax_kernel<S, T, true> : argmax_kernel<S, T, false>;
    kernel<<<grid_size(ceil_divide(labels.numel(), kThreads)), kThreads, 0,
             current_stream(logits.get_device())>>>(
        static_cast<const S*>(logits.data_ptr()), static_cast<int64_t*>(labels.data_ptr()), chain);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return labels;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) {
  m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax_cuda));
}

}  // namespace kat_mm
