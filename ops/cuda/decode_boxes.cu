// CUDA kernels of kat_mm::decode_boxes: the boxes of chosen anchors, and the same moved apart level
// by level. Rounded after each operation, as mmdet's and mmcv's are.
#include "select.cuh"

namespace kat_mm {
namespace {

constexpr int kThreads = 256;

struct Coder {
  float means[4], stds[4], max_log_ratio;
};

template <typename S>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(const float4* __restrict__ anchors, const S* __restrict__ deltas,
                  const int64_t* __restrict__ indices, const float* __restrict__ limits,
                  const float* __restrict__ factors, float4* __restrict__ boxes,
                  bool* __restrict__ valid, unsigned* __restrict__ largest, Levels levels,
                  int64_t anchor_count, int count, Coder coder, float min_size) {
  const int64_t image = blockIdx.y;
  const int place = blockIdx.x * kThreads + threadIdx.x;
  const int level = place / count, rank = place % count;
  unsigned of_box = 0;
  if (level < levels.count) {
    const int64_t at = image * levels.count * count + place, index = indices[at];
    const float4 anchor = anchors[index];
    const S* from = deltas + (image * anchor_count + index) * 4;
    float delta[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      delta[i] = __fadd_rn(__fmul_rn(widen(from[i]), coder.stds[i]), coder.means[i]);
    }
    const float first[2] = {anchor.x, anchor.y}, second[2] = {anchor.z, anchor.w};
    float corners[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float size = __fsub_rn(second[i], first[i]);
      const float middle = __fmul_rn(__fadd_rn(first[i], second[i]), 0.5f);
      const float center = __fadd_rn(middle, __fmul_rn(size, delta[i]));
      const float log_ratio = fminf(fmaxf(delta[2 + i], -coder.max_log_ratio), coder.max_log_ratio);
      const float half = __fmul_rn(__fmul_rn(size, expf(log_ratio)), 0.5f);
      corners[i] = __fsub_rn(center, half);
      corners[2 + i] = __fadd_rn(center, half);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      corners[i] = fminf(fmaxf(corners[i], 0.0f), limits[image * 4 + i]);
      if (factors != nullptr) corners[i] = __fmul_rn(corners[i], factors[image * 4 + i]);
    }
    const bool is_valid = rank < levels.starts[level + 1] - levels.starts[level] &&
                          __fsub_rn(corners[2], corners[0]) > min_size &&
                          __fsub_rn(corners[3], corners[1]) > min_size;
    boxes[at] = {corners[0], corners[1], corners[2], corners[3]};
    valid[at] = is_valid;
    if (is_valid) {
      of_box = ordered_bits(fmaxf(fmaxf(corners[0], corners[1]), fmaxf(corners[2], corners[3])));
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    of_box = max(of_box, __shfl_xor_sync(kAllLanes, of_box, step));
  }
  if (threadIdx.x % 32 == 0 && of_box > largest[image]) atomicMax(&largest[image], of_box);
}

// The largest coordinate of an image and 1 apart.
__global__ void __launch_bounds__(kThreads)
    shift_kernel(const float4* __restrict__ boxes, const unsigned* __restrict__ largest,
                 float4* __restrict__ shifted, int levels, int count) {
  const int64_t image = blockIdx.y;
  const int place = blockIdx.x * kThreads + threadIdx.x;
  if (place >= levels * count) return;
  const unsigned bits = largest[image];  // of a number from 0 on, or none
  const float step = bits == 0 ? 1.0f : __fadd_rn(__uint_as_float(bits & 0x7fffffffu), 1.0f);
  const float shift = __fmul_rn(static_cast<float>(place / count), step);
  const int64_t at = image * levels * count + place;
  const float4 box = boxes[at];
  shifted[at] = {__fadd_rn(box.x, shift), __fadd_rn(box.y, shift), __fadd_rn(box.z, shift),
                 __fadd_rn(box.w, shift)};
}

std::tuple<Tensor, Tensor, Tensor> decode_boxes_cuda(Tensor anchors, Tensor deltas, Tensor indices,
                                                     std::vector<int64_t> sizes, Tensor limits,
                                                     std::optional<Tensor> factors,
                                                     std::vector<double> means,
                                                     std::vector<double> stds, double min_size) {
  const auto is_of_images = [&](const Tensor& x) {
    return x.dim() == 2 && x.size(0) == deltas.size(0) && x.size(1) == 4 &&
           x.scalar_type() == ScalarType::Float;
  };
  KAT_MM_CHECK(anchors.dim() == 2 && anchors.size(1) == 4 && deltas.dim() == 3 &&
                   deltas.size(1) == anchors.size(0) && deltas.size(2) == 4 && indices.dim() == 3 &&
                   indices.size(0) == deltas.size(0) &&
                   indices.size(1) == static_cast<int64_t>(sizes.size()) &&
                   anchors.scalar_type() == ScalarType::Float &&
                   indices.scalar_type() == ScalarType::Long,
               "decode_boxes: anchors must be [N, 4] in float32, deltas [B, N, 4] and indices "
               "[B, L, K] in int64");
  KAT_MM_CHECK(is_of_images(limits) && (!factors || is_of_images(*factors)) && means.size() == 4 &&
                   stds.size() == 4,
               "decode_boxes: limits and factors must be [B, 4] in float32, means and stds [4]");
  const Levels table(sizes, anchors.size(0));
  const torch::stable::accelerator::DeviceGuard guard(anchors.get_device_index());
  const int64_t batch = indices.size(0), levels = indices.size(1), count = indices.size(2);
  KAT_MM_CHECK(batch < 65536 && levels * count < (int64_t{1} << 30),
               "decode_boxes: too many images or boxes");
  Tensor boxes = empty<4>({batch, levels, count, 4}, ScalarType::Float, anchors);
  Tensor shifted = empty<4>({batch, levels, count, 4}, ScalarType::Float, anchors);
  Tensor valid = empty<3>({batch, levels, count}, ScalarType::Bool, anchors);
  if (valid.numel() == 0) return {boxes, shifted, valid};
  Tensor largest = empty<1>({batch}, ScalarType::Int, anchors);
  anchors = make_contiguous(anchors);
  KAT_MM_CHECK(reinterpret_cast<uintptr_t>(anchors.data_ptr()) % sizeof(float4) == 0,
               "decode_boxes: anchors must be aligned to 16 bytes");
  deltas = make_contiguous(deltas);
  indices = make_contiguous(indices);
  limits = make_contiguous(limits);
  if (factors) factors = make_contiguous(*factors);
  Coder coder;
  for (int i = 0; i < 4; ++i) {
    coder.means[i] = static_cast<float>(means[i]);
    coder.stds[i] = static_cast<float>(stds[i]);
  }
  coder.max_log_ratio = static_cast<float>(std::abs(std::log(16.0 / 1000.0)));
  const cudaStream_t stream = current_stream(anchors.get_device());
  STD_CUDA_CHECK(cudaMemsetAsync(largest.data_ptr(), 0, batch * sizeof(unsigned), stream));
  const dim3 grid(grid_size(ceil_divide(levels * count, kThreads)), static_cast<unsigned>(batch));
  auto* box_data = static_cast<float4*>(boxes.data_ptr());
  auto* largest_data = static_cast<unsigned*>(largest.data_ptr());
  const auto decode = [&](auto s) {
    using S = decltype(s);
    decode_kernel<S><<<grid, kThreads, 0, stream>>>(
        static_cast<const float4*>(anchors.data_ptr()), static_cast<const S*>(deltas.data_ptr()),
        static_cast<const int64_t*>(indices.data_ptr()),
        static_cast<const float*>(limits.data_ptr()),
        factors ? static_cast<const float*>(factors->data_ptr()) : nullptr, box_data,
        static_cast<bool*>(valid.data_ptr()), largest_data, table, deltas.size(1),
        static_cast<int>(count), coder, static_cast<float>(min_size));
  };
  const ScalarType dtype = deltas.scalar_type();
  KAT_MM_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
      "decode_boxes: deltas must be float32, float16 or bfloat16");
  if (dtype == ScalarType::Float) decode(float{});
  if (dtype == ScalarType::Half) decode(__half{});
  if (dtype == ScalarType::BFloat16) decode(__nv_bfloat16{});
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  shift_kernel<<<grid, kThreads, 0, stream>>>(box_data, largest_data,
                                              static_cast<float4*>(shifted.data_ptr()),
                                              static_cast<int>(levels), static_cast<int>(count));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {boxes, shifted, valid};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) {
  m.impl("decode_boxes", TORCH_BOX(&decode_boxes_cuda));
}

}  // namespace kat_mm
