// Errors of the kernels.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <string>
#include <type_traits>

namespace kat_mm {

inline std::string text(const char* part) { return part; }

template <typename Number, typename = std::enable_if_t<std::is_arithmetic_v<Number>>>
std::string text(Number part) {
  return std::to_string(part);
}

template <typename... Parts>
std::string joined(const Parts&... parts) {
  return (std::string() + ... + text(parts));
}

}  // namespace kat_mm

// Raises a RuntimeError of the texts and numbers that follow the condition, where that is false.
// PyTorch's library throws it. Where a compiler links its C++ runtime into every library
// (-static-libstdc++), an exception or a stream of this one would end the process.
#define KAT_MM_CHECK(condition, ...)                                                              \
  if (!(condition)) {                                                                             \
    aoti_torch_check(false, __func__, __FILE__, __LINE__, ::kat_mm::joined(__VA_ARGS__).c_str()); \
  }
