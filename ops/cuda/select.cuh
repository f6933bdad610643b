// The largest of many keys, found by one block, and sorting them in shared memory.
#pragma once

#include "launch.cuh"

namespace kat_mm {

using Key = unsigned long long;  // 0 is none

// Where the levels of a pyramid begin among the anchors of all of them.
struct Levels {
  static constexpr int kMost = 16;
  int count;
  int64_t starts[kMost + 1];

  Levels(const std::vector<int64_t>& sizes, int64_t total) : count(0), starts{} {
    KAT_MM_CHECK(sizes.size() <= kMost, sizes.size(), " levels are more than ", kMost);
    for (const int64_t size : sizes) {
      starts[count + 1] = starts[count] + size;
      ++count;
    }
    KAT_MM_CHECK(starts[count] == total, "levels of ", starts[count], " anchors are not the ",
                 total, " that there are");
  }
};

constexpr int kSelectThreads = 1024;
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kLoads = 4;  // keys of a thread on their way at the same time
constexpr unsigned kAllLanes = 0xffffffffu;

// A float's bits as a number of the same order: NaN above all, and 0 equal to -0.
__device__ __forceinline__ unsigned ordered_bits(float value) {
  if (value != value) return 0xffffffffu;
  const unsigned bits = __float_as_uint(value + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The key of a number and an index, of which smaller ones come first where numbers are equal.
__device__ __forceinline__ Key key_of(unsigned number, unsigned index) {
  return Key{number} << 32 | ~index;
}
__device__ __forceinline__ unsigned index_of(Key key) { return ~static_cast<unsigned>(key); }

struct SelectScratch {
  int histogram[kBins];
  int warp_sums[kSelectThreads / 32];
  int bin, above, in_bin, total, found;
};

// Goes through the bins from the last to the first, and sets, in the scratch, which bin holds the
// key of rank `wanted`, counted from 1, how many keys are in bins above it and how many in it; and
// the total. Begins and ends with a barrier.
__device__ inline void find_bin(SelectScratch& scratch, int wanted) {
  constexpr int kPerThread = kBins / kSelectThreads;
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int last = kBins - 1 - static_cast<int>(threadIdx.x) * kPerThread;
  int counts[kPerThread], sum = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) sum += counts[i] = scratch.histogram[last - i];
  int upto = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, upto, step);
    if (lane >= step) upto += other;
  }
  if (lane == 31) scratch.warp_sums[warp] = upto;
  __syncthreads();
  int before = 0;
  for (int w = 0; w < warp; ++w) before += scratch.warp_sums[w];
  upto += before;
  if (threadIdx.x == kSelectThreads - 1) scratch.total = upto;
  int above = upto - sum;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (above < wanted && wanted <= above + counts[i]) {
      scratch.bin = last - i;
      scratch.above = above;
      scratch.in_bin = counts[i];
    }
    above += counts[i];
  }
  __syncthreads();
}

// Calls visit(key, index) for all keys, in whole warps; 0 stands for keys that are not there.
template <typename KeyAt, typename Visit>
__device__ __forceinline__ void for_each_key(const KeyAt& key_at, int count, const Visit& visit) {
  for (int start = 0; start < count; start += kSelectThreads * kLoads) {
    Key keys[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int index = start + i * kSelectThreads + threadIdx.x;
      keys[i] = index < count ? key_at(index) : 0;
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) visit(keys[i]);
  }
}

// Collects the `wanted` largest of distinct keys, or all if there are not as many, in any order.
// Called by a whole block; returns how many there are to each of its threads. `found` has room for
// `wanted` keys in shared memory.
//
// A radix selection: the counts of the highest digit tell in which bin the last of them is, those
// of the next digit tell where in that bin, until a bin is taken as a whole.
template <typename KeyAt>
__device__ int select_largest(const KeyAt& key_at, int count, int wanted, Key* found,
                              SelectScratch& scratch) {
  const int lane = threadIdx.x % 32;
  Key prefix = 0, least = 1;
  int remaining = wanted;
  if (wanted == 0) return 0;
  for (int shift = 64; shift > 0;) {
    const int low = max(shift - kDigitBits, 0), bins = 1 << (shift - low);
    for (int i = threadIdx.x; i < kBins; i += kSelectThreads) scratch.histogram[i] = 0;
    __syncthreads();
    for_each_key(key_at, count, [&](Key key) {
      const bool competes = key != 0 && (shift == 64 || key >> shift == prefix);
      const unsigned active = __ballot_sync(kAllLanes, competes);
      if (!competes) return;
      // Keys that are close to each other would wait for each other at one bin.
      const int bin = static_cast<int>(key >> low) & (bins - 1);
      const unsigned same = __match_any_sync(active, bin);
      if (lane == __ffs(same) - 1) atomicAdd(&scratch.histogram[bin], __popc(same));
    });
    find_bin(scratch, remaining);
    if (shift == 64 && scratch.total <= wanted) break;  // all of them
    prefix = prefix << (shift - low) | scratch.bin;
    shift = low;
    remaining -= scratch.above;
    least = prefix << shift;
    if (scratch.in_bin == remaining) break;
  }
  __syncthreads();
  if (threadIdx.x == 0) scratch.found = 0;
  __syncthreads();
  for_each_key(key_at, count, [&](Key key) {
    const bool is_found = key >= least;
    const unsigned mask = __ballot_sync(kAllLanes, is_found);
    if (mask == 0) return;
    int start = 0;
    if (lane == 0) start = atomicAdd(&scratch.found, __popc(mask));
    start = __shfl_sync(kAllLanes, start, 0);
    if (is_found) found[start + __popc(mask & ((1u << lane) - 1))] = key;
  });
  __syncthreads();
  return scratch.found;
}

// Sorts keys in shared memory, from the largest to the smallest, by a bitonic network; `size` is a
// power of two. Called by a whole block.
__device__ inline void sort_falling(Key* keys, int size) {
  for (int width = 2; width <= size; width *= 2) {
    for (int step = width / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < size / 2; i += kSelectThreads) {
        const int first = i / step * step * 2 + i % step, second = first + step;
        const Key a = keys[first], b = keys[second];
        const bool is_falling = (first & width) == 0;
        if (is_falling ? a < b : a > b) {
          keys[first] = b;
          keys[second] = a;
        }
      }
    }
  }
  __syncthreads();
}

// The power of two that a number of keys is padded to, to be sorted.
inline int sorted_size(int64_t count) {
  int size = 2;
  while (size < count) size *= 2;
  return size;
}

}  // namespace kat_mm
