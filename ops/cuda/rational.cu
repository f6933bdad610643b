// CUDA kernels of kat_mm::rational and kat_mm::rational_backward.
//
// Every block works for one group, whose coefficients stay in registers. Its threads walk over the
// group's elements as vectors of up to 16 bytes: (row, column) steps through `outer` rows of
// `run / V` vectors each, which serves channels-last and channels-first memory alike. Coefficient
// gradients are reduced in two stages, per block and then over the blocks, in a fixed order and
// without atomics.
#include "reduce.cuh"

namespace kat_mm {
namespace {

constexpr int kForwardThreads = 128;
constexpr int kForwardVectors = 2;  // per thread, both loaded before the first is used
constexpr int kBackwardThreads = 256;

// How the backward kernel keeps memory busy: each thread loads the next kVectors vectors of x and
// of the gradient while it computes as many. More of them, or more blocks, are no faster.
template <typename T, int V>
struct BackwardShape {
  static constexpr int kVectors = V > 1 ? 2 : 1;
  static constexpr int kBlocks = sizeof(T) == 8 ? 1 : 2;  // per multiprocessor
};

// --- the walk over one group -----------------------------------------------------------------

// Counts in vectors of V elements. With V > 1 all counts fit 32 bits, see `vectors_fit`.
template <int V>
struct Walk {
  using Index = std::conditional_t<V == 1, int64_t, uint32_t>;
  Index groups;
  Index columns;  // vectors of a group in one row
  Index total;    // vectors of a group in all rows
  Divisor by_columns;
  Divisor by_groups;

  explicit Walk(const GroupLayout& layout)
      : groups(layout.groups),
        columns(layout.run / V),
        total(layout.outer * (layout.run / V)),
        by_columns(columns, total),
        by_groups(layout.groups, 0) {}

