// CUDA kernel of kat_mm::top_k: the best scores of each level of each image, one block for each.
#include "select.cuh"

namespace kat_mm {
namespace {

__global__ void __launch_bounds__(kSelectThreads)
    top_k_kernel(const float* __restrict__ scores, float* __restrict__ values,
                 int64_t* __restrict__ indices, Levels levels, int64_t count, int most, int size) {
  extern __shared__ Key found[];
  __shared__ SelectScratch scratch;
  const int64_t start = levels.starts[blockIdx.x];
  const int length = static_cast<int>(levels.starts[blockIdx.x + 1] - start);
  const float* level = scores + blockIdx.y * count + start;
  const int64_t problem = int64_t{blockIdx.y} * levels.count + blockIdx.x;
  values += problem * most;
  indices += problem * most;
  if (length <= most) {  // all of them, in their order
    for (int i = threadIdx.x; i < most; i += kSelectThreads) {
      values[i] = i < length ? level[i] : 0.0f;
      indices[i] = i < length ? start + i : 0;
    }
    return;
  }
  const auto key_at = [&](int i) { return key_of(ordered_bits(level[i]), i); };
  const int selected = select_largest(key_at, length, most, found, scratch);
  for (int i = selected + threadIdx.x; i < size; i += kSelectThreads) found[i] = 0;
  sort_falling(found, size);
  for (int i = threadIdx.x; i < most; i += kSelectThreads) {
    const unsigned index = index_of(found[i]);
    values[i] = level[index];
    indices[i] = start + index;
  }
}

std::tuple<Tensor, Tensor> top_k_cuda(Tensor scores, std::vector<int64_t> sizes, int64_t most) {
  KAT_MM_CHECK(
      scores.dim() == 2 && scores.scalar_type() == ScalarType::Float && most >= 0 && most <= 4096,
      "top_k: scores must be [B, N] in float32, and most at most 4096");
  const Levels table(sizes, scores.size(1));
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  const int64_t batch = scores.size(0), levels = table.count;
  KAT_MM_CHECK(batch < 65536 && scores.size(1) < (int64_t{1} << 30),
               "top_k: too many images or scores");
  Tensor values = empty<3>({batch, levels, most}, ScalarType::Float, scores);
  Tensor indices = empty<3>({batch, levels, most}, ScalarType::Long, scores);
  if (values.numel() == 0) return {values, indices};
  scores = make_contiguous(scores);
  const int size = sorted_size(most);
  const dim3 grid(grid_size(levels), static_cast<unsigned>(batch));
  top_k_kernel<<<grid, kSelectThreads, size * sizeof(Key), current_stream(scores.get_device())>>>(
      static_cast<const float*>(scores.data_ptr()), static_cast<float*>(values.data_ptr()),
      static_cast<int64_t*>(indices.data_ptr()), table, scores.size(1), static_cast<int>(most),
      size);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {values, indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) { m.impl("top_k", TORCH_BOX(&top_k_cuda)); }

}  // namespace kat_mm
