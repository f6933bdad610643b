// Bilinear resizing along one side, as torch's: where an output samples the input, and which
// outputs sample one input.
#pragma once

#include "launch.cuh"

namespace kat_mm {

// An output lies between the inputs `first` and `second`, at `weight` of the way to the second.
template <typename T>
struct Sample {
  int first, second;
  T weight;
};

template <typename T>
struct Side {
  int in, out;
  bool align_corners;
  T scale;

  Side(int64_t in, int64_t out, bool align_corners)
      : in(static_cast<int>(in)), out(static_cast<int>(out)), align_corners(align_corners) {
    if (align_corners) {
      scale = out > 1 ? static_cast<T>(in - 1) / static_cast<T>(out - 1) : T(0);
    } else {
      scale = static_cast<T>(in) / static_cast<T>(out);
    }
  }

  __device__ __forceinline__ Sample<T> at(int output) const {
    T place = align_corners ? scale * output : scale * (output + T(0.5)) - T(0.5);
    place = place < T(0) ? T(0) : place;
    const int first = min(static_cast<int>(place), in - 1);
    return {first, min(first + 1, in - 1), place - first};
  }

  // The first output whose `first` input is `input` or behind it; `out` if there is none.
  __device__ __forceinline__ int first_output(int input) const {
    if (input <= 0) return 0;
    if (scale == T(0)) return out;
    const T place = align_corners ? input / scale : (input + T(0.5)) / scale - T(0.5);
    // A step too early, whatever was rounded; the loop ends at the right one.
    int output = max(0, static_cast<int>(min(place, T(out))) - 1);
    while (output < out && at(output).first < input) ++output;
    return output;
  }
};

}  // namespace kat_mm