  // The place in memory of vector `index` of `group`.
  __device__ __forceinline__ Index at(Index group, Index index) const {
    const Index row = by_columns.quotient(index);
    return index + (row * (groups - 1) + group) * columns;
  }
};

// --- kernels -----------------------------------------------------------------------------------

template <typename X, typename Y, typename T, int M, int N, int V>
__global__ void __launch_bounds__(kForwardThreads)
    forward_kernel(const X* __restrict__ x, const T* __restrict__ numerator,
                   const T* __restrict__ denominator, Y* __restrict__ y, CoefficientRows rows,
                   Walk<V> walk) {
  using Index = typename Walk<V>::Index;
  const uint32_t part = walk.by_groups.quotient(blockIdx.x);
  const Index group = blockIdx.x - part * static_cast<uint32_t>(walk.groups);
  const Index first = Index{part} * (kForwardThreads * kForwardVectors) + threadIdx.x;
  Vector<X, V> in[kForwardVectors];
  Index places[kForwardVectors];
#pragma unroll
  for (int k = 0; k < kForwardVectors; ++k) {
    const Index index = first + k * kForwardThreads;
    if (index < walk.total) {
      places[k] = walk.at(group, index);
      in[k] = load<X, V>(x, places[k]);
    }
  }
  const auto c = load_coefficients<T, M, N>(numerator, denominator, rows, group);
#pragma unroll
  for (int k = 0; k < kForwardVectors; ++k) {
    if (first + k * kForwardThreads >= walk.total) break;
    T values[V];
    widen(in[k], values);
#pragma unroll
    for (int e = 0; e < V; ++e) values[e] = rational(c, values[e]);
    store(y, places[k], narrow<Y, V>(values));
  }
}

// Partial sums are written as [kTerms, groups, parts].
template <typename X, typename G, typename T, int M, int N, int V>
__global__ void __launch_bounds__(kBackwardThreads, BackwardShape<T, V>::kBlocks)
    backward_kernel(const G* __restrict__ grad, const X* __restrict__ x,
                    const T* __restrict__ numerator, const T* __restrict__ denominator,
                    X* __restrict__ grad_x, T* __restrict__ partials, CoefficientRows rows,
                    Walk<V> walk, uint32_t parts) {
  using Index = typename Walk<V>::Index;
  constexpr int kTerms = Coefficients<T, M, N>::kTerms;
  constexpr int kVectors = BackwardShape<T, V>::kVectors;
  constexpr Index kTile = kBackwardThreads * kVectors;
  const uint32_t part = walk.by_groups.quotient(blockIdx.x);
  const Index group = blockIdx.x - part * static_cast<uint32_t>(walk.groups);
  const Index step = parts * kTile;
  Index index = part * kTile + threadIdx.x;

  // Two buffers in turns, whose places are known at compile time: registers, and no copies.
  Vector<X, V> xs[2][kVectors];
  Vector<G, V> gs[2][kVectors];
  Index places[2][kVectors];
  const auto fill = [&](int buffer, Index from) {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (from + k * kBackwardThreads < walk.total) {
        places[buffer][k] = walk.at(group, from + k * kBackwardThreads);
        xs[buffer][k] = load<X, V>(x, places[buffer][k]);
        gs[buffer][k] = load<G, V>(grad, places[buffer][k]);
      }
    }
  };
  fill(0, index);
  const auto c = load_coefficients<T, M, N>(numerator, denominator, rows, group);
  const Slopes<T, M, N> slopes(c);
  T sums[kTerms] = {};
  while (index < walk.total) {
#pragma unroll
    for (int buffer = 0; buffer < 2; ++buffer) {
      if (index >= walk.total) break;
      fill(1 - buffer, index + step);
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        if (index + k * kBackwardThreads < walk.total) {
          T values[V], grads[V];
          widen(xs[buffer][k], values);
          widen(gs[buffer][k], grads);
#pragma unroll
          for (int e = 0; e < V; ++e) {
            values[e] = rational_backward(c, slopes, values[e], grads[e], sums, 1);
          }
          store(grad_x, places[buffer][k], narrow<X, V>(values));
        }
      }
      index += step;
    }
  }
  const int64_t sums_of_a_term = int64_t{walk.groups} * parts;
  store_block_sums<T, kTerms, kBackwardThreads>(sums, partials + group * parts + part,
                                                sums_of_a_term);
}

// --- launches ----------------------------------------------------------------------------------

