// CPU kernels of kat_mm::rational and kat_mm::rational_backward.
//
// Work is cut into tasks that depend on the sizes alone, not on the number of threads, and partial
// sums are added in task order: gradients are the same bits on every run.
#include "../rational.h"

#include "../tensors.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define KAT_MM_VECTORISE __attribute__((target_clones("avx512f", "avx2,fma", "default")))
#else
#define KAT_MM_VECTORISE
#endif

namespace kat_mm {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kLanes = 16;         // elements in flight: one AVX-512 register of fp32
constexpr int64_t kGrain = 16384;  // fewest elements worth a task
constexpr int64_t kMaxTasks = 64;  // per group
constexpr int64_t kFlush = 256;    // fp32 additions in a lane before the sum goes to fp64

template <typename T, int M, int N>
Coefficients<T, M, N> load_coefficients(const T* numerator, const T* denominator,
                                        const CoefficientRows& rows, int64_t group) {
  Coefficients<T, M, N> c{};
  for (int i = 0; i <= rows.m; ++i) c.a[i] = numerator[group * rows.numerator_stride + i];
  for (int j = 0; j < rows.n; ++j) {
    c.b[j] = magnitude(denominator[group * rows.denominator_stride + j]);
  }
  return c;
}

// Calls block(offset, width) for blocks of kLanes elements; the last may have fewer. All elements
// take the same path, whatever their place, so that a value does not depend on its neighbours.
template <typename Block>
KAT_MM_INLINE void for_blocks(int64_t count, const Block& block) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) block(i, kLanes);
  if (i < count) block(i, static_cast<int>(count - i));
}

// Copies `width` elements between types; the full width is a loop of constant length.
template <typename From, typename To>
KAT_MM_INLINE void convert(const From* from, To* to, int width) {
  if (width == kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) to[lane] = static_cast<To>(from[lane]);
  } else {
    for (int lane = 0; lane < width; ++lane) to[lane] = static_cast<To>(from[lane]);
  }
}

template <typename X, typename Y, typename T, int M, int N>
KAT_MM_VECTORISE void forward_run(const Coefficients<T, M, N>& c, const X* x, Y* y, int64_t count) {
  const Coefficients<T, M, N> k = c;
  for_blocks(count, [&](int64_t i, int width) __attribute__((always_inline)) {
    T z[kLanes] = {}, f[kLanes];
    convert(x + i, z, width);
    for (int lane = 0; lane < kLanes; ++lane) f[lane] = rational(k, z[lane]);
    convert(f, y + i, width);
  });
}

template <typename T, int M, int N>
struct LaneSums {
  static constexpr int kTerms = Coefficients<T, M, N>::kTerms;
  T lanes[kTerms][kLanes] = {};
  int64_t additions = 0;
  double total[kTerms] = {};

  void flush() {
    for (int k = 0; k < kTerms; ++k) {
      for (int lane = 0; lane < kLanes; ++lane) {
        total[k] += static_cast<double>(lanes[k][lane]);
        lanes[k][lane] = T(0);
      }
    }
    additions = 0;
  }
};

template <typename X, typename G, typename T, int M, int N>
KAT_MM_VECTORISE void backward_run(const Coefficients<T, M, N>& c, const X* x, const G* grad,
                                   X* grad_x, int64_t count, LaneSums<T, M, N>& sums) {
  const Coefficients<T, M, N> k = c;
  for_blocks(count, [&](int64_t i, int width) __attribute__((always_inline)) {
    T z[kLanes] = {}, g[kLanes] = {}, dx[kLanes];  // a zero gradient adds nothing to the sums
    convert(x + i, z, width);
    convert(grad + i, g, width);
    for (int lane = 0; lane < kLanes; ++lane) {
      dx[lane] = rational_backward(k, z[lane], g[lane], &sums.lanes[0][lane], kLanes);
    }
    convert(dx, grad_x + i, width);
    if (++sums.additions == kFlush) sums.flush();
  });
}

