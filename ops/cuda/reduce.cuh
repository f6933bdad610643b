// Sums in a fixed order, without atomics: of a warp, of a block, and of all blocks of a kernel.
#pragma once

#include "launch.cuh"

namespace kat_mm {

constexpr int kReduceThreads = 256;

// Returns the sum over the lanes of a warp, to each of them.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// Writes the block's sums of `values` to to[0], to[stride], ..., added in a fixed order.
template <typename T, int kTerms, int kThreads>
__device__ __forceinline__ void store_block_sums(const T (&values)[kTerms], T* to, int64_t stride) {
  constexpr int kWarps = kThreads / 32;
  __shared__ T shared[kTerms][kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kTerms; ++k) {
    const T sum = warp_sum(values[k]);
    if (lane == 0) shared[k][warp] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kTerms) {
    T sum = T(0);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += shared[threadIdx.x][w];
    to[threadIdx.x * stride] = sum;
  }
}

// One block for each coefficient: adds the partial sums [kTerms, groups, parts] of the groups that
// share it, in fp64.
template <typename T, int M, int N>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_kernel(const T* __restrict__ partials, const T* __restrict__ denominator,
                  T* __restrict__ grad_numerator, T* __restrict__ grad_denominator,
                  CoefficientRows rows, int64_t parts) {
  wait_for_previous_kernel();
  constexpr int kTerms = Coefficients<T, M, N>::kTerms;
  const int term = blockIdx.x % kTerms;
  const int64_t row = blockIdx.x / kTerms;
  const bool is_numerator = term <= M;
  const int column = is_numerator ? term : term - (M + 1);
  const int columns = is_numerator ? rows.m + 1 : rows.n;
  const bool shared = (is_numerator ? rows.numerator_stride : rows.denominator_stride) == 0;
  if (column >= columns || (shared && row > 0)) return;

  // All parts of all groups that share the coefficient lie next to each other.
  const T* from = partials + (term * rows.groups + row) * parts;
  const int64_t count = shared ? rows.groups * parts : parts;
  double sum[1] = {0};
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kReduceThreads) sum[0] += double(from[i]);
  __shared__ double total;
  store_block_sums<double, 1, kReduceThreads>(sum, &total, 1);
  if (threadIdx.x != 0) return;
  const int64_t at = row * columns + column;
  if (is_numerator) {
    grad_numerator[at] = static_cast<T>(total);
  } else {
    grad_denominator[at] = static_cast<T>(denominator[at] < T(0) ? total : -total);
  }
}

// Reduces what the blocks of a backward kernel, the one launched before, wrote to `partials`.
template <typename T, int M, int N>
void reduce_coefficient_grads(const Tensor& partials, const Tensor& denominator,
                              CoefficientGrads& grads, const CoefficientRows& rows, int64_t parts) {
  launch_behind(reduce_kernel<T, M, N>, rows.groups * Coefficients<T, M, N>::kTerms, kReduceThreads,
                partials.get_device(), static_cast<const T*>(partials.const_data_ptr()),
                static_cast<const T*>(denominator.const_data_ptr()),
                static_cast<T*>(grads.numerator.mutable_data_ptr()),
                static_cast<T*>(grads.denominator.mutable_data_ptr()), rows, parts);
}

}  // namespace kat_mm