template <typename X, typename Y, typename T, int M, int N, int V>
void launch_forward(const Operands& in, Tensor& y) {
  const Walk<V> walk(in.layout);
  const int64_t parts = ceil_divide(walk.total, kForwardThreads * kForwardVectors);
  forward_kernel<X, Y, T, M, N, V><<<grid_size(parts * in.layout.groups), kForwardThreads, 0,
                                     current_stream(in.x.get_device())>>>(
      static_cast<const X*>(in.x.const_data_ptr()),
      static_cast<const T*>(in.numerator.const_data_ptr()),
      static_cast<const T*>(in.denominator.const_data_ptr()), static_cast<Y*>(y.mutable_data_ptr()),
      in.rows, walk);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename X, typename G, typename T, int M, int N, int V>
void launch_backward(const Operands& in, const Tensor& grad, Tensor& grad_x,
                     CoefficientGrads& grads) {
  using Shape = BackwardShape<T, V>;
  constexpr int kTerms = Coefficients<T, M, N>::kTerms;
  const Walk<V> walk(in.layout);
  const int device = in.x.get_device();
  const int64_t parts =
      std::clamp<int64_t>(wave(Shape::kBlocks, device) / in.layout.groups, 1,
                          ceil_divide(walk.total, kBackwardThreads * Shape::kVectors));
  Tensor partials = empty<3>({kTerms, in.layout.groups, parts}, in.numerator.scalar_type(), in.x);
  backward_kernel<X, G, T, M, N, V>
      <<<grid_size(parts * in.layout.groups), kBackwardThreads, 0, current_stream(device)>>>(
          static_cast<const G*>(grad.const_data_ptr()),
          static_cast<const X*>(in.x.const_data_ptr()),
          static_cast<const T*>(in.numerator.const_data_ptr()),
          static_cast<const T*>(in.denominator.const_data_ptr()),
          static_cast<X*>(grad_x.mutable_data_ptr()), static_cast<T*>(partials.mutable_data_ptr()),
          in.rows, walk, static_cast<uint32_t>(parts));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (grads.wanted) {
    reduce_coefficient_grads<T, M, N>(partials, in.denominator, grads, in.rows, parts);
  }
}

// Whether all the tensors can be read as vectors of V elements in every row, and counted in 32
// bits, with room for the steps beyond the last one.
template <int V>
bool vectors_fit(const GroupLayout& layout, std::initializer_list<const void*> pointers) {
  bool fit =
      layout.run % V == 0 && layout.outer * layout.groups * layout.run / V < (int64_t{1} << 31);
  for (const void* pointer : pointers) fit &= reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  return fit;
}

// Calls f(M, N, V): the tuned order with vectors where memory allows, any other order element-wise.
template <int V, typename F>
void dispatch_shape(const CoefficientRows& rows, bool vectors, const F& f) {
  if (rows.m > 5 || rows.n > 4)
    return f(Constant<kMaxOrder>{}, Constant<kMaxOrder>{}, Constant<1>{});
  if (vectors) return f(Constant<5>{}, Constant<4>{}, Constant<V>{});
  return f(Constant<5>{}, Constant<4>{}, Constant<1>{});
}

Tensor rational_cuda(Tensor x, Tensor numerator, Tensor denominator, int64_t channel_dim,
                     std::optional<ScalarType> out_dtype) {
  const Operands in(x, numerator, denominator, channel_dim);
  const torch::stable::accelerator::DeviceGuard guard(in.x.get_device_index());
  Tensor y = empty_like(in.x, out_dtype.value_or(in.x.scalar_type()));
  if (in.x.numel() == 0) return y;
  dispatch_dtypes<__half, __nv_bfloat16>(
      in.x.scalar_type(), y.scalar_type(), [&](auto x_tag, auto y_tag, auto t_tag) {
        using X = decltype(x_tag);
        constexpr int kV = 16 / sizeof(X);
        const bool vectors =
            vectors_fit<kV>(in.layout, {in.x.const_data_ptr(), y.const_data_ptr()});
        dispatch_shape<kV>(in.rows, vectors, [&](auto m, auto n, auto v) {
          launch_forward<X, decltype(y_tag), decltype(t_tag), m(), n(), v()>(in, y);
        });
      });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> rational_backward_cuda(Tensor grad, Tensor x, Tensor numerator,
                                                          Tensor denominator, int64_t channel_dim,
                                                          bool coefficient_grads) {
  const Operands in(x, numerator, denominator, channel_dim);
  const torch::stable::accelerator::DeviceGuard guard(in.x.get_device_index());
  grad = match_memory(grad, in.x);
  Tensor grad_x = empty_like(in.x, in.x.scalar_type());
  CoefficientGrads grads(in.numerator, in.denominator, coefficient_grads);
  if (in.x.numel() == 0) {
    grads.zero();
    return {grad_x, grads.numerator, grads.denominator};
  }
  dispatch_dtypes<__half, __nv_bfloat16>(
      in.x.scalar_type(), grad.scalar_type(), [&](auto x_tag, auto g_tag, auto t_tag) {
        using X = decltype(x_tag);
        constexpr int kV = 16 / sizeof(X);
        const bool vectors = vectors_fit<kV>(
            in.layout, {in.x.const_data_ptr(), grad.const_data_ptr(), grad_x.const_data_ptr()});
        dispatch_shape<kV>(in.rows, vectors, [&](auto m, auto n, auto v) {
          launch_backward<X, decltype(g_tag), decltype(t_tag), m(), n(), v()>(in, grad, grad_x,
                                                                              grads);
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
