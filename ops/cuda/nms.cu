// CUDA kernels of kat_mm::nms: greedy suppression of P problems of N boxes, without the host.
//
// 1. The boxes of each problem are put into the order of their scores.
// 2. A thread has one box and tests 64 that come before it: bit c of overlaps[p][b][r] tells that
//    box 64 b + c suppresses box r, if it is kept itself. One word for each (b, r), b <= r / 64.
// 3. A block for each problem goes through its boxes, 64 at a time. One of its first two warps
//    resolves them, while the other reads what it needs for the next 64, and the other warps gather
//    which of those the boxes kept so far suppress.
#include "launch.cuh"

namespace kat_mm {
namespace {

constexpr int kWord = 64;  // boxes in a word of bits
constexpr int kRows = 128;
constexpr int kResolveThreads = 1024;
constexpr unsigned kAll = 0xffffffffu;
using Word = unsigned long long;

__global__ void __launch_bounds__(kRows)
    sort_kernel(const float4* __restrict__ boxes, const int64_t* __restrict__ order,
                const bool* __restrict__ valid, float4* __restrict__ sorted,
                unsigned* __restrict__ alive, int count, int padded) {
  const int rank = blockIdx.y * kRows + threadIdx.x;
  const int64_t problem = blockIdx.x;
  if (rank >= padded) return;  // whole warps
  float4 box = {0, 0, 0, 0};
  bool lives = false;
  if (rank < count) {
    const int64_t index = problem * count + order[problem * count + rank];
    box = boxes[index];
    lives = valid == nullptr || valid[index];
  }
  sorted[problem * padded + rank] = box;
  const unsigned bits = __ballot_sync(kAll, lives);
  if (threadIdx.x % 32 == 0) alive[(problem * padded + rank) / 32] = bits;
}

// Whether the IoU of box a, which comes first, and box b is above the threshold: in the terms of
// torchvision's kernel, which decide how the products and sums are rounded.
__device__ __noinline__ bool overlaps_exactly(float4 a, float4 b, float threshold) {
  const float left = fmaxf(a.x, b.x), right = fminf(a.z, b.z);
  const float top = fmaxf(a.y, b.y), bottom = fminf(a.w, b.w);
  const float width = fmaxf(right - left, 0.0f), height = fmaxf(bottom - top, 0.0f);
  const float intersection = width * height;
  const float area_a = (a.z - a.x) * (a.w - a.y);
  const float area_b = (b.z - b.x) * (b.w - b.y);
  return intersection / (area_a + area_b - intersection) > threshold;
}

// The area of a box where an overlap with it can be above the threshold. That of one that is turned
// over never is, as its intersections are empty; where it is not a number, nor is the IoU.
__device__ __forceinline__ float area_of(float4 box) {
  const float area = (box.z - box.x) * (box.w - box.y);
  return area >= 0.0f ? area : area < 0.0f ? 0.0f : INFINITY;
}

// Most pairs are clear without a division: `low` and `high` are a bit below and above the
// threshold.
__global__ void __launch_bounds__(kRows)
    overlap_kernel(const float4* __restrict__ sorted, Word* __restrict__ overlaps, int words,
                   int tiles, float threshold, float low, float high) {
  const int64_t problem = blockIdx.x / tiles;
  const int first = blockIdx.x % tiles * kRows, column = blockIdx.y;
  const int padded = words * kWord;
  if (column * kWord >= min(first + kRows, padded)) return;  // none of them comes before
  __shared__ float4 before[kWord];
  __shared__ float areas[kWord];
  sorted += problem * padded;
  if (threadIdx.x < kWord) {
    const float4 box = sorted[column * kWord + threadIdx.x];
    before[threadIdx.x] = box;
    areas[threadIdx.x] = area_of(box);
  }
  __syncthreads();
  const int row = first + threadIdx.x;
  if (row >= padded || column > row / kWord) return;
  const float4 box = sorted[row];
  const float area = area_of(box);
  unsigned above[2] = {0, 0}, unclear[2] = {0, 0};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int c = 0; c < 32; ++c) {
      const float4 a = before[half * 32 + c];
      const float width = fmaxf(fminf(a.z, box.z) - fmaxf(a.x, box.x), 0.0f);
      const float height = fminf(a.w, box.w) - fmaxf(a.y, box.y);
      const float intersection = width * height;  // negative where there is none is as good as 0
      const float united = areas[half * 32 + c] + area - intersection;
      const bool is_above = intersection > high * united;
      if (is_above) above[half] |= 1u << c;
      if (!is_above && !(intersection < low * united)) unclear[half] |= 1u << c;
    }
  }
  const Word earlier = column == row / kWord ? (Word{1} << row % kWord) - 1 : ~Word{0};
  Word word = (Word{above[1]} << 32 | above[0]) & earlier;
  Word rest = (Word{unclear[1]} << 32 | unclear[0]) & earlier;
  while (rest) {
    const int c = __ffsll(rest) - 1;
    rest &= rest - 1;
    if (overlaps_exactly(before[c], box, threshold)) word |= Word{1} << c;
  }
  overlaps[(problem * words + column) * padded + row] = word;
}

