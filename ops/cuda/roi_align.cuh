// RoIAlign along one side of a RoI and of a map, as torchvision's: which points of the map a bin
// samples, and between which two of its rows, or columns, they lie. A point of a bin is a pair of
// samples, so that its weights are products.
#pragma once

#include "launch.cuh"

namespace kat_mm {

constexpr int kMaxLevels = 8;

// One map of each image, [B, H, W, C] in memory.
struct RoiLevel {
  void* data;
  int height, width;
  float scale;     // of the image's coordinates to the map's
  int first_tile;  // of this level, in the backward
};

struct RoiLevels {
  RoiLevel level[kMaxLevels];
  int count;
  int images;
};

// What all RoIs of a call share.
struct RoiOptions {
  int bins_y, bins_x;
  int sampling_ratio;  // samples a side of a bin; 0 or less: as many as keep them a pixel apart
  bool aligned;        // coordinates are those of pixel centres, half a pixel off
  float finest_scale;
};

// The samples of a RoI along one side.
struct RoiSide {
  float start, bin;
  int samples;  // in each bin

  __device__ RoiSide() {}
  __device__ RoiSide(float low, float high, float scale, int bins, const RoiOptions& options) {
    const float offset = options.aligned ? 0.5f : 0.0f;
    start = low * scale - offset;
    float size = high * scale - offset - start;
    if (!options.aligned) size = fmaxf(size, 1.0f);
    bin = size / static_cast<float>(bins);
    samples = options.sampling_ratio > 0 ? options.sampling_ratio : static_cast<int>(ceilf(bin));
    if (!(fabsf(bin) < 1e6f)) samples = 0;  // not a number, or infinite
  }

  // The rows or columns of a map that the samples may touch: [first, last], or none.
  __device__ __forceinline__ void touched(int bins, int size, int* first, int* last) const {
    const float end = start + bins * bin;
    *first = static_cast<int>(fmaxf(fminf(start, end) - 1.0f, 0.0f));
    *last = static_cast<int>(fminf(fmaxf(start, end) + 2.0f, static_cast<float>(size - 1)));
    if (samples <= 0) *last = -1;
  }

  __device__ __forceinline__ float place(int of_bin, int sample) const {
    return start + of_bin * bin +
           static_cast<float>(sample + 0.5f) * bin / static_cast<float>(samples);
  }
};

// A sample lies between `low` and `high`, at `weight` of the way; one far outside counts nothing.
struct RoiSample {
  int low, high;
  float weight;
  bool counts;

  __device__ __forceinline__ RoiSample(float place, int size) {
    counts = place >= -1.0f && place <= static_cast<float>(size);
    place = fmaxf(place, 0.0f);
    low = static_cast<int>(place);
    if (low >= size - 1) {
      low = high = size - 1;
      weight = 0.0f;
    } else {
      high = low + 1;
      weight = place - static_cast<float>(low);
    }
  }
};

// The level that mmdet's SingleRoIExtractor gives a RoI; none (-1) to a box turned inside out.
__device__ __forceinline__ int level_of_roi(const float* roi, const RoiLevels& levels,
                                            float finest_scale) {
  const float scale = sqrtf((roi[3] - roi[1]) * (roi[4] - roi[2]));
  const float level = floorf(log2f(scale / finest_scale + 1e-6f));
  if (!(level == level)) return -1;
  return static_cast<int>(fminf(fmaxf(level, 0.0f), static_cast<float>(levels.count - 1)));
}

// The level of RoI k, and its image; a level of -1 for padding and for what lies outside the batch.
__device__ __forceinline__ int find_level(const float* rois, const int64_t* of_roi, int64_t k,
                                          const RoiLevels& levels, float finest_scale, int* image) {
  const float* roi = rois + 5 * k;
  *image = static_cast<int>(roi[0]);
  if (roi[0] < 0.0f || *image >= levels.images) return -1;
  if (of_roi == nullptr) return level_of_roi(roi, levels, finest_scale);
  const int64_t level = of_roi[k];
  return level >= 0 && level < levels.count ? static_cast<int>(level) : -1;
}

// --- arguments on the host -----------------------------------------------------------------------

// Whether channels are last in memory; a map of one channel or of one pixel may be either.
inline bool channels_are_last(const Tensor& x) {
  const int64_t c = x.size(1), h = x.size(2), w = x.size(3);
  return (c == 1 || x.stride(1) == 1) && (w == 1 || x.stride(3) == c) &&
         (h == 1 || x.stride(2) == c * w) && (x.size(0) == 1 || x.stride(0) == c * w * h);
}

inline Tensor empty_channels_last(int64_t images, int64_t channels, int64_t height, int64_t width,
                                  ScalarType dtype, const Tensor& like) {
  const std::array<int64_t, 4> sizes = {images, channels, height, width};
  const std::array<int64_t, 4> strides = {channels * height * width, 1, channels * width, channels};
  return empty_strided({sizes.data(), 4}, {strides.data(), 4}, dtype, like);
}

inline Tensor make_channels_last(const Tensor& x) {
  if (channels_are_last(x)) return x;
  Tensor copy = empty_channels_last(x.size(0), x.size(1), x.size(2), x.size(3), x.scalar_type(), x);
  torch::stable::copy_(copy, x);
  return copy;
}

inline bool is_aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <typename F>
void dispatch_maps(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Float) return f(float{});
  if (dtype == ScalarType::Half) return f(__half{});
  if (dtype == ScalarType::BFloat16) return f(__nv_bfloat16{});
  KAT_MM_CHECK(false, "multilevel_roi_align: maps must be float32, float16 or bfloat16 on a GPU");
}

inline RoiOptions check_rois(const Tensor& rois, const std::optional<Tensor>& levels, int64_t maps,
                             int64_t scales, int64_t height, int64_t width, int64_t sampling_ratio,
                             bool aligned, double finest_scale) {
  KAT_MM_CHECK(maps >= 1 && maps <= kMaxLevels && maps == scales,
               "multilevel_roi_align: there must be 1 to ", kMaxLevels,
               " maps and a scale for each, got ", maps, " and ", scales);
  KAT_MM_CHECK(rois.dim() == 2 && rois.size(1) == 5 && rois.scalar_type() == ScalarType::Float,
               "multilevel_roi_align: rois must be [K, 5] in float32");
  KAT_MM_CHECK(!levels || (levels->dim() == 1 && levels->size(0) == rois.size(0) &&
                           levels->scalar_type() == ScalarType::Long),
               "multilevel_roi_align: levels must be [K] in int64, for rois [K, 5]");
  KAT_MM_CHECK(height >= 1 && width >= 1 && height <= 32 && width <= 32,
               "multilevel_roi_align: on a GPU, output sizes lie between 1 and 32, got ", height,
               " x ", width);
  return {static_cast<int>(height), static_cast<int>(width), static_cast<int>(sampling_ratio),
          aligned, static_cast<float>(finest_scale)};
}

}  // namespace kat_mm
