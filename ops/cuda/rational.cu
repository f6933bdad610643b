// CUDA kernels of kat_mm::rational and kat_mm::rational_backward.
//
// Every block works for one group, whose coefficients stay in registers. Its threads walk over the
// group's elements as vectors of up to 16 bytes: (row, column) steps through `outer` rows of
// `run / V` vectors each, which serves channels-last and channels-first memory alike. Coefficient
// gradients are reduced in two stages, per block and then over the blocks, in a fixed order and
// without atomics.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <map>
#include <mutex>

#include "../rational.h"
#include "../tensors.h"

namespace kat_mm {
namespace {

constexpr int kForwardThreads = 128;
constexpr int kForwardVectors = 2;  // per thread, both loaded before the first is used
constexpr int kBackwardThreads = 256;
constexpr int kBackwardBlocksPerMultiprocessor = 2;
constexpr int kReduceThreads = 128;

// --- elements and vectors ------------------------------------------------------------------

template <typename S, int V>
struct alignas(sizeof(S) * V < 16 ? sizeof(S) * V : 16) Vector {
  S v[V];
};

__device__ __forceinline__ float widen(float s) { return s; }
__device__ __forceinline__ double widen(double s) { return s; }
__device__ __forceinline__ float widen(__half s) { return __half2float(s); }
__device__ __forceinline__ float widen(__nv_bfloat16 s) { return __bfloat162float(s); }

template <typename S, typename T>
__device__ __forceinline__ S narrow(T t) {
  return static_cast<S>(t);
}
template <>
__device__ __forceinline__ __half narrow<__half, float>(float t) {
  return __float2half_rn(t);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16, float>(float t) {
  return __float2bfloat16_rn(t);
}

// --- the walk over one group -----------------------------------------------------------------

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

  __device__ __forceinline__ int64_t quotient(int64_t dividend) const {
    if (!fits) return dividend / value;
    const uint32_t n = static_cast<uint32_t>(dividend);
    return (__umulhi(n, multiplier) + n) >> shift;
  }
};

struct Walk {
  int64_t groups;
  int64_t run;      // elements of a group in one row
  int64_t total;    // vectors of a group in all rows
  Divisor columns;  // vectors of a group in one row

  Walk(const GroupLayout& layout, int vector)
      : groups(layout.groups),
        run(layout.run),
        total(layout.outer * (layout.run / vector)),
        columns(layout.run / vector, total) {}

  // The first element of vector `index` of `group`.
  template <int V>
  __device__ __forceinline__ int64_t offset(int64_t group, int64_t index) const {
    const int64_t row = columns.quotient(index);
    return (row * groups + group) * run + (index - row * columns.value) * V;
  }
};

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
    c.b[j] = j < rows.n ? magnitude(denominator[group * rows.denominator_stride + j]) : T(0);
  }
  return c;
}

// --- kernels -----------------------------------------------------------------------------------

template <typename X, typename Y, typename T, int M, int N, int V>
__global__ void __launch_bounds__(kForwardThreads)
    forward_kernel(const X* __restrict__ x, const T* __restrict__ numerator,
                   const T* __restrict__ denominator, Y* __restrict__ y, CoefficientRows rows,
                   Walk walk) {
  const int64_t part = blockIdx.x / walk.groups;
  const int64_t group = blockIdx.x - part * walk.groups;
  const int64_t first = part * (kForwardThreads * kForwardVectors) + threadIdx.x;
  Vector<X, V> in[kForwardVectors];
  int64_t offsets[kForwardVectors];
#pragma unroll
  for (int k = 0; k < kForwardVectors; ++k) {
    const int64_t index = first + k * kForwardThreads;
    if (index < walk.total) {
      offsets[k] = walk.offset<V>(group, index);
      in[k] = *reinterpret_cast<const Vector<X, V>*>(x + offsets[k]);
    }
  }
  const auto c = load_coefficients<T, M, N>(numerator, denominator, rows, group);
#pragma unroll
  for (int k = 0; k < kForwardVectors; ++k) {
    if (first + k * kForwardThreads >= walk.total) break;
    Vector<Y, V> out;
#pragma unroll
    for (int e = 0; e < V; ++e) out.v[e] = narrow<Y>(rational(c, widen(in[k].v[e])));
    *reinterpret_cast<Vector<Y, V>*>(y + offsets[k]) = out;
  }
}

