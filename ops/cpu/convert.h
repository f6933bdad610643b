// Conversions of half types that compilers vectorise: torch's own have branches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../rational.h"
#include "../tensors.h"

namespace kat_mm {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

KAT_MM_INLINE float from_bits(uint32_t bits) { return c10::bit_cast<float>(bits); }
KAT_MM_INLINE uint32_t to_bits(float value) { return c10::bit_cast<uint32_t>(value); }
KAT_MM_INLINE uint32_t select(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = -static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

KAT_MM_INLINE float widen(uint32_t bits, BFloat16) { return from_bits(bits << 16); }
KAT_MM_INLINE float widen(uint32_t bits, Half) {
  const uint32_t magnitude = bits & 0x7fffu;
  const uint32_t normal = to_bits(from_bits((magnitude << 13) + 0x70000000u) * 0x1p-112f);
  const uint32_t subnormal = to_bits(from_bits(magnitude | 0x3f000000u) - 0.5f);
  return from_bits(select(magnitude < 0x400u, subnormal, normal) | (bits & 0x8000u) << 16);
}

// Rounds to the nearest, ties to even; NaN stays NaN.
KAT_MM_INLINE uint32_t narrow(float value, BFloat16) {
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits & 0x7fffffffu) + 0x7fffu + (bits >> 16 & 1);
  return (bits >> 16 & 0x8000u) | std::min(rounded, 0x7fc00000u) >> 16;
}
KAT_MM_INLINE uint32_t narrow(float value, Half) {
  const uint32_t bits = to_bits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t rounded = (magnitude - 0x38000000u + 0xfffu + (bits >> 13 & 1)) >> 13;
  const uint32_t normal = std::min(rounded, 0x7c00u);  // or infinity
  const uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t number = select(magnitude < 0x38800000u, subnormal, normal);
  return (bits >> 16 & 0x8000u) | select(magnitude > 0x7f800000u, 0x7e00u, number);
}

// Elements as T: where they lie if they are T, converted to `copy` otherwise. Loops that convert
// are apart from those that change the width, or GCC would compute on 16-bit lanes in part.
template <int L, typename X, typename T>
KAT_MM_INLINE const T* load(const X* from, T* copy) {
  if constexpr (std::is_same_v<X, T>) {
    return from;
  } else {
    uint32_t bits[L];
    for (int lane = 0; lane < L; ++lane) bits[lane] = from[lane].x;
    for (int lane = 0; lane < L; ++lane) copy[lane] = widen(bits[lane], X{});
    return copy;
  }
}

// Where to put results for store(): where they belong if they are T, into `copy` otherwise.
template <typename Y, typename T>
KAT_MM_INLINE T* staging(Y* to, T* copy) {
  if constexpr (std::is_same_v<Y, T>) {
    return to;
  } else {
    return copy;
  }
}

template <int L, typename T, typename Y>
KAT_MM_INLINE void store(const T* copy, Y* to) {
  if constexpr (!std::is_same_v<Y, T>) {
    uint32_t bits[L];
    for (int lane = 0; lane < L; ++lane) bits[lane] = narrow(copy[lane], Y{});
    for (int lane = 0; lane < L; ++lane) to[lane].x = static_cast<uint16_t>(bits[lane]);
  }
}

}  // namespace kat_mm
