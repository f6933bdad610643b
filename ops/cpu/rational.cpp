// CPU kernels of kat_mm::rational and kat_mm::rational_backward.
//
// Partial sums are added in the order of the tasks: gradients are the same bits on every run.
#include "convert.h"

// The iterations of the loop that follows touch no memory of each other.
#if defined(__clang__)
#define KAT_MM_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define KAT_MM_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace kat_mm {
namespace {

constexpr int64_t kTileBlocks = 256;  // fp32 additions in a lane before the sum goes to fp64
constexpr int64_t kTileRows = 16;     // few, so that a tile is read while its rows are in the cache
constexpr int64_t kShortRun = 256;    // shorter runs may leave too many lanes of a block idle
constexpr int64_t kGrain = 16384;     // fewest elements worth a task
constexpr int64_t kMaxTasks = 128;

// Elements of a block: an AVX-512 register of the narrowest type, since GCC vectorises a conversion
// by the number of lanes of its narrower side.
template <typename X, typename Y>
constexpr int kLanes = 64 / std::min(sizeof(X), sizeof(Y));

// --- how work is cut -------------------------------------------------------------------------

// Memory is a matrix of `outer` rows and groups * run columns, cut into strips of columns and these
// into tiles of a few rows. Within a strip a lane of a block always meets the same coefficients:
// either the strip lies within one group, or it is one block wide and every lane has its own group.
// The cuts depend on sizes alone, not on the number of threads.
struct Plan {
  GroupLayout layout;
  int lanes;
  int64_t period;  // elements of a row
  bool within_group;
  int64_t span;  // columns at whose end a strip ends too
  int64_t strip_width;
  int64_t strips_per_span, strips;
  int64_t tile_rows, tiles;

  Plan(const GroupLayout& layout, int lanes)
      : layout(layout), lanes(lanes), period(layout.groups * layout.run) {
    within_group = layout.run >= kShortRun || layout.run % lanes == 0 || layout.groups == 1;
    span = within_group ? layout.run : period;
    strip_width = within_group ? std::min(span, kTileBlocks * lanes) : lanes;
    strips_per_span = ceil_div(span, strip_width);
    strips = period / span * strips_per_span;
    tile_rows = std::min(kTileRows, kTileBlocks / ceil_div(strip_width, lanes));
    tiles = strips * ceil_div(layout.outer, tile_rows);
  }

  static int64_t ceil_div(int64_t n, int64_t divisor) { return (n + divisor - 1) / divisor; }

  // How many sets of coefficients and of sums there are, of one for each lane.
  int64_t sets() const { return within_group ? layout.groups : strips; }
  int64_t group_of(int64_t set, int lane) const {
    return within_group ? set : std::min(set * lanes + lane, period - 1) / layout.run;
  }
};

struct Tile {
  int64_t set;
  int64_t offset;  // of the first element
  int64_t rows, columns;
};

// Calls work(tile) for tiles [first, last), in the order of memory.
template <typename Work>
void for_tiles(const Plan& plan, int64_t first, int64_t last, const Work& work) {
  for (int64_t i = first; i < last; ++i) {
    const int64_t row = i / plan.strips * plan.tile_rows;
    const int64_t strip = i % plan.strips;
    const int64_t span = strip / plan.strips_per_span;
    const int64_t column = strip % plan.strips_per_span * plan.strip_width;
    work(Tile{plan.within_group ? span : strip, row * plan.period + span * plan.span + column,
              std::min(plan.tile_rows, plan.layout.outer - row),
              std::min(plan.strip_width, plan.span - column)});
  }
}

template <typename T, int M, int N, int L>
struct LaneCoefficients {
  T a[M + 1][L];
  T b[N][L];