// Of the 64 boxes of a block, which a lane's two are: lane and lane + 32.
__device__ __forceinline__ Word ballot(bool first, bool second) {
  const Word low = __ballot_sync(kAll, first);
  return Word{__ballot_sync(kAll, second)} << 32 | low;
}

__global__ void __launch_bounds__(kResolveThreads)
    resolve_kernel(const Word* __restrict__ overlaps, const Word* __restrict__ alive,
                   const int64_t* __restrict__ order, int64_t* __restrict__ indices,
                   int64_t* __restrict__ counts, int count, int words, int64_t max_keep) {
  constexpr int kGatherWarps = kResolveThreads / 32 - 2;
  extern __shared__ Word kept[];
  __shared__ Word suppressed[2];  // of the block that is resolved, and of the next
  const int64_t problem = blockIdx.x;
  const int64_t padded = int64_t{words} * kWord;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  overlaps += problem * words * padded + lane;
  alive += problem * words;
  order += problem * count;
  indices += problem * max_keep;
  if (threadIdx.x < 2) suppressed[threadIdx.x] = 0;
  __syncthreads();

  // What a resolving warp reads for its block, while the other one resolves the block before: which
  // boxes of that block and of its own suppress its boxes, and which boxes they are.
  Word last[2] = {0, 0}, same[2] = {0, 0}, candidates = 0;
  int64_t ranked[2] = {0, 0};
  const auto load_block = [&](int block) {
    const int64_t begin = int64_t{block} * kWord;
    candidates = alive[block];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Word* own = overlaps + block * padded + begin + 32 * i;
      same[i] = own[0];
      last[i] = block > 0 ? own[-padded] : 0;
      ranked[i] = order[min(begin + lane + 32 * i, int64_t{count} - 1)];
    }
  };
  if (warp == 0) load_block(0);
  int64_t total = 0;
  for (int block = 0; block < words && total < max_keep; ++block) {
    const bool has_next = block + 1 < words;
    if (warp == block % 2) {
      const Word before = block > 0 ? kept[block - 1] : 0;
      candidates &= ~(suppressed[block % 2] | ballot(last[0] & before, last[1] & before));
      // Of boxes that each suppress the next, one more is right after each turn.
      Word keeps = candidates, previous;
      do {
        previous = keeps;
        keeps = candidates & ~ballot(same[0] & previous, same[1] & previous);
      } while (keeps != previous);
      if (lane == 0) {
        kept[block] = keeps;
        suppressed[block % 2] = 0;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int bit = lane + 32 * i;
        const int64_t place = total + __popcll(keeps & ((Word{1} << bit) - 1));
        if ((keeps >> bit & 1) && place < max_keep) indices[place] = ranked[i];
      }
    } else if (warp < 2 && has_next) {
      load_block(block + 1);
    } else if (has_next) {
      Word hits[2] = {0, 0};
      const Word* next = overlaps + int64_t{block + 1} * kWord;
#pragma unroll 4
      for (int column = warp - 2; column < block; column += kGatherWarps) {
        const Word keeps = kept[column];
        hits[0] |= next[column * padded] & keeps;
        hits[1] |= next[column * padded + 32] & keeps;
      }
      const Word found = ballot(hits[0], hits[1]);
      if (lane == 0 && found) atomicOr(&suppressed[(block + 1) % 2], found);
    }
    __syncthreads();
    total += __popcll(kept[block]);
  }
  const int64_t found = min(total, max_keep);
  if (threadIdx.x == 0) counts[problem] = found;
  for (int64_t i = found + threadIdx.x; i < max_keep; i += kResolveThreads) indices[i] = 0;
}

