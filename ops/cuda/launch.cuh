// What all kernels share: vectors of elements, indices, coefficients, launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <cstring>
#include <map>
#include <mutex>
#include <type_traits>

#include "../rational.h"
#include "../tensors.h"

namespace kat_mm {

// --- vectors -------------------------------------------------------------------------------

// V adjacent elements of up to 16 bytes, one load or store. They are held as words, from which
// 16-bit elements are taken in pairs: arrays of them cost an extra instruction per copied element.
template <typename S, int V>
struct alignas(sizeof(S) * V) Vector {
  static_assert(sizeof(S) * V <= 16);
  using Word = std::conditional_t<sizeof(S) * V % 4 == 0, uint32_t, uint16_t>;
  Word words[sizeof(S) * V / sizeof(Word)];
};

template <typename S, int V>
__device__ __forceinline__ Vector<S, V> load(const S* from, int64_t vector) {
  return reinterpret_cast<const Vector<S, V>*>(from)[vector];
}

template <typename S, int V>
__device__ __forceinline__ void store(S* to, int64_t vector, const Vector<S, V>& value) {
  reinterpret_cast<Vector<S, V>*>(to)[vector] = value;
}

// Written out, as torch's build flags take away the implicit conversions of 16-bit types.
__device__ __forceinline__ float widen(float s) { return s; }
__device__ __forceinline__ double widen(double s) { return s; }
__device__ __forceinline__ float widen(__half s) { return __half2float(s); }
__device__ __forceinline__ float widen(__nv_bfloat16 s) { return __bfloat162float(s); }
__device__ __forceinline__ float narrow(float t, float) { return t; }
__device__ __forceinline__ double narrow(double t, double) { return t; }
__device__ __forceinline__ __half narrow(float t, __half) { return __float2half_rn(t); }
__device__ __forceinline__ __nv_bfloat16 narrow(float t, __nv_bfloat16) {
  return __float2bfloat16_rn(t);
}

__device__ __forceinline__ float2 widen_pair(uint32_t word, __nv_bfloat16) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
__device__ __forceinline__ float2 widen_pair(uint32_t word, __half) {
  __half2 pair;
  std::memcpy(&pair, &word, sizeof word);
  return __half22float2(pair);
}
__device__ __forceinline__ __nv_bfloat162 narrow_pair(float lo, float hi, __nv_bfloat16) {
  return __floats2bfloat162_rn(lo, hi);
}
__device__ __forceinline__ __half2 narrow_pair(float lo, float hi, __half) {
  return __floats2half2_rn(lo, hi);
}

template <typename S, int V, typename T>
__device__ __forceinline__ void widen(const Vector<S, V>& vector, T (&to)[V]) {
  if constexpr (sizeof(S) == 2 && V % 2 == 0) {
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
      const float2 pair = widen_pair(vector.words[i], S{});
      to[2 * i] = pair.x;
      to[2 * i + 1] = pair.y;
    }
  } else {
    S elements[V];
    std::memcpy(elements, &vector, sizeof vector);
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = widen(elements[i]);
  }
}

template <typename S, int V, typename T>
__device__ __forceinline__ Vector<S, V> narrow(const T (&from)[V]) {
  Vector<S, V> vector;
  if constexpr (sizeof(S) == 2 && V % 2 == 0) {
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
      const auto pair = narrow_pair(from[2 * i], from[2 * i + 1], S{});
      std::memcpy(&vector.words[i], &pair, sizeof pair);
    }
  } else {
    S elements[V];
#pragma unroll
    for (int i = 0; i < V; ++i) elements[i] = narrow(from[i], S{});
    std::memcpy(&vector, elements, sizeof vector);
  }
  return vector;
}

// --- indices -------------------------------------------------------------------------------

// Divides by a fixed number with a multiplication, for dividends below 2^31.
struct Divisor {
  int64_t value;
  uint32_t multiplier;
  uint32_t shift;
  bool fits;  // all dividends lie below 2^31

  Divisor(int64_t divisor, int64_t largest_dividend)
      : value(divisor), multiplier(0), shift(0), fits(largest_dividend < (int64_t{1} << 31)) {
    if (!fits) return;
    while ((int64_t{1} << shift) < divisor) ++shift;
    const uint64_t scale = uint64_t{1} << 32;
    multiplier = static_cast<uint32_t>(scale * ((uint64_t{1} << shift) - divisor) / divisor + 1);
  }

  __device__ __forceinline__ uint32_t quotient(uint32_t dividend) const {
    return (__umulhi(dividend, multiplier) + dividend) >> shift;
  }
  __device__ __forceinline__ int64_t quotient(int64_t dividend) const {
    return fits ? int64_t{quotient(static_cast<uint32_t>(dividend))} : dividend / value;
  }
};

// --- coefficients --------------------------------------------------------------------------

template <typename T, int M, int N>
__device__ __forceinline__ Coefficients<T, M, N> load_coefficients(const T* numerator,
                                                                   const T* denominator,
                                                                   const CoefficientRows& rows,
                                                                   int64_t group) {
  Coefficients<T, M, N> c;
#pragma unroll
  for (int i = 0; i <= M; ++i) {
    c.a[i] = i <= rows.m ? numerator[group * rows.numerator_stride + i] : T(0);
  }
#pragma unroll
  for (int j = 0; j < N; ++j) {
    c.b[j] = j < rows.n ? std::abs(denominator[group * rows.denominator_stride + j]) : T(0);
  }
  return c;
}

// --- launches ------------------------------------------------------------------------------

inline int device_attribute(cudaDeviceAttr attribute, int device) {
  static std::mutex mutex;
  static std::map<std::pair<cudaDeviceAttr, int>, int> values;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = values.find({attribute, device});
  if (found != values.end()) return found->second;
  int value;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return values[{attribute, device}] = value;
}

// Whether a kernel was compiled for GPUs that can overlap it with the one before it, and runs on
// one: code for older GPUs has no wait_for_previous_kernel().
template <typename Kernel>
bool can_overlap(Kernel* kernel, int device) {
  static std::mutex mutex;
  static std::map<std::pair<Kernel*, int>, bool> answers;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = answers.find({kernel, device});
  if (found != answers.end()) return found->second;
  cudaFuncAttributes attributes;
  STD_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
  return answers[{kernel, device}] =
             attributes.ptxVersion >= 90 &&
             device_attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9;
}

// The blocks that run at the same time. A grid of one wave has no last wave that leaves most
// multiprocessors idle.
inline int64_t wave(int blocks_per_multiprocessor, int device) {
  return int64_t{blocks_per_multiprocessor} *
         device_attribute(cudaDevAttrMultiProcessorCount, device);
}

inline cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline unsigned grid_size(int64_t blocks) {
  KAT_MM_CHECK(blocks < (int64_t{1} << 31), "rational: the tensor needs ", blocks,
               " CUDA blocks, more than a grid holds");
  return static_cast<unsigned>(blocks);
}

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Launches a kernel that begins with wait_for_previous_kernel(). Where the GPU can (compute
// capability 9.0), its blocks are set up while the kernel before it ends, which saves about a
// microsecond.
template <typename... Parameters, typename... Arguments>
void launch_behind(void (*kernel)(Parameters...), int64_t blocks, int threads, int device,
                   Arguments... arguments) {
  cudaLaunchAttribute overlap;
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid_size(blocks));
  config.blockDim = dim3(threads);
  config.stream = current_stream(device);
  config.attrs = &overlap;
  config.numAttrs = can_overlap(kernel, device);
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

}  // namespace kat_mm