  KAT_MM_INLINE Coefficients<T, M, N> at(int lane) const {
    Coefficients<T, M, N> c;
    KAT_MM_UNROLL
    for (int i = 0; i <= M; ++i) c.a[i] = a[i][lane];
    KAT_MM_UNROLL
    for (int j = 0; j < N; ++j) c.b[j] = b[j][lane];
    return c;
  }
};

template <typename T, int M, int N, int L>
std::vector<LaneCoefficients<T, M, N, L>> load_coefficients(const Operands& operands,
                                                            const Plan& plan) {
  const CoefficientRows& rows = operands.rows;
  const T* a = static_cast<const T*>(operands.numerator.const_data_ptr());
  const T* b = static_cast<const T*>(operands.denominator.const_data_ptr());
  std::vector<LaneCoefficients<T, M, N, L>> sets(plan.sets());
  for (int64_t set = 0; set < plan.sets(); ++set) {
    for (int lane = 0; lane < L; ++lane) {
      const int64_t group = plan.group_of(set, lane);
      for (int i = 0; i <= rows.m; ++i) {
        sets[set].a[i][lane] = a[group * rows.numerator_stride + i];
      }
      for (int j = 0; j < rows.n; ++j) {
        sets[set].b[j][lane] = std::abs(b[group * rows.denominator_stride + j]);
      }
    }
  }
  return sets;
}

// --- kernels ---------------------------------------------------------------------------------

// Runs kernel(), all of which has to be inlined, compiled for the vector instructions of this CPU.
#if defined(__x86_64__) && defined(__GNUC__)
template <typename Kernel>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))) void run_avx512(
    const Kernel& kernel) {
  kernel();
}
template <typename Kernel>
__attribute__((target("avx2,fma"))) void run_avx2(const Kernel& kernel) {
  kernel();
}
template <typename Kernel>
void run_vectorised(const Kernel& kernel) {
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool avx512 =
      avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) {
    run_avx512(kernel);
  } else if (avx2) {
    run_avx2(kernel);
  } else {
    kernel();
  }
}
#else
template <typename Kernel>
void run_vectorised(const Kernel& kernel) {
  kernel();
}
#endif

template <typename X, typename Y, typename T, int M, int N, int L>
KAT_MM_INLINE void forward_block(const LaneCoefficients<T, M, N, L>& c, const X* x, Y* y) {
  T x_copy[L], y_copy[L];
  const T* z = load<L>(x, x_copy);
  T* f = staging(y, y_copy);
  KAT_MM_INDEPENDENT
  for (int lane = 0; lane < L; ++lane) f[lane] = rational(c.at(lane), z[lane]);
  store<L>(f, y);
}

template <typename X, typename G, typename T, int M, int N, int L>
KAT_MM_INLINE void backward_block(const LaneCoefficients<T, M, N, L>& coefficients, const X* x,
                                  const G* grad, X* grad_x, T* sums) {
  T x_copy[L], grad_copy[L], grad_x_copy[L];
  const T* z = load<L>(x, x_copy);
  const T* g = load<L>(grad, grad_copy);
  T* dx = staging(grad_x, grad_x_copy);
  KAT_MM_INDEPENDENT
  for (int lane = 0; lane < L; ++lane) {
    const Coefficients<T, M, N> c = coefficients.at(lane);
    dx[lane] = rational_backward(c, Slopes<T, M, N>(c), z[lane], g[lane], sums + lane, L);
  }
  store<L>(dx, grad_x);
}

// Calls whole(offset) for the blocks of a tile, then part(offset, width) for those at the ends of
// its rows that have fewer elements. These go through whole blocks in a copy: all elements take the
// same path, and a value does not depend on its place and neighbours.
template <int L, typename Whole, typename Part>
KAT_MM_INLINE void for_blocks(const Tile& tile, int64_t period, const Whole& whole,
                              const Part& part) {
  const int64_t width = tile.columns % L;
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t first = tile.offset + row * period;
    for (int64_t i = first; i < first + tile.columns - width; i += L) whole(i);
  }
  if (width == 0) return;
  for (int64_t row = 0; row < tile.rows; ++row) {
    part(tile.offset + row * period + tile.columns - width, width);
  }
}