// Writes the block's sums of `values` to `to`, added in a fixed order.
template <typename T, int kTerms, int kThreads>
__device__ __forceinline__ void store_block_sums(T (&values)[kTerms], T* to) {
  constexpr int kWarps = kThreads / 32;
  __shared__ T shared[kTerms][kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kTerms; ++k) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      values[k] += __shfl_xor_sync(0xffffffffu, values[k], step);
    }
    if (lane == 0) shared[k][warp] = values[k];
  }
  __syncthreads();
  if (threadIdx.x < kTerms) {
    T sum = T(0);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += shared[threadIdx.x][w];
    to[threadIdx.x] = sum;
  }
}

template <typename X, typename G, typename T, int M, int N, int V>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocksPerMultiprocessor)
    backward_kernel(const G* __restrict__ grad, const X* __restrict__ x,
                    const T* __restrict__ numerator, const T* __restrict__ denominator,
                    X* __restrict__ grad_x, T* __restrict__ partials, CoefficientRows rows,
                    Walk walk, int64_t parts) {
  constexpr int kTerms = Coefficients<T, M, N>::kTerms;
  const int64_t part = blockIdx.x / walk.groups;
  const int64_t group = blockIdx.x - part * walk.groups;
  const auto c = load_coefficients<T, M, N>(numerator, denominator, rows, group);
  T sums[kTerms] = {};

  const int64_t step = parts * kBackwardThreads;
  int64_t index = part * kBackwardThreads + threadIdx.x;
  int64_t offset = 0;
  Vector<X, V> x_now;
  Vector<G, V> g_now;
  if (index < walk.total) {
    offset = walk.offset<V>(group, index);
    x_now = *reinterpret_cast<const Vector<X, V>*>(x + offset);
    g_now = *reinterpret_cast<const Vector<G, V>*>(grad + offset);
  }
  while (index < walk.total) {
    // The next loads are under way while this vector is computed.
    const int64_t next = index + step;
    int64_t next_offset = 0;
    Vector<X, V> x_next;
    Vector<G, V> g_next;
    if (next < walk.total) {
      next_offset = walk.offset<V>(group, next);
      x_next = *reinterpret_cast<const Vector<X, V>*>(x + next_offset);
      g_next = *reinterpret_cast<const Vector<G, V>*>(grad + next_offset);
    }
    Vector<X, V> out;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      out.v[e] = narrow<X>(rational_backward(c, widen(x_now.v[e]), widen(g_now.v[e]), sums, 1));
    }
    *reinterpret_cast<Vector<X, V>*>(grad_x + offset) = out;
    index = next;
    offset = next_offset;
    x_now = x_next;
    g_now = g_next;
  }
  store_block_sums<T, kTerms, kBackwardThreads>(sums, partials + (group * parts + part) * kTerms);
}

// One block for each coefficient: adds the partial sums [groups, parts, kTerms] of the groups that
// share it, in fp64.
template <typename T, int M, int N>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_kernel(const T* __restrict__ partials, const T* __restrict__ denominator,
                  T* __restrict__ grad_numerator, T* __restrict__ grad_denominator,
                  CoefficientRows rows, int64_t parts) {
  constexpr int kTerms = Coefficients<T, M, N>::kTerms;
  const int term = blockIdx.x % kTerms;
  const int64_t row = blockIdx.x / kTerms;
  const bool is_numerator = term <= M;
  const int column = is_numerator ? term : term - (M + 1);
  const int columns = is_numerator ? rows.m + 1 : rows.n;
  const bool shared = (is_numerator ? rows.numerator_stride : rows.denominator_stride) == 0;
  if (column >= columns || (shared && row > 0)) return;

  const int64_t first = shared ? 0 : row * parts;
  const int64_t last = shared ? rows.groups * parts : first + parts;
  double sum[1] = {0};
  for (int64_t i = first + threadIdx.x; i < last; i += kReduceThreads) {
    sum[0] += static_cast<double>(partials[i * kTerms + term]);
  }
  __shared__ double total;
  store_block_sums<double, 1, kReduceThreads>(sum, &total);
  if (threadIdx.x != 0) return;
  const int64_t at = row * columns + column;
  if (is_numerator) {
    grad_numerator[at] = static_cast<T>(total);
  } else {
    grad_denominator[at] = static_cast<T>(denominator[at] < T(0) ? -total : total);
  }
}

