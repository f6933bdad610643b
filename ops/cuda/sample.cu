// CUDA kernels of kat_mm::sample: the random samples of each image.
//
// 1. All positive boxes, and the negative ones whose keys are small enough for several times as
// many
//    as are wanted if keys are drawn evenly, are written to two lists for each image, in any order.
// 2. A block for each image selects from them, or from all boxes where a list is too short or full.
#include "select.cuh"

namespace kat_mm {
namespace {

constexpr int kListThreads = 256;
constexpr int kListItems = 4;
constexpr int kListed = 8192;  // keys in a list
constexpr int kMargin = 8;     // negative boxes listed for each that is wanted

__global__ void __launch_bounds__(kListThreads)
    list_kernel(const int64_t* __restrict__ assigned, const float* __restrict__ keys,
                Key* __restrict__ lists, int* __restrict__ lengths, int count, float most) {
  const int64_t image = blockIdx.y;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int item = 0; item < kListItems; ++item) {
    const int i = (blockIdx.x * kListItems + item) * kListThreads + threadIdx.x;
    int64_t kind = -1;
    float key = 0.0f;
    if (i < count) {
      kind = assigned[image * count + i];
      key = keys[image * count + i];
    }
#pragma unroll
    for (int list = 0; list < 2; ++list) {
      const bool is_listed = list == 0 ? kind > 0 : kind == 0 && key <= most;
      const unsigned mask = __ballot_sync(kAllLanes, is_listed);
      if (mask == 0) continue;
      int start = 0;
      if (lane == 0) start = atomicAdd(&lengths[image * 2 + list], __popc(mask));
      start = __shfl_sync(kAllLanes, start, 0) + __popc(mask & ((1u << lane) - 1));
      if (is_listed && start < kListed) {
        lists[(image * 2 + list) * kListed + start] = key_of(~ordered_bits(key), i);
      }
    }
  }
}

__global__ void __launch_bounds__(kSelectThreads)
    sample_kernel(const int64_t* __restrict__ assigned, const float* __restrict__ keys,
                  const Key* __restrict__ lists, const int* __restrict__ lengths,
                  int64_t* __restrict__ indices, bool* __restrict__ is_positive,
                  bool* __restrict__ is_sampled, int count, int num, int most_positive,
                  double neg_pos_ub, int size) {
  extern __shared__ Key found[];
  __shared__ SelectScratch scratch;
  assigned += int64_t{blockIdx.x} * count;
  keys += int64_t{blockIdx.x} * count;
  lists += int64_t{blockIdx.x} * 2 * kListed;
  lengths += int64_t{blockIdx.x} * 2;
  // Those with the smallest keys are taken.
  const auto key_at = [&](int i, bool is_candidate) {
    return is_candidate ? key_of(~ordered_bits(keys[i]), i) : Key{0};
  };
  int positives;
  if (lengths[0] <= kListed) {
    const auto listed_at = [&](int i) { return lists[i]; };
    positives = select_largest(listed_at, lengths[0], most_positive, found, scratch);
  } else {
    const auto positive_at = [&](int i) { return key_at(i, assigned[i] > 0); };
    positives = select_largest(positive_at, count, most_positive, found, scratch);
  }
  __syncthreads();
  int wanted = num - positives;
  if (neg_pos_ub >= 0) {
    const double bound = neg_pos_ub * max(positives, 1);
    if (bound < wanted) wanted = static_cast<int>(bound);
  }
  int negatives;
  if (lengths[1] <= kListed && lengths[1] >= wanted) {
    const auto listed_at = [&](int i) { return lists[kListed + i]; };
    negatives = select_largest(listed_at, lengths[1], wanted, found + positives, scratch);
  } else {
    const auto negative_at = [&](int i) { return key_at(i, assigned[i] == 0); };
    negatives = select_largest(negative_at, count, wanted, found + positives, scratch);
  }
  __syncthreads();
  // Positive ones first, then negative ones, each by their indices.
  const int total = positives + negatives;
  for (int i = threadIdx.x; i < size; i += kSelectThreads) {
    found[i] = i < total ? key_of(i < positives ? 2 : 1, index_of(found[i])) : 0;
  }
  sort_falling(found, size);
  for (int i = threadIdx.x; i < num; i += kSelectThreads) {
    const int64_t place = int64_t{blockIdx.x} * num + i;
    indices[place] = i < total ? int64_t{index_of(found[i])} : 0;
    is_positive[place] = i < positives;
    is_sampled[place] = i < total;
  }
}

std::tuple<Tensor, Tensor, Tensor> sample_cuda(Tensor assigned, Tensor keys, int64_t num,
                                               int64_t most_positive, double neg_pos_ub) {
  KAT_MM_CHECK(assigned.dim() == 2 && assigned.scalar_type() == ScalarType::Long &&
                   keys.dim() == 2 && keys.scalar_type() == ScalarType::Float &&
                   keys.size(0) == assigned.size(0) && keys.size(1) == assigned.size(1),
               "sample: assigned must be [B, N] in int64 and keys [B, N] in float32");
  KAT_MM_CHECK(num >= 0 && num <= 4096 && most_positive >= 0 && most_positive <= num &&
                   assigned.size(1) < (int64_t{1} << 30) && assigned.size(0) < 65536,
               "sample: at most 4096 of each image, and no more positive ones");
  const torch::stable::accelerator::DeviceGuard guard(assigned.get_device_index());
  const int64_t batch = assigned.size(0);
  Tensor indices = empty<2>({batch, num}, ScalarType::Long, assigned);
  Tensor is_positive = empty<2>({batch, num}, ScalarType::Bool, assigned);
  Tensor is_sampled = empty<2>({batch, num}, ScalarType::Bool, assigned);
  if (indices.numel() == 0) return {indices, is_positive, is_sampled};
  assigned = make_contiguous(assigned);
  keys = make_contiguous(keys);
  const int64_t count = assigned.size(1);
  const cudaStream_t stream = current_stream(assigned.get_device());
  const auto* assigned_data = static_cast<const int64_t*>(assigned.data_ptr());
  const auto* key_data = static_cast<const float*>(keys.data_ptr());
  Tensor lists = empty<3>({batch, 2, kListed}, ScalarType::Long, assigned);
  Tensor lengths = empty<2>({batch, 2}, ScalarType::Int, assigned);
  STD_CUDA_CHECK(cudaMemsetAsync(lengths.data_ptr(), 0, batch * 2 * sizeof(int), stream));
  if (count > 0) {
    const int64_t per_block = kListThreads * kListItems;
    const dim3 grid(grid_size(ceil_divide(count, per_block)), static_cast<unsigned>(batch));
    list_kernel<<<grid, kListThreads, 0, stream>>>(
        assigned_data, key_data, static_cast<Key*>(lists.data_ptr()),
        static_cast<int*>(lengths.data_ptr()), static_cast<int>(count),
        static_cast<float>(num) * kMargin / count);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const int size = sorted_size(num);
  sample_kernel<<<grid_size(batch), kSelectThreads, size * sizeof(Key), stream>>>(
      assigned_data, key_data, static_cast<const Key*>(lists.data_ptr()),
      static_cast<const int*>(lengths.data_ptr()), static_cast<int64_t*>(indices.data_ptr()),
      static_cast<bool*>(is_positive.data_ptr()), static_cast<bool*>(is_sampled.data_ptr()),
      static_cast<int>(count), static_cast<int>(num), static_cast<int>(most_positive), neg_pos_ub,
      size);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {indices, is_positive, is_sampled};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) { m.impl("sample", TORCH_BOX(&sample_cuda)); }

}  // namespace kat_mm