// Prefetches the tile to the right, the next in order: rows are too short for the hardware to do
// it.
template <typename X, typename Y, typename T, int M, int N, int L>
KAT_MM_INLINE void forward_tile(const LaneCoefficients<T, M, N, L>& coefficients, const X* x, Y* y,
                                const Tile& tile, int64_t period) {
  const LaneCoefficients<T, M, N, L> c = coefficients;  // a local copy can stay in registers
  const int64_t next = tile.columns;
  const auto whole = [&](int64_t i) __attribute__((always_inline)) {
    __builtin_prefetch(x + i + next);
    __builtin_prefetch(y + i + next, 1);
    forward_block(c, x + i, y + i);
  };
  const auto part = [&](int64_t i, int64_t width) __attribute__((always_inline)) {
    X x_copy[L] = {};
    Y y_copy[L];
    std::copy(x + i, x + i + width, x_copy);
    forward_block(c, x_copy, y_copy);
    std::copy(y_copy, y_copy + width, y + i);
  };
  for_blocks<L>(tile, period, whole, part);
}

template <typename T, int M, int N, int L>
struct LaneSums {
  static constexpr int kTerms = Coefficients<T, M, N>::kTerms;
  double lanes[kTerms][L] = {};
};

template <typename X, typename G, typename T, int M, int N, int L>
KAT_MM_INLINE void backward_tile(const LaneCoefficients<T, M, N, L>& coefficients, const X* x,
                                 const G* grad, X* grad_x, const Tile& tile, int64_t period,
                                 LaneSums<T, M, N, L>& total) {
  constexpr int kTerms = LaneSums<T, M, N, L>::kTerms;
  const LaneCoefficients<T, M, N, L> c = coefficients;
  const int64_t next = tile.columns;
  T sums[kTerms][L] = {};
  const auto whole = [&](int64_t i) __attribute__((always_inline)) {
    __builtin_prefetch(x + i + next);
    __builtin_prefetch(grad + i + next);
    __builtin_prefetch(grad_x + i + next, 1);
    backward_block(c, x + i, grad + i, grad_x + i, sums[0]);
  };
  const auto part = [&](int64_t i, int64_t width) __attribute__((always_inline)) {
    X x_copy[L] = {}, grad_x_copy[L];
    G grad_copy[L] = {};  // a zero gradient adds nothing to the sums
    std::copy(x + i, x + i + width, x_copy);
    std::copy(grad + i, grad + i + width, grad_copy);
    backward_block(c, x_copy, grad_copy, grad_x_copy, sums[0]);
    std::copy(grad_x_copy, grad_x_copy + width, grad_x + i);
  };
  for_blocks<L>(tile, period, whole, part);
  for (int k = 0; k < kTerms; ++k) {
    for (int lane = 0; lane < L; ++lane) total.lanes[k][lane] += sums[k][lane];
  }
}

// Calls work(task, first, last) in parallel, with even shares of the tiles.
template <typename Work>
void for_tasks(int64_t tiles, int64_t tasks, const Work& work) {
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i, tiles * i / tasks, tiles * (i + 1) / tasks);
  });
}

template <typename X, typename Y, typename T, int M, int N>
void forward(const Operands& operands, Tensor& y) {
  constexpr int L = kLanes<X, Y>;
  const X* in = static_cast<const X*>(operands.x.const_data_ptr());
  Y* out = static_cast<Y*>(y.mutable_data_ptr());
  const Plan plan(operands.layout, L);
  const auto sets = load_coefficients<T, M, N, L>(operands, plan);
  const int64_t tasks = std::clamp<int64_t>(operands.x.numel() / kGrain, 1, kMaxTasks);
  for_tasks(plan.tiles, tasks, [&](int64_t, int64_t first, int64_t last) {
    for_tiles(plan, first, last, [&](const Tile& tile) {
      run_vectorised([&]() __attribute__((always_inline)) {
        forward_tile(sets[tile.set], in, out, tile, plan.period);
      });
    });
  });
}

