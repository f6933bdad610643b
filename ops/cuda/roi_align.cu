// CUDA kernel of kat_mm::multilevel_roi_align, all RoIs of all levels in one launch.
//
// A block has one RoI and a chunk of its channels, which are adjacent in the maps' memory. Threads
// take vectors of channels of one bin; its samples lie less than a pixel apart, so that most of
// what they load is in the cache. Where the result has channels first, the block turns it round in
// shared memory.
#include "roi_align.cuh"

namespace kat_mm {
namespace {

constexpr int kThreads = 256;
constexpr int kSharedBytes = 40960;

template <typename S, int V>
__device__ __forceinline__ void pool_bin(const S* map, const RoiLevel& level, int64_t channels,
                                         const RoiSide& side_y, const RoiSide& side_x, int bin_y,
                                         int bin_x, float (&sums)[V]) {
  for (int i = 0; i < side_y.samples; ++i) {
    const RoiSample y(side_y.place(bin_y, i), level.height);
    if (!y.counts) continue;
    const S* upper = map + int64_t{y.low} * level.width * channels;
    const S* lower = map + int64_t{y.high} * level.width * channels;
    for (int j = 0; j < side_x.samples; ++j) {
      const RoiSample x(side_x.place(bin_x, j), level.width);
      if (!x.counts) continue;
      const int64_t left = x.low * channels, right = x.high * channels;
      float a[V], b[V], c[V], d[V];
      widen(load<S, V>(upper + left, 0), a);
      widen(load<S, V>(upper + right, 0), b);
      widen(load<S, V>(lower + left, 0), c);
      widen(load<S, V>(lower + right, 0), d);
      const float right_weight = x.weight, left_weight = 1.0f - x.weight;
      const float w1 = (1.0f - y.weight) * left_weight, w2 = (1.0f - y.weight) * right_weight;
      const float w3 = y.weight * left_weight, w4 = y.weight * right_weight;
#pragma unroll
      for (int v = 0; v < V; ++v) sums[v] += w1 * a[v] + w2 * b[v] + w3 * c[v] + w4 * d[v];
    }
  }
}

// `chunk` channels a block, a multiple of V; with kChannelsFirst they fit into shared memory.
template <typename S, int V, bool kChannelsFirst>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(RoiLevels levels, RoiOptions options, const float* __restrict__ rois,
                   const int64_t* __restrict__ level_of, S* __restrict__ output, int channels,
                   int chunk) {
  extern __shared__ char shared[];
  S* tile = reinterpret_cast<S*>(shared);
  const int64_t k = blockIdx.x;
  const int first = blockIdx.y * chunk, bins = options.bins_y * options.bins_x;
  const int taken = min(chunk, channels - first), lanes = taken / V;
  int image;
  const int index = find_level(rois, level_of, k, levels, options.finest_scale, &image);
  const RoiLevel level = levels.level[max(index, 0)];
  const float* roi = rois + 5 * k;
  const RoiSide y(roi[2], roi[4], level.scale, options.bins_y, options);
  const RoiSide x(roi[1], roi[3], level.scale, options.bins_x, options);
  const float count = static_cast<float>(max(y.samples * x.samples, 1));
  const S* map = static_cast<const S*>(level.data) +
                 max(image, 0) * int64_t{level.height} * level.width * channels + first;
  for (int task = threadIdx.x; task < bins * lanes; task += kThreads) {
    const int bin = task / lanes, channel = task % lanes * V;
    float sums[V] = {};
    if (index >= 0) {
      pool_bin<S, V>(map + channel, level, channels, y, x, bin / options.bins_x,
                     bin % options.bins_x, sums);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] /= count;
    if constexpr (kChannelsFirst) {
#pragma unroll
      for (int v = 0; v < V; ++v) tile[(channel + v) * bins + bin] = narrow(sums[v], S{});
    } else {
      store<S, V>(output + (k * bins + bin) * channels + first + channel, 0, narrow<S, V>(sums));
    }
  }
  if constexpr (kChannelsFirst) {
    __syncthreads();
    S* to = output + (k * channels + first) * bins;
    const int count = taken * bins;
    constexpr int kWide = 16 / sizeof(S);
    if (V > 1 && count % kWide == 0 && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
      for (int i = threadIdx.x; i < count / kWide; i += kThreads) {
        store<S, kWide>(to, i, load<S, kWide>(tile, i));
      }
    } else {
      for (int i = threadIdx.x; i < count; i += kThreads) to[i] = tile[i];
    }
  }
}

Tensor multilevel_roi_align_cuda(std::vector<Tensor> maps, Tensor rois,
                                 std::optional<Tensor> level_of, double finest_scale,
                                 std::vector<int64_t> output_size, std::vector<double> scales,
                                 int64_t sampling_ratio, bool aligned, bool channels_last) {
  const int64_t height = output_size.at(0), width = output_size.at(1);
  const RoiOptions options = check_rois(rois, level_of, maps.size(), scales.size(), height, width,
                                        sampling_ratio, aligned, finest_scale);
  const torch::stable::accelerator::DeviceGuard guard(rois.get_device_index());
  const Tensor& first = maps[0];
  KAT_MM_CHECK(first.dim() == 4, "multilevel_roi_align: maps must be [B, C, H, W]");
  const int64_t channels = first.size(1), count = rois.size(0);
  RoiLevels levels = {};
  levels.count = static_cast<int>(maps.size());
  levels.images = static_cast<int>(first.size(0));
  for (size_t i = 0; i < maps.size(); ++i) {
    KAT_MM_CHECK(maps[i].dim() == 4 && maps[i].size(0) == first.size(0) &&
                     maps[i].size(1) == channels && maps[i].scalar_type() == first.scalar_type() &&
                     maps[i].get_device() == rois.get_device() && maps[i].numel() > 0,
                 "multilevel_roi_align: maps must be [B, C, H, W] with the same B and C, of one "
                 "dtype, not empty, and on the device of the RoIs");
    maps[i] = make_channels_last(maps[i]);
    levels.level[i] = {maps[i].data_ptr(), static_cast<int>(maps[i].size(2)),
                       static_cast<int>(maps[i].size(3)), static_cast<float>(scales[i]), 0};
  }
  Tensor output =
      channels_last
          ? empty_channels_last(count, channels, height, width, first.scalar_type(), first)
          : empty<4>({count, channels, height, width}, first.scalar_type(), first);
  if (output.numel() == 0) return output;
  rois = make_contiguous(rois);
  if (level_of) level_of = make_contiguous(*level_of);
  dispatch_maps(first.scalar_type(), [&](auto s) {
    using S = decltype(s);
    constexpr int kVector = 16 / sizeof(S);
    bool vectors = channels % kVector == 0 && is_aligned(output.data_ptr(), 16);
    for (int i = 0; i < levels.count; ++i) vectors &= is_aligned(levels.level[i].data, 16);
    const int64_t bins = height * width;
    int64_t chunk = channels;
    if (!channels_last) {
      chunk = std::min<int64_t>(channels, kSharedBytes / (bins * sizeof(S)) / kVector * kVector);
    }
    const dim3 grid(grid_size(count), static_cast<unsigned>(ceil_divide(channels, chunk)));
    const size_t shared = channels_last ? 0 : chunk * bins * sizeof(S);
    const auto launch = [&](auto vector, auto channels_first) {
      forward_kernel<S, decltype(vector)::value, decltype(channels_first)::value>
          <<<grid, kThreads, shared, current_stream(rois.get_device())>>>(
              levels, options, static_cast<const float*>(rois.data_ptr()),
              level_of ? static_cast<const int64_t*>(level_of->data_ptr()) : nullptr,
              static_cast<S*>(output.data_ptr()), static_cast<int>(channels),
              static_cast<int>(chunk));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    };
    const auto choose = [&](auto vector) {
      if (channels_last) {
        launch(vector, Constant<0>{});
      } else {
        launch(vector, Constant<1>{});
      }
    };
    if (vectors) {
      choose(Constant<kVector>{});
    } else {
      choose(Constant<1>{});
    }
  });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) {
  m.impl("multilevel_roi_align", TORCH_BOX(&multilevel_roi_align_cuda));
}

}  // namespace kat_mm
