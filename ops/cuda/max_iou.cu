// CUDA kernels of kat_mm::max_iou_assign, which never store the IoUs of all pairs.
//
// 1. Each ground truth's largest IoU and the first box that has it, as one number: the bits of the
//    IoU, whose order is that of IoUs as none is negative, above those of the index, inverted. The
//    maximum of such numbers does not depend on the order in which atomics take it.
// 2. Each box goes through the ground truth of its image again, and takes what it gets.
//
// IoUs are rounded after each operation, as those of mmdet's bbox_overlaps are, since what is
// assigned depends on which of them are equal.
#include "launch.cuh"

namespace kat_mm {
namespace {

constexpr int kThreads = 256;
constexpr int kItems = 4;  // boxes of a thread in the first kernel
constexpr int kChunk = 128;
constexpr unsigned kAll = 0xffffffffu;
constexpr unsigned kNever = 0xffffffffu;  // the bits of no IoU, and no index
using Key = unsigned long long;

struct Box {
  float4 corners;
  float area;
};

__device__ __forceinline__ Box load_box(const float4* from) {
  const float4 c = *from;
  return {c, __fmul_rn(__fsub_rn(c.z, c.x), __fsub_rn(c.w, c.y))};
}

__device__ __forceinline__ float iou(const Box& a, const Box& b) {
  const float4 p = a.corners, q = b.corners;
  const float width = fmaxf(__fsub_rn(fminf(p.z, q.z), fmaxf(p.x, q.x)), 0.0f);
  const float height = fmaxf(__fsub_rn(fminf(p.w, q.w), fmaxf(p.y, q.y)), 0.0f);
  const float intersection = __fmul_rn(width, height);
  if (intersection == 0.0f) return 0.0f;  // which saves most pairs the division
  return __fdiv_rn(intersection, fmaxf(__fsub_rn(__fadd_rn(a.area, b.area), intersection), 1e-6f));
}

// The largest value of the lanes of a warp, to each of them.
__device__ __forceinline__ unsigned warp_max(unsigned value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAll, value);
#else
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = max(value, __shfl_xor_sync(kAll, value, step));
  return value;
#endif
}

// The boxes and the ground truth of one image.
struct Image {
  const float4* boxes;
  const bool* valid;
  const float4* gt_boxes;
  int gt_count;

  __device__ Image(const float4* all_boxes, const bool* all_valid, const float4* all_gt_boxes,
                   const int64_t* gt_counts, int64_t image, int64_t count, int most, bool shared)
      : boxes(all_boxes + (shared ? 0 : image * count)),
        valid(all_valid == nullptr ? nullptr : all_valid + image * count),
        gt_boxes(all_gt_boxes + image * most),
        gt_count(static_cast<int>(min(gt_counts[image], int64_t{most}))) {}

  __device__ __forceinline__ bool is_valid(int64_t index) const {
    return valid == nullptr || valid[index];
  }
};

__global__ void __launch_bounds__(kThreads)
    best_kernel(const float4* __restrict__ boxes, const bool* __restrict__ valid,
                const float4* __restrict__ gt_boxes, const int64_t* __restrict__ gt_counts,
                Key* __restrict__ best, int64_t count, int most, bool shared_boxes) {
  const Image image(boxes, valid, gt_boxes, gt_counts, blockIdx.y, count, most, shared_boxes);
  __shared__ Box gt[kChunk];
  __shared__ Key largest[kChunk];
  best += int64_t{blockIdx.y} * most;
  Box box[kItems];
  unsigned index[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t n = (int64_t{blockIdx.x} * kItems + i) * kThreads + threadIdx.x;
    const bool is_valid = n < count && image.is_valid(n);
    index[i] = is_valid ? static_cast<unsigned>(n) : kNever;
    box[i] = is_valid ? load_box(image.boxes + n) : Box{};
  }
  for (int start = 0; start < image.gt_count; start += kChunk) {
    const int chunk = min(kChunk, image.gt_count - start);
    __syncthreads();
    if (threadIdx.x < chunk) {
      gt[threadIdx.x] = load_box(image.gt_boxes + start + threadIdx.x);
      largest[threadIdx.x] = 0;
    }
    __syncthreads();
    for (int g = 0; g < chunk; ++g) {
      unsigned bits = 0, first = kNever;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const unsigned of_box = __float_as_uint(iou(gt[g], box[i]));
        const bool is_better = index[i] != kNever && (of_box > bits || first == kNever);
        bits = is_better ? of_box : bits;
        first = is_better ? index[i] : first;
      }
      const unsigned of_warp = warp_max(bits);
      // The smallest index is the largest inverted one; that of no box is 0.
      const unsigned inverted = warp_max(bits == of_warp ? ~first : 0);
      const Key key = Key{of_warp} << 32 | inverted;
      if (threadIdx.x % 32 == 0 && key > largest[g]) atomicMax(&largest[g], key);
    }
    __syncthreads();
    if (threadIdx.x < chunk && largest[threadIdx.x] > best[start + threadIdx.x]) {
      atomicMax(&best[start + threadIdx.x], largest[threadIdx.x]);
    }
  }
}

