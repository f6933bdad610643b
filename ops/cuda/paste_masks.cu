// CUDA kernel of kat_mm::paste_masks: masks of boxes, resized to their boxes in a full-size image.
//
// A thread has a few pixels of one row; nothing but the thresholded result is written.
#include "launch.cuh"

namespace kat_mm {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 4;

// Where a pixel of the image lies in a mask of `size` pixels across a box from `low` to `high`; as
// F.grid_sample places it, by way of coordinates from -1 to 1.
__device__ __forceinline__ float place_in_mask(int pixel, float low, float high, int size) {
  float coordinate = __fdiv_rn(static_cast<float>(pixel) + 0.5f - low, high - low) * 2.0f - 1.0f;
  if (isinf(coordinate)) coordinate = 0.0f;
  return ((coordinate + 1.0f) * size - 1.0f) / 2.0f;
}

__device__ __forceinline__ Vector<bool, kPixels> pack(const bool (&pixels)[kPixels]) {
  Vector<bool, kPixels> vector;
  std::memcpy(&vector, pixels, sizeof vector);
  return vector;
}

__global__ void __launch_bounds__(kThreads)
    paste_kernel(const float* __restrict__ masks, const float* __restrict__ boxes,
                 bool* __restrict__ output, int64_t tasks, int mask_height, int mask_width,
                 int height, int width, float threshold) {
  const int64_t task = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (task >= tasks) return;
  const int columns = (width + kPixels - 1) / kPixels;
  const int column = static_cast<int>(task % columns) * kPixels;
  const int64_t line = task / columns;
  const int row = static_cast<int>(line % height);
  const int64_t n = line / height;
  const float* box = boxes + 4 * n;
  const float* mask = masks + n * mask_height * mask_width;
  const float y = place_in_mask(row, box[1], box[3], mask_height);
  const float top = floorf(y), bottom = top + 1.0f;
  bool* to = output + (n * height + row) * width + column;
  bool pixels[kPixels];
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const float x = place_in_mask(column + i, box[0], box[2], mask_width);
    const float left = floorf(x), right = left + 1.0f;
    const auto inside = [&](float v, float u) {
      return v >= 0.0f && u >= 0.0f && v < mask_height && u < mask_width;
    };
    const auto at = [&](float v, float u) {
      return mask[static_cast<int>(v) * mask_width + static_cast<int>(u)];
    };
    float value = 0.0f;
    if (inside(top, left)) value += at(top, left) * ((right - x) * (bottom - y));
    if (inside(top, right)) value += at(top, right) * ((x - left) * (bottom - y));
    if (inside(bottom, left)) value += at(bottom, left) * ((right - x) * (y - top));
    if (inside(bottom, right)) value += at(bottom, right) * ((x - left) * (y - top));
    pixels[i] = value >= threshold;
  }
  if (width % kPixels == 0) {
    store<bool, kPixels>(to, 0, pack(pixels));
    return;
  }
  for (int i = 0; i < min(kPixels, width - column); ++i) to[i] = pixels[i];
}

Tensor paste_masks_cuda(Tensor masks, Tensor boxes, int64_t height, int64_t width,
                        double threshold) {
  KAT_MM_CHECK(masks.dim() == 3 && boxes.dim() == 2 && boxes.size(1) == 4 &&
                   masks.size(0) == boxes.size(0) && masks.get_device() == boxes.get_device() &&
                   masks.scalar_type() == ScalarType::Float &&
                   boxes.scalar_type() == ScalarType::Float && height >= 0 && width >= 0,
               "paste_masks: masks must be [N, h, w] and boxes [N, 4], in float32");
  const torch::stable::accelerator::DeviceGuard guard(masks.get_device_index());
  Tensor output = empty<3>({masks.size(0), height, width}, ScalarType::Bool, masks);
  if (output.numel() == 0) return output;
  masks = make_contiguous(masks);
  boxes = make_contiguous(boxes);
  const int64_t tasks = masks.size(0) * height * ceil_divide(width, kPixels);
  paste_kernel<<<grid_size(ceil_divide(tasks, kThreads)), kThreads, 0,
                 current_stream(masks.get_device())>>>(
      static_cast<const float*>(masks.data_ptr()), static_cast<const float*>(boxes.data_ptr()),
      static_cast<bool*>(output.data_ptr()), tasks, static_cast<int>(masks.size(1)),
      static_cast<int>(masks.size(2)), static_cast<int>(height), static_cast<int>(width),
      static_cast<float>(threshold));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) { m.impl("paste_masks", TORCH_BOX(&paste_masks_cuda)); }

}  // namespace kat_mm
