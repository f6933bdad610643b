// CUDA kernel of kat_mm::merge_levels: what suppression keeps of the levels of an image, in the
// order of its scores. The scores of each level fall: the place of a box is its place in its level,
// and the number of boxes of each other level that come before it, found by bisection.
#include "select.cuh"

namespace kat_mm {
namespace {

constexpr int kMaxLevels = 16;

// One block for each image.
__global__ void __launch_bounds__(kSelectThreads)
    merge_kernel(const float4* __restrict__ boxes, const float* __restrict__ scores,
                 const int64_t* __restrict__ kept, const int64_t* __restrict__ counts,
                 float4* __restrict__ merged, float* __restrict__ merged_scores,
                 int64_t* __restrict__ totals, int levels, int count, int most, int limit) {
  extern __shared__ unsigned numbers[];  // of the scores kept, level by level
  __shared__ int lengths[kMaxLevels];
  const int64_t image = blockIdx.x;
  boxes += image * levels * count;
  scores += image * levels * count;
  kept += image * levels * most;
  if (threadIdx.x < levels) {
    lengths[threadIdx.x] = static_cast<int>(counts[image * levels + threadIdx.x]);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < levels * most; i += kSelectThreads) {
    const int level = i / most;
    if (i % most < lengths[level]) numbers[i] = ordered_bits(scores[level * count + kept[i]]);
  }
  __syncthreads();
  int total = 0;
  for (int level = 0; level < levels; ++level) total += lengths[level];
  total = min(total, limit);
  merged += image * limit;
  merged_scores += image * limit;
  for (int i = threadIdx.x; i < levels * most; i += kSelectThreads) {
    const int level = i / most;
    int place = i % most;
    if (place >= lengths[level]) continue;
    const unsigned number = numbers[i];
    for (int other = 0; other < levels && place < limit; ++other) {
      if (other == level) continue;
      int before = 0, end = lengths[other];
      while (before < end) {
        const int middle = (before + end) / 2;
        const unsigned its = numbers[other * most + middle];
        if (its > number || (its == number && other < level)) {
          before = middle + 1;
        } else {
          end = middle;
        }
      }
      place += before;
    }
    if (place >= limit) continue;
    const int64_t from = level * int64_t{count} + kept[i];
    merged[place] = boxes[from];
    merged_scores[place] = scores[from];
  }
  if (threadIdx.x == 0) totals[image] = total;
  for (int i = total + threadIdx.x; i < limit; i += kSelectThreads) {
    merged[i] = {0, 0, 0, 0};
    merged_scores[i] = 0.0f;
  }
}

std::tuple<Tensor, Tensor, Tensor> merge_levels_cuda(Tensor boxes, Tensor scores, Tensor kept,
                                                     Tensor counts, int64_t limit) {
  KAT_MM_CHECK(boxes.dim() == 4 && boxes.size(3) == 4 && scores.dim() == 3 && kept.dim() == 3 &&
                   counts.dim() == 2 && boxes.scalar_type() == ScalarType::Float &&
                   scores.scalar_type() == ScalarType::Float &&
                   kept.scalar_type() == ScalarType::Long &&
                   counts.scalar_type() == ScalarType::Long,
               "merge_levels: boxes must be [B, L, K, 4] and scores [B, L, K] in float32, kept "
               "[B, L, M] and counts [B, L] in int64");
  const int64_t batch = boxes.size(0), levels = boxes.size(1), count = boxes.size(2);
  const int64_t most = kept.size(2);
  for (const Tensor& other : {scores, kept, counts}) {
    KAT_MM_CHECK(other.size(0) == batch && other.size(1) == levels,
                 "merge_levels: all must have one batch and one number of levels");
  }
  const int64_t shared = levels * most * int64_t{sizeof(unsigned)};
  KAT_MM_CHECK(scores.size(2) == count && levels <= kMaxLevels && shared <= 47 * 1024 &&
                   limit >= 0 && limit <= levels * most,
               "merge_levels: ", levels, " levels of ", most, " boxes are more than 16 or 12032");
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  Tensor merged = empty<3>({batch, limit, 4}, ScalarType::Float, boxes);
  Tensor merged_scores = empty<2>({batch, limit}, ScalarType::Float, boxes);
  Tensor totals = empty<1>({batch}, ScalarType::Long, boxes);
  if (batch == 0) return {merged, merged_scores, totals};
  boxes = make_contiguous(boxes);
  KAT_MM_CHECK(reinterpret_cast<uintptr_t>(boxes.data_ptr()) % sizeof(float4) == 0,
               "merge_levels: boxes must be aligned to 16 bytes");
  scores = make_contiguous(scores);
  kept = make_contiguous(kept);
  counts = make_contiguous(counts);
  merge_kernel<<<grid_size(batch), kSelectThreads, shared, current_stream(boxes.get_device())>>>(
      static_cast<const float4*>(boxes.data_ptr()), static_cast<const float*>(scores.data_ptr()),
      static_cast<const int64_t*>(kept.data_ptr()), static_cast<const int64_t*>(counts.data_ptr()),
      static_cast<float4*>(merged.data_ptr()), static_cast<float*>(merged_scores.data_ptr()),
      static_cast<int64_t*>(totals.data_ptr()), static_cast<int>(levels), static_cast<int>(count),
      static_cast<int>(most), static_cast<int>(limit));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {merged, merged_scores, totals};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) {
  m.impl("merge_levels", TORCH_BOX(&merge_levels_cuda));
}

}  // namespace kat_mm