struct Thresholds {
  float pos, neg_low, neg_high, min_pos;
};

// `best` is null where no match of low quality is wanted.
__global__ void __launch_bounds__(kThreads)
    assign_kernel(const float4* __restrict__ boxes, const bool* __restrict__ valid,
                  const float4* __restrict__ gt_boxes, const int64_t* __restrict__ gt_counts,
                  const Key* __restrict__ best, int64_t* __restrict__ assigned,
                  float* __restrict__ max_overlaps, Thresholds thresholds, bool assign_all,
                  int64_t count, int most, bool shared_boxes) {
  const Image image(boxes, valid, gt_boxes, gt_counts, blockIdx.y, count, most, shared_boxes);
  __shared__ Box gt[kChunk];
  __shared__ unsigned wanted[kChunk];  // the bits of the IoU, or the index, that a box must have
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool is_valid = n < count && image.is_valid(n);
  const Box box = is_valid ? load_box(image.boxes + n) : Box{};
  float largest = -1.0f;
  int of_largest = 0, last = -1;
  for (int start = 0; start < image.gt_count; start += kChunk) {
    const int chunk = min(kChunk, image.gt_count - start);
    __syncthreads();
    if (threadIdx.x < chunk) {
      gt[threadIdx.x] = load_box(image.gt_boxes + start + threadIdx.x);
      unsigned wants = kNever;
      if (best != nullptr) {
        const Key key = best[int64_t{blockIdx.y} * most + start + threadIdx.x];
        const auto bits = static_cast<unsigned>(key >> 32);
        const bool takes = __uint_as_float(bits) >= thresholds.min_pos;
        if (takes) wants = assign_all ? bits : ~static_cast<unsigned>(key);
      }
      wanted[threadIdx.x] = wants;
    }
    __syncthreads();
    for (int g = 0; g < chunk; ++g) {
      const float overlap = iou(gt[g], box);
      if (overlap > largest) {
        largest = overlap;
        of_largest = start + g;
      }
      const unsigned has = assign_all ? __float_as_uint(overlap) : static_cast<unsigned>(n);
      if (has == wanted[g]) last = start + g;
    }
  }
  if (n >= count) return;
  int64_t result = -1;
  if (is_valid && image.gt_count == 0) {
    result = 0;
  } else if (is_valid) {
    if (largest >= thresholds.neg_low && largest < thresholds.neg_high) result = 0;
    if (largest >= thresholds.pos) result = of_largest + 1;
    if (last >= 0) result = last + 1;
  }
  const int64_t place = blockIdx.y * count + n;
  assigned[place] = result;
  max_overlaps[place] = is_valid && image.gt_count > 0 ? largest : 0.0f;
}