// Calls visit(offset, count) for each contiguous piece of elements [first, last) of one group.
template <typename Visit>
void for_pieces(const GroupLayout& layout, int64_t group, int64_t first, int64_t last,
                const Visit& visit) {
  while (first < last) {
    const int64_t row = first / layout.run;
    const int64_t column = first % layout.run;
    const int64_t count = std::min(last - first, layout.run - column);
    visit((row * layout.groups + group) * layout.run + column, count);
    first += count;
  }
}

// Calls work(group, task, first, last) in parallel: `tasks` even shares of each group's elements.
template <typename Work>
void for_tasks(const GroupLayout& layout, int64_t tasks, const Work& work) {
  const int64_t elements = layout.outer * layout.run;
  torch::stable::parallel_for(0, layout.groups * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = i % tasks;
      work(i / tasks, task, elements * task / tasks, elements * (task + 1) / tasks);
    }
  });
}

int64_t tasks_per_group(const GroupLayout& layout) {
  return std::clamp<int64_t>(layout.outer * layout.run / kGrain, 1, kMaxTasks);
}

template <typename X, typename Y, typename T, int M, int N>
void forward(const Tensor& x, const Tensor& numerator, const Tensor& denominator, Tensor& y,
             const CoefficientRows& rows, const GroupLayout& layout) {
  const X* in = static_cast<const X*>(x.const_data_ptr());
  Y* out = static_cast<Y*>(y.mutable_data_ptr());
  const T* a = static_cast<const T*>(numerator.const_data_ptr());
  const T* b = static_cast<const T*>(denominator.const_data_ptr());
  for_tasks(layout, tasks_per_group(layout),
            [&](int64_t group, int64_t, int64_t first, int64_t last) {
              const auto c = load_coefficients<T, M, N>(a, b, rows, group);
              for_pieces(layout, group, first, last, [&](int64_t offset, int64_t count) {
                forward_run<X, Y, T, M, N>(c, in + offset, out + offset, count);
              });
            });
}

template <typename X, typename G, typename T, int M, int N>
void backward(const Tensor& grad, const Tensor& x, const Tensor& numerator,
              const Tensor& denominator, Tensor& grad_x, CoefficientGrads& grads,
              const CoefficientRows& rows, const GroupLayout& layout) {
  constexpr int kTerms = Coefficients<T, M, N>::kTerms;
  const G* g = static_cast<const G*>(grad.const_data_ptr());
  const X* in = static_cast<const X*>(x.const_data_ptr());
  X* out = static_cast<X*>(grad_x.mutable_data_ptr());
  const T* a = static_cast<const T*>(numerator.const_data_ptr());
  const T* b = static_cast<const T*>(denominator.const_data_ptr());
  const int64_t tasks = tasks_per_group(layout);
  std::vector<double> partials(layout.groups * tasks * kTerms);
  for_tasks(layout, tasks, [&](int64_t group, int64_t task, int64_t first, int64_t last) {
    const auto c = load_coefficients<T, M, N>(a, b, rows, group);
    LaneSums<T, M, N> sums;
    for_pieces(layout, group, first, last, [&](int64_t offset, int64_t count) {
      backward_run<X, G, T, M, N>(c, in + offset, g + offset, out + offset, count, sums);
    });
    sums.flush();
    std::copy(sums.total, sums.total + kTerms, &partials[(group * tasks + task) * kTerms]);
  });
  if (!grads.wanted) return;

  const auto reduce = [&](Tensor& result, int64_t stride, int columns, int first_term,
                          const T* signs) {
    T* to = static_cast<T*>(result.mutable_data_ptr());
    const int64_t row_count = stride == 0 ? 1 : layout.groups;
    for (int64_t row = 0; row < row_count; ++row) {
      const int64_t last = stride == 0 ? layout.groups : row + 1;
      for (int column = 0; column < columns; ++column) {
        double sum = 0;
        for (int64_t i = row * tasks; i < last * tasks; ++i) {
          sum += partials[i * kTerms + first_term + column];
        }
        const bool negative = signs != nullptr && signs[row * columns + column] < T(0);
        to[row * columns + column] = static_cast<T>(negative ? -sum : sum);
      }
    }
  };
  reduce(grads.numerator, rows.numerator_stride, rows.m + 1, 0, nullptr);
  reduce(grads.denominator, rows.denominator_stride, rows.n, M + 1, b);
}