// --- launches ----------------------------------------------------------------------------------

int multiprocessors(int device) {
  static std::mutex mutex;
  static std::map<int, int> counts;
  const std::lock_guard<std::mutex> lock(mutex);
  int& count = counts[device];
  if (count == 0) {
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  }
  return count;
}

cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

unsigned grid_size(int64_t blocks) {
  STD_TORCH_CHECK(blocks < (int64_t{1} << 31), "rational: the tensor needs ", blocks,
                  " CUDA blocks, more than a grid holds");
  return static_cast<unsigned>(blocks);
}

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether all the tensors can be read as vectors of V elements in every row.
template <int V>
bool vectors_fit(const GroupLayout& layout, std::initializer_list<const void*> pointers) {
  bool fit = layout.run % V == 0;
  for (const void* pointer : pointers) fit &= reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  return fit;
}

template <typename X, typename Y, typename T, int M, int N, int V>
void launch_forward(const Tensor& x, const Tensor& numerator, const Tensor& denominator, Tensor& y,
                    const CoefficientRows& rows, const GroupLayout& layout) {
  const Walk walk(layout, V);
  const int64_t parts = ceil_divide(walk.total, kForwardThreads * kForwardVectors);
  forward_kernel<X, Y, T, M, N, V>
      <<<grid_size(parts * layout.groups), kForwardThreads, 0, current_stream(x.get_device())>>>(
          static_cast<const X*>(x.const_data_ptr()),
          static_cast<const T*>(numerator.const_data_ptr()),
          static_cast<const T*>(denominator.const_data_ptr()),
          static_cast<Y*>(y.mutable_data_ptr()), rows, walk);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename X, typename G, typename T, int M, int N, int V>
void launch_backward(const Tensor& grad, const Tensor& x, const Tensor& numerator,
                     const Tensor& denominator, Tensor& grad_x, CoefficientGrads& grads,
                     const CoefficientRows& rows, const GroupLayout& layout) {
  constexpr int kTerms = Coefficients<T, M, N>::kTerms;
  const Walk walk(layout, V);
  const int device = x.get_device();
  const cudaStream_t stream = current_stream(device);
  // One full wave at most: a last partial wave would leave most multiprocessors idle.
  const int64_t wave = int64_t{kBackwardBlocksPerMultiprocessor} * multiprocessors(device);
  const int64_t parts =
      std::clamp<int64_t>(wave / layout.groups, 1, ceil_divide(walk.total, kBackwardThreads));
  Tensor partials = torch::stable::new_empty(numerator, {layout.groups, parts, kTerms});
  T* partials_data = static_cast<T*>(partials.mutable_data_ptr());
  const T* denominator_data = static_cast<const T*>(denominator.const_data_ptr());
  backward_kernel<X, G, T, M, N, V>
      <<<grid_size(parts * layout.groups), kBackwardThreads, 0, stream>>>(
          static_cast<const G*>(grad.const_data_ptr()), static_cast<const X*>(x.const_data_ptr()),
          static_cast<const T*>(numerator.const_data_ptr()), denominator_data,
          static_cast<X*>(grad_x.mutable_data_ptr()), partials_data, rows, walk, parts);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (!grads.wanted) return;
  reduce_kernel<T, M, N><<<grid_size(layout.groups * kTerms), kReduceThreads, 0, stream>>>(
      partials_data, denominator_data, static_cast<T*>(grads.numerator.mutable_data_ptr()),
      static_cast<T*>(grads.denominator.mutable_data_ptr()), rows, parts);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Elements in a vector of 16 bytes of the narrower of two types.
template <typename A, typename B>
constexpr int kVector = 16 / (sizeof(A) < sizeof(B) ? sizeof(A) : sizeof(B));

template <int I>
using Constant = std::integral_constant<int, I>;

// Calls f(M, N, V): the tuned order with vectors where memory allows, any other order element-wise.
template <int V, typename F>
void dispatch_shape(const CoefficientRows& rows, bool vectors, const F& f) {
  if (rows.m > 5 || rows.n > 4)
    return f(Constant<kMaxOrder>{}, Constant<kMaxOrder>{}, Constant<1>{});
  if (vectors) return f(Constant<5>{}, Constant<4>{}, Constant<V>{});
  return f(Constant<5>{}, Constant<4>{}, Constant<1>{});
}

// Calls f(X, Y, T) with the C++ types of x, of its output (or that output's gradient) and of the
// arithmetic.
template <typename F>
void dispatch_dtypes(ScalarType x, ScalarType y, const F& f) {
  if (x == y) {
    if (x == ScalarType::Float) return f(float{}, float{}, float{});
    if (x == ScalarType::Double) return f(double{}, double{}, double{});
    if (x == ScalarType::Half) return f(__half{}, __half{}, float{});
    if (x == ScalarType::BFloat16) return f(__nv_bfloat16{}, __nv_bfloat16{}, float{});
  } else if (x == ScalarType::Float) {
    if (y == ScalarType::Half) return f(float{}, __half{}, float{});
    if (y == ScalarType::BFloat16) return f(float{}, __nv_bfloat16{}, float{});
  }
  STD_TORCH_CHECK(false,
                  "rational: unsupported dtypes; the output must have the dtype of x, or a "
                  "half dtype for a float32 x");
}

Tensor rational_cuda(Tensor x, Tensor numerator, Tensor denominator, int64_t channel_dim,
                     std::optional<ScalarType> out_dtype) {
  const CoefficientRows rows = check(x, numerator, denominator, channel_dim);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  numerator = torch::stable::contiguous(numerator);
  denominator = torch::stable::contiguous(denominator);
  GroupLayout layout;
  x = make_dense(x, channel_dim, rows.groups, layout);
  Tensor y = empty_like(x, out_dtype.value_or(x.scalar_type()));
  if (x.numel() == 0) return y;
  dispatch_dtypes(x.scalar_type(), y.scalar_type(), [&](auto x_tag, auto y_tag, auto t_tag) {
    using X = decltype(x_tag);
    using Y = decltype(y_tag);
    using T = decltype(t_tag);
    constexpr int kV = kVector<X, Y>;
    const bool vectors = vectors_fit<kV>(layout, {x.const_data_ptr(), y.const_data_ptr()});
    dispatch_shape<kV>(rows, vectors, [&](auto m, auto n, auto v) {
      launch_forward<X, Y, T, m(), n(), v()>(x, numerator, denominator, y, rows, layout);
    });
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> rational_backward_cuda(Tensor grad, Tensor x, Tensor numerator,
                                                          Tensor denominator, int64_t channel_dim,
                                                          bool coefficient_grads) {
  const CoefficientRows rows = check(x, numerator, denominator, channel_dim);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  numerator = torch::stable::contiguous(numerator);
  denominator = torch::stable::contiguous(denominator);
  GroupLayout layout;
  x = make_dense(x, channel_dim, rows.groups, layout);
  grad = match_memory(grad, x);
  Tensor grad_x = torch::stable::empty_like(x);
  CoefficientGrads grads(numerator, denominator, coefficient_grads);
  if (x.numel() == 0) {
    grads.zero();
    return {grad_x, grads.numerator, grads.denominator};
  }
  dispatch_dtypes(x.scalar_type(), grad.scalar_type(), [&](auto x_tag, auto g_tag, auto t_tag) {
    using X = decltype(x_tag);
    using G = decltype(g_tag);
    using T = decltype(t_tag);
    constexpr int kV = kVector<X, G>;
    const bool vectors = vectors_fit<kV>(
        layout, {x.const_data_ptr(), grad.const_data_ptr(), grad_x.const_data_ptr()});
    dispatch_shape<kV>(rows, vectors, [&](auto m, auto n, auto v) {
      launch_backward<X, G, T, m(), n(), v()>(grad, x, numerator, denominator, grad_x, grads, rows,
                                              layout);
    });
  });
  return {grad_x, grads.numerator, grads.denominator};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) {
  m.impl("rational", TORCH_BOX(&rational_cuda));
  m.impl("rational_backward", TORCH_BOX(&rational_backward_cuda));
}

}  // namespace kat_mm