std::tuple<Tensor, Tensor> nms_cuda(Tensor boxes, Tensor order, std::optional<Tensor> valid,
                                    double iou_threshold, int64_t max_keep) {
  KAT_MM_CHECK(boxes.dim() == 3 && boxes.size(2) == 4 && order.dim() == 2 &&
                   order.size(0) == boxes.size(0) && order.size(1) == boxes.size(1) &&
                   boxes.scalar_type() == ScalarType::Float &&
                   order.scalar_type() == ScalarType::Long && max_keep >= 0,
               "nms: boxes must be [P, N, 4] in float32 and order [P, N] in int64");
  KAT_MM_CHECK(
      !valid || (valid->dim() == 2 && valid->size(0) == order.size(0) &&
                 valid->size(1) == order.size(1) && valid->scalar_type() == ScalarType::Bool),
      "nms: valid must be [P, N] of bool");
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const int64_t problems = boxes.size(0), count = boxes.size(1);
  Tensor indices = empty<2>({problems, max_keep}, ScalarType::Long, boxes);
  Tensor counts = empty<1>({problems}, ScalarType::Long, boxes);
  if (count == 0 || max_keep == 0) {
    torch::stable::zero_(indices);
    torch::stable::zero_(counts);
  }
  if (problems == 0 || count == 0 || max_keep == 0) return {indices, counts};
  const int64_t words = ceil_divide(count, kWord), padded = words * kWord;
  const int64_t tiles = ceil_divide(padded, kRows);
  const int64_t shared = words * int64_t{sizeof(Word)};
  KAT_MM_CHECK(shared <= 47 * 1024, "nms: ", count, " boxes in a problem are more than ",
               47 * 1024 / sizeof(Word) * kWord);
  boxes = make_contiguous(boxes);
  if (reinterpret_cast<uintptr_t>(boxes.data_ptr()) % sizeof(float4) != 0) {
    Tensor aligned = empty<3>({problems, count, 4}, ScalarType::Float, boxes);
    torch::stable::copy_(aligned, boxes);
    boxes = aligned;
  }
  order = make_contiguous(order);
  if (valid) valid = make_contiguous(*valid);
  Tensor sorted = empty<3>({problems, padded, 4}, ScalarType::Float, boxes);
  Tensor alive = empty<2>({problems, words}, ScalarType::Long, boxes);
  Tensor overlaps = empty<3>({problems, words, padded}, ScalarType::Long, boxes);

  const cudaStream_t stream = current_stream(boxes.get_device());
  const auto* order_data = static_cast<const int64_t*>(order.data_ptr());
  const dim3 rows(grid_size(problems), static_cast<unsigned>(tiles));
  sort_kernel<<<rows, kRows, 0, stream>>>(
      static_cast<const float4*>(boxes.data_ptr()), order_data,
      valid ? static_cast<const bool*>(valid->data_ptr()) : nullptr,
      static_cast<float4*>(sorted.data_ptr()), static_cast<unsigned*>(alive.data_ptr()),
      static_cast<int>(count), static_cast<int>(padded));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const float threshold = static_cast<float>(iou_threshold);
  // Below 0, any box suppresses all others but those whose IoU is not a number: none is clear.
  const float margin = threshold < 0 ? INFINITY : threshold * 1e-5f;
  const dim3 pairs(grid_size(problems * tiles), static_cast<unsigned>(words));
  overlap_kernel<<<pairs, kRows, 0, stream>>>(static_cast<const float4*>(sorted.data_ptr()),
                                              static_cast<Word*>(overlaps.data_ptr()),
                                              static_cast<int>(words), static_cast<int>(tiles),
                                              threshold, threshold - margin, threshold + margin);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  resolve_kernel<<<grid_size(problems), kResolveThreads, shared, stream>>>(
      static_cast<const Word*>(overlaps.data_ptr()), static_cast<const Word*>(alive.data_ptr()),
      order_data, static_cast<int64_t*>(indices.data_ptr()),
      static_cast<int64_t*>(counts.data_ptr()), static_cast<int>(count), static_cast<int>(words),
      max_keep);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {indices, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) { m.impl("nms", TORCH_BOX(&nms_cuda)); }

}  // namespace kat_mm