template <typename X, typename G, typename T, int M, int N>
void backward(const Operands& operands, const Tensor& grad, Tensor& grad_x,
              CoefficientGrads& grads) {
  const CoefficientRows& rows = operands.rows;
  const GroupLayout& layout = operands.layout;
  constexpr int kTerms = Coefficients<T, M, N>::kTerms;
  constexpr int L = kLanes<X, G>;
  const G* g = static_cast<const G*>(grad.const_data_ptr());
  const X* in = static_cast<const X*>(operands.x.const_data_ptr());
  X* out = static_cast<X*>(grad_x.mutable_data_ptr());
  const Plan plan(layout, L);
  const auto sets = load_coefficients<T, M, N, L>(operands, plan);
  // A task is worth several elements for each of its sums.
  const int64_t grain = std::max(kGrain, plan.sets() * L * kTerms * 4);
  const int64_t tasks = std::clamp<int64_t>(operands.x.numel() / grain, 1, kMaxTasks);
  std::vector<double> partials(tasks * layout.groups * kTerms);
  for_tasks(plan.tiles, tasks, [&](int64_t task, int64_t first, int64_t last) {
    std::vector<LaneSums<T, M, N, L>> sums(plan.sets());
    for_tiles(plan, first, last, [&](const Tile& tile) {
      run_vectorised([&]() __attribute__((always_inline)) {
        backward_tile(sets[tile.set], in, g, out, tile, plan.period, sums[tile.set]);
      });
    });
    for (int64_t set = 0; set < plan.sets(); ++set) {
      for (int lane = 0; lane < L; ++lane) {
        const int64_t group = plan.group_of(set, lane);
        for (int k = 0; k < kTerms; ++k) {
          partials[(task * layout.groups + group) * kTerms + k] += sums[set].lanes[k][lane];
        }
      }
    }
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
        for (int64_t task = 0; task < tasks; ++task) {
          for (int64_t group = row; group < last; ++group) {
            sum += partials[(task * layout.groups + group) * kTerms + first_term + column];
          }
        }
        const bool negated = signs != nullptr && !(signs[row * columns + column] < T(0));
        to[row * columns + column] = static_cast<T>(negated ? -sum : sum);
      }
    }
  };
  reduce(grads.numerator, rows.numerator_stride, rows.m + 1, 0, nullptr);
  reduce(grads.denominator, rows.denominator_stride, rows.n, M + 1,
         static_cast<const T*>(operands.denominator.const_data_ptr()));
}

// Calls f(M, N): the tuned order, or the highest one.
template <typename F>
void dispatch_order(const CoefficientRows& rows, const F& f) {
  if (rows.m <= 5 && rows.n <= 4) return f(Constant<5>{}, Constant<4>{});
  return f(Constant<kMaxOrder>{}, Constant<kMaxOrder>{});
}

Tensor rational_cpu(Tensor x, Tensor numerator, Tensor denominator, int64_t channel_dim,
                    std::optional<ScalarType> out_dtype) {
  const Operands operands(x, numerator, denominator, channel_dim);
  x = operands.x;
  Tensor y = empty_like(x, out_dtype.value_or(x.scalar_type()));
  if (x.numel() == 0) return y;
  dispatch_dtypes<Half, BFloat16>(
      x.scalar_type(), y.scalar_type(), [&](auto x_tag, auto y_tag, auto t_tag) {
        dispatch_order(operands.rows, [&](auto m, auto n) {
          forward<decltype(x_tag), decltype(y_tag), decltype(t_tag), m(), n()>(operands, y);
        });
      });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> rational_backward_cpu(Tensor grad, Tensor x, Tensor numerator,
                                                         Tensor denominator, int64_t channel_dim,
                                                         bool coefficient_grads) {
  const Operands operands(x, numerator, denominator, channel_dim);
  x = operands.x;
  grad = match_memory(grad, x);
  Tensor grad_x = empty_like(x, x.scalar_type());
  CoefficientGrads grads(operands.numerator, operands.denominator, coefficient_grads);
  if (x.numel() == 0) {
    grads.zero();
    return {grad_x, grads.numerator, grads.denominator};
  }
  dispatch_dtypes<Half, BFloat16>(
      x.scalar_type(), grad.scalar_type(), [&](auto x_tag, auto g_tag, auto t_tag) {
        dispatch_order(operands.rows, [&](auto m, auto n) {
          backward<decltype(x_tag), decltype(g_tag), decltype(t_tag), m(), n()>(operands, grad,
                                                                                grad_x, grads);
        });
      });
  return {grad_x, grads.numerator, grads.denominator};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CPU, m) {
  m.impl("rational", TORCH_BOX(&rational_cpu));
  m.impl("rational_backward", TORCH_BOX(&rational_backward_cpu));
}

}  // namespace kat_mm