void check(const Tensor& boxes, const std::optional<Tensor>& valid, const Tensor& gt_boxes,
           const Tensor& gt_counts) {
  KAT_MM_CHECK(boxes.dim() == 3 && boxes.size(2) == 4 && gt_boxes.dim() == 3 &&
                   gt_boxes.size(2) == 4 && boxes.scalar_type() == ScalarType::Float &&
                   gt_boxes.scalar_type() == ScalarType::Float &&
                   (boxes.size(0) == 1 || boxes.size(0) == gt_boxes.size(0)),
               "max_iou_assign: boxes must be [B or 1, N, 4] and gt_boxes [B, G, 4], float32");
  KAT_MM_CHECK(gt_counts.dim() == 1 && gt_counts.size(0) == gt_boxes.size(0) &&
                   gt_counts.scalar_type() == ScalarType::Long,
               "max_iou_assign: gt_counts must be [B] in int64");
  KAT_MM_CHECK(
      !valid || (valid->dim() == 2 && valid->size(0) == gt_boxes.size(0) &&
                 valid->size(1) == boxes.size(1) && valid->scalar_type() == ScalarType::Bool),
      "max_iou_assign: valid must be [B, N] of bool");
  KAT_MM_CHECK(boxes.size(1) < int64_t{kNever} && gt_boxes.size(0) < 65536,
               "max_iou_assign: too many boxes or images");
}

// Contiguous, and at an address that 16 bytes can be loaded from.
Tensor make_loadable(const Tensor& boxes) {
  const Tensor contiguous = make_contiguous(boxes);
  if (reinterpret_cast<uintptr_t>(contiguous.data_ptr()) % sizeof(float4) == 0) return contiguous;
  Tensor copy = empty<3>({boxes.size(0), boxes.size(1), 4}, ScalarType::Float, boxes);
  torch::stable::copy_(copy, contiguous);
  return copy;
}

std::tuple<Tensor, Tensor> max_iou_assign_cuda(Tensor boxes, std::optional<Tensor> valid,
                                               Tensor gt_boxes, Tensor gt_counts, double pos_iou,
                                               double neg_low, double neg_high, double min_pos_iou,
                                               bool match_low_quality, bool gt_max_assign_all) {
  check(boxes, valid, gt_boxes, gt_counts);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const int64_t images = gt_boxes.size(0), count = boxes.size(1), most = gt_boxes.size(1);
  Tensor assigned = empty<2>({images, count}, ScalarType::Long, boxes);
  Tensor max_overlaps = empty<2>({images, count}, ScalarType::Float, boxes);
  if (images == 0 || count == 0) return {assigned, max_overlaps};
  const bool shared = boxes.size(0) == 1;
  boxes = make_loadable(boxes);
  gt_boxes = make_loadable(gt_boxes);
  gt_counts = make_contiguous(gt_counts);
  if (valid) valid = make_contiguous(*valid);
  const auto* box_data = static_cast<const float4*>(boxes.data_ptr());
  const auto* valid_data = valid ? static_cast<const bool*>(valid->data_ptr()) : nullptr;
  const auto* gt_data = static_cast<const float4*>(gt_boxes.data_ptr());
  const auto* count_data = static_cast<const int64_t*>(gt_counts.data_ptr());
  const cudaStream_t stream = current_stream(boxes.get_device());

  const bool has_best = match_low_quality && most > 0;
  Tensor best = empty<2>({images, has_best ? most : 0}, ScalarType::Long, boxes);
  const auto grid = [&](int items) {
    return dim3(grid_size(ceil_divide(count, kThreads * items)), static_cast<unsigned>(images));
  };
  if (has_best) {
    STD_CUDA_CHECK(cudaMemsetAsync(best.data_ptr(), 0, images * most * sizeof(Key), stream));
    best_kernel<<<grid(kItems), kThreads, 0, stream>>>(box_data, valid_data, gt_data, count_data,
                                                       static_cast<Key*>(best.data_ptr()), count,
                                                       static_cast<int>(most), shared);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const Thresholds thresholds = {static_cast<float>(pos_iou), static_cast<float>(neg_low),
                                 static_cast<float>(neg_high), static_cast<float>(min_pos_iou)};
  assign_kernel<<<grid(1), kThreads, 0, stream>>>(
      box_data, valid_data, gt_data, count_data,
      has_best ? static_cast<const Key*>(best.data_ptr()) : nullptr,
      static_cast<int64_t*>(assigned.data_ptr()), static_cast<float*>(max_overlaps.data_ptr()),
      thresholds, gt_max_assign_all, count, static_cast<int>(most), shared);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {assigned, max_overlaps};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) {
  m.impl("max_iou_assign", TORCH_BOX(&max_iou_assign_cuda));
}

}  // namespace kat_mm
