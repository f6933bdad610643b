// The maths of one element of the group-rational function, for host and device; no torch here.
//
//   F(x) = P(x) / Q(x),  P(x) = a0 + a1 x + ... + aM x^M,  Q(x) = 1 + |b1||x| + ... + |bN||x|^N
//
// With y = P/Q, u = g/Q and v = -u y, g being the gradient of F(x):
//   dx = u (P'(x) - sgn(x) y Q'(|x|)),  da_i = u x^i,  db_j = sgn(b_j) v |x|^j
#pragma once

#if defined(__CUDACC__)
#define KAT_MM_INLINE __host__ __device__ __forceinline__
#define KAT_MM_UNROLL _Pragma("unroll")
#else
#define KAT_MM_INLINE inline __attribute__((always_inline))
#define KAT_MM_UNROLL _Pragma("GCC unroll 8")
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

template <typename T>
KAT_MM_INLINE T magnitude(T x) {
  return x < T(0) ? -x : x;
}

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

template <typename T, int M, int N>
KAT_MM_INLINE T numerator(const Coefficients<T, M, N>& c, T x) {
  T p = c.a[M];
  KAT_MM_UNROLL
  for (int i = M - 1; i >= 0; --i) p = p * x + c.a[i];
  return p;
}

template <typename T, int M, int N>
KAT_MM_INLINE T denominator(const Coefficients<T, M, N>& c, T magnitude_x) {
  T q = c.b[N - 1];
  KAT_MM_UNROLL
  for (int j = N - 2; j >= 0; --j) q = q * magnitude_x + c.b[j];
  return q * magnitude_x + T(1);
}

template <typename T, int M, int N>
KAT_MM_INLINE T rational(const Coefficients<T, M, N>& c, T x) {
  return numerator(c, x) * reciprocal(denominator(c, magnitude(x)));
}

// Returns dx for the output gradient g and adds the element's share of the coefficient gradients,
// u x^i and then v |x|^j (the sign of b_j is left to the end), to sums[0], sums[stride], ...
template <typename T, int M, int N>
KAT_MM_INLINE T rational_backward(const Coefficients<T, M, N>& c, T x, T g, T* sums, int stride) {
  const T ax = magnitude(x);
  const T r = reciprocal(denominator(c, ax));
  const T y = numerator(c, x) * r;
  const T u = g * r;

  T dp = T(M) * c.a[M];
  KAT_MM_UNROLL
  for (int i = M - 1; i >= 1; --i) dp = dp * x + T(i) * c.a[i];
  T dq = T(N) * c.b[N - 1];
  KAT_MM_UNROLL
  for (int j = N - 1; j >= 1; --j) dq = dq * ax + T(j) * c.b[j - 1];
  const T sign = x > T(0) ? T(1) : (x < T(0) ? T(-1) : T(0));

  T power = u;
  sums[0] += power;
  KAT_MM_UNROLL
  for (int i = 1; i <= M; ++i) {
    power *= x;
    sums[i * stride] += power;
  }
  power = -u * y;
  KAT_MM_UNROLL
  for (int j = 1; j <= N; ++j) {
    power *= ax;
    sums[(M + j) * stride] += power;
  }
  return u * (dp - sign * y * dq);
}

}  // namespace kat_mm