// Calls f<X, T> with the C++ types of a dtype and of its arithmetic.
template <typename F>
void dispatch_dtype(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{}, float{});
    case ScalarType::Double:
      return f(double{}, double{});
    case ScalarType::Half:
      return f(Half{}, float{});
    case ScalarType::BFloat16:
      return f(BFloat16{}, float{});
    default:
      STD_TORCH_CHECK(false, "rational: unsupported dtype of x");
  }
}

Tensor rational_cpu(Tensor x, Tensor numerator, Tensor denominator, int64_t channel_dim,
                    std::optional<ScalarType> out_dtype) {
  const CoefficientRows rows = check(x, numerator, denominator, channel_dim);
  numerator = torch::stable::contiguous(numerator);
  denominator = torch::stable::contiguous(denominator);
  GroupLayout layout;
  x = make_dense(x, channel_dim, rows.groups, layout);
  const ScalarType y_dtype = out_dtype.value_or(x.scalar_type());
  Tensor y = empty_like(x, y_dtype);
  if (x.numel() == 0) return y;
  dispatch_dtype(x.scalar_type(), [&](auto x_tag, auto t_tag) {
    using X = decltype(x_tag);
    using T = decltype(t_tag);
    const auto run = [&](auto y_tag) {
      using Y = decltype(y_tag);
      if (rows.m <= 5 && rows.n <= 4) {
        forward<X, Y, T, 5, 4>(x, numerator, denominator, y, rows, layout);
      } else {
        forward<X, Y, T, kMaxOrder, kMaxOrder>(x, numerator, denominator, y, rows, layout);
      }
    };
    if (y_dtype == x.scalar_type()) return run(X{});
    if constexpr (std::is_same_v<X, float>) {
      if (y_dtype == ScalarType::Half) return run(Half{});
      if (y_dtype == ScalarType::BFloat16) return run(BFloat16{});
    }
    STD_TORCH_CHECK(false, "rational: out_dtype must be that of x, or a half dtype for float32 x");
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> rational_backward_cpu(Tensor grad, Tensor x, Tensor numerator,
                                                         Tensor denominator, int64_t channel_dim,
                                                         bool coefficient_grads) {
  const CoefficientRows rows = check(x, numerator, denominator, channel_dim);
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
  dispatch_dtype(x.scalar_type(), [&](auto x_tag, auto t_tag) {
    using X = decltype(x_tag);
    using T = decltype(t_tag);
    const auto run = [&](auto g_tag) {
      using G = decltype(g_tag);
      if (rows.m <= 5 && rows.n <= 4) {
        backward<X, G, T, 5, 4>(grad, x, numerator, denominator, grad_x, grads, rows, layout);
      } else {
        backward<X, G, T, kMaxOrder, kMaxOrder>(grad, x, numerator, denominator, grad_x, grads,
                                                rows, layout);
      }
    };
    const ScalarType g_dtype = grad.scalar_type();
    if (g_dtype == x.scalar_type()) return run(X{});
    if constexpr (std::is_same_v<X, float>) {
      if (g_dtype == ScalarType::Half) return run(Half{});
      if (g_dtype == ScalarType::BFloat16) return run(BFloat16{});
    }
    STD_TORCH_CHECK(false,
                    "rational_backward: grad must have the dtype of x, or a half dtype for "
                    "float32 x");
  });
  return {grad_x, grads.numerator, grads.denominator};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CPU, m) {
  m.impl("rational", TORCH_BOX(&rational_cpu));
  m.impl("rational_backward", TORCH_BOX(&rational_backward_cpu));
}

}  // namespace kat_mm
