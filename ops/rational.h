// The maths of one element of the group-rational function, for host and device; no torch here.
//
//   F(x) = P(x) / Q(x),  P(x) = a0 + a1 x + ... + aM x^M,  Q(x) = 1 + |b1||x| + ... + |bN||x|^N
//
// With y = P/Q, u = g/Q and w = u y, g being the gradient of F(x):
//   dx = u P'(x) - sgn(x) w Q'(|x|),  da_i = u x^i,  db_j = -sgn(b_j) w |x|^j
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define KAT_MM_INLINE __host__ __device__ __forceinline__
#define KAT_MM_UNROLL _Pragma("unroll")
#else
#define KAT_MM_INLINE inline __attribute__((always_inline))
#define KAT_MM_UNROLL _Pragma("GCC unroll 16")
#endif

namespace kat_mm {

// Coefficients of one group; b holds absolute values, and the power j + 1 belongs to b[j].
// Lower orders are padded with zeros, which change neither the value nor the other gradients.
template <typename T, int M, int N>
struct Coefficients {
  static constexpr int kTerms = M + 1 + N;
  T a[M + 1];
  T b[N];
};

// Coefficients of P' and of Q' as a function of |x|.
template <typename T, int M, int N>
struct Slopes {
  T a[M];
  T b[N];

  KAT_MM_INLINE explicit Slopes(const Coefficients<T, M, N>& c) {
    KAT_MM_UNROLL
    for (int i = 0; i < M; ++i) a[i] = T(i + 1) * c.a[i + 1];
    KAT_MM_UNROLL
    for (int j = 0; j < N; ++j) b[j] = T(j + 1) * c.b[j];
  }
};

// 1 / q for q >= 1. On the GPU one approximate instruction, accurate to 1 ulp in fp32.
KAT_MM_INLINE float reciprocal(float q) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(q));
  return r;
#else
  return 1.0f / q;
#endif
}
KAT_MM_INLINE double reciprocal(double q) { return 1.0 / q; }

// sgn(x) value for value >= 0; sgn(0) is 0.
template <typename T>
KAT_MM_INLINE T with_sign(T value, T x) {
#if defined(__CUDA_ARCH__)
  return x == T(0) ? T(0) : std::copysign(value, x);  // one instruction less
#else
  return std::copysign(x == T(0) ? T(0) : T(1), x) * value;  // no branch: vectorised everywhere
#endif
}

// c[0] + c[1] x + ... by Horner's rule.
template <typename T, int K>
KAT_MM_INLINE T polynomial(const T (&c)[K], T x) {
  T p = c[K - 1];
  KAT_MM_UNROLL
  for (int i = K - 2; i >= 0; --i) p = p * x + c[i];
  return p;
}

template <typename T, int M, int N>
KAT_MM_INLINE T denominator(const Coefficients<T, M, N>& c, T magnitude) {
  return polynomial(c.b, magnitude) * magnitude + T(1);
}

template <typename T, int M, int N>
KAT_MM_INLINE T rational(const Coefficients<T, M, N>& c, T x) {
  return polynomial(c.a, x) * reciprocal(denominator(c, std::abs(x)));
}

// Adds t x, t x^2, ... t x^K to sums[0], sums[stride], ...: one multiplication for two terms.
template <int K, typename T>
KAT_MM_INLINE void add_powers(T t, T x, T square, T* sums, int stride) {
  KAT_MM_UNROLL
  for (int k = 0; k < K; k += 2) {
    if (k > 0) t *= square;
    sums[k * stride] += t * x;
    if (k + 1 < K) sums[(k + 1) * stride] += t * square;
  }
}

// Returns dx for the output gradient g and adds the element's share of the coefficient gradients,
// u x^i and then w |x|^j (the sign of -b_j is left to the end), to sums[0], sums[stride], ...
template <typename T, int M, int N>
KAT_MM_INLINE T rational_backward(const Coefficients<T, M, N>& c, const Slopes<T, M, N>& slopes,
                                  T x, T g, T* sums, int stride) {
  const T magnitude = std::abs(x);
  const T r = reciprocal(denominator(c, magnitude));
  const T u = g * r;
  const T w = u * (polynomial(c.a, x) * r);

  const T square = x * x;
  sums[0] += u;
  add_powers<M>(u, x, square, sums + stride, stride);
  add_powers<N>(w, magnitude, square, sums + (M + 1) * stride, stride);

  return u * polynomial(slopes.a, x) - w * with_sign(polynomial(slopes.b, magnitude), x);
}

}  // namespace kat_mm
