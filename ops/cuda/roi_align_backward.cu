// CUDA kernels of kat_mm::multilevel_roi_align_backward, without atomics on floats.
//
// torchvision's kernel has a thread for each output and adds its share to the map by atomics. Here
// a block owns a tile of a map and gathers: it goes through the RoIs that touch the tile, in the
// order of their indices, with the tile's sums in registers. A pixel gets
//     sum over RoIs of sum over bins (p, q) of weight_y[p, y] weight_x[q, x] grad[p, q],
// where weight_y of a bin is what its samples give to row y. A block first makes tables of these
// weights for a few RoIs, then its threads, with four channels of a row of the tile each, add the
// bins whose weights are not zero. Two kernels go before: one turns gradients round that have
// channels first, one lists the RoIs of each map.
#include "roi_align.cuh"

namespace kat_mm {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 4, kColumns = 8;    // of a tile
constexpr int kLanes = kThreads / kRows;  // threads a row, with V channels each
constexpr int kGroup = 8;                 // RoIs that have tables at a time

// Returns how many threads before this one have `flag`, and in all.
__device__ __forceinline__ int block_rank(bool flag, int* total) {
  __shared__ int warps[kThreads / 32];
  const unsigned votes = __ballot_sync(0xffffffffu, flag);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();  // the last call's reads
  if (lane == 0) warps[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1));
  *total = 0;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) before += warps[w];
    *total += warps[w];
  }
  return before;
}

// grad [K, C, bins] to [K, bins, C]; a block takes `chunk` channels of one RoI.
template <typename S>
__global__ void __launch_bounds__(kThreads)
    turn_kernel(const S* __restrict__ grad, S* __restrict__ turned, int channels, int bins,
                int chunk) {
  extern __shared__ char shared[];
  S* tile = reinterpret_cast<S*>(shared);
  const int first = blockIdx.y * chunk, taken = min(chunk, channels - first);
  const int64_t roi = int64_t{blockIdx.x} * channels * bins;
  const S* from = grad + roi + int64_t{first} * bins;
  for (int i = threadIdx.x; i < taken * bins; i += kThreads) tile[i] = from[i];
  __syncthreads();
  for (int i = threadIdx.x; i < taken * bins; i += kThreads) {
    const int bin = i / taken, channel = i % taken;
    turned[roi + int64_t{bin} * channels + first + channel] = tile[channel * bins + bin];
  }
}

// A block for each map of each image lists the RoIs that are pooled from it, in their order.
__global__ void __launch_bounds__(kThreads)
    list_kernel(RoiLevels levels, RoiOptions options, const float* __restrict__ rois,
                const int64_t* __restrict__ level_of, int count, int* __restrict__ lists,
                int* __restrict__ lengths) {
  const int map = blockIdx.x;
  int* list = lists + int64_t{map} * count;
  int length = 0;
  for (int base = 0; base < count; base += kThreads) {
    const int k = base + threadIdx.x;
    int image = 0, level = -1, found;
    if (k < count) level = find_level(rois, level_of, k, levels, options.finest_scale, &image);
    const bool is_here = level >= 0 && level * levels.images + image == map;
    const int rank = block_rank(is_here, &found);
    if (is_here) list[length + rank] = k;
    length += found;
  }
  if (threadIdx.x == 0) lengths[map] = length;
}

struct TileRoi {
  RoiSide y, x;
  int k;
};

// What the samples of a bin give to one row, or column, of the map.
__device__ __forceinline__ float weight_of(const RoiSide& side, int bin, int place, int size) {
  // Most bins are elsewhere.
  const float middle = side.start + (bin + 0.5f) * side.bin;
  if (fabsf(middle - place) > 0.5f * fabsf(side.bin) + 2.0f) return 0.0f;
  float weight = 0.0f;
  for (int i = 0; i < side.samples; ++i) {
    const RoiSample sample(side.place(bin, i), size);
    if (!sample.counts) continue;
    if (sample.low == place) weight += 1.0f - sample.weight;
    if (sample.high == place) weight += sample.weight;
  }
  return weight;
}

template <typename S, int V>
__global__ void __launch_bounds__(kThreads, 3)
    backward_kernel(RoiLevels levels, RoiOptions options, const float* __restrict__ rois,
                    const S* __restrict__ grad, int channels, int count,
                    const int* __restrict__ lists, const int* __restrict__ lengths) {
  extern __shared__ float tables[];  // [kGroup][bins_y][kRows], then [kGroup][bins_x][kColumns]
  __shared__ TileRoi touching[kThreads];
  __shared__ unsigned row_bins[kGroup][kRows], column_bins[kGroup];  // whose weights are not zero
  const int bins_y = options.bins_y, bins_x = options.bins_x;
  float* tables_y = tables;
  float* tables_x = tables + kGroup * bins_y * kRows;

  int index = 0;
  while (index + 1 < levels.count &&
         static_cast<int>(blockIdx.x) >= levels.level[index + 1].first_tile) {
    ++index;
  }
  const RoiLevel level = levels.level[index];
  const int tiles_x = (level.width + kColumns - 1) / kColumns;
  const int tiles_y = (level.height + kRows - 1) / kRows;
  const int tile = blockIdx.x - level.first_tile;
  const int first_column = tile % tiles_x * kColumns, first_row = tile / tiles_x % tiles_y * kRows;
  const int image = tile / (tiles_x * tiles_y);
  const int row = threadIdx.x / kLanes;
  const int channel = (blockIdx.y * kLanes + threadIdx.x % kLanes) * V;
  const bool has_channels = channel < channels;
  const int map = index * levels.images + image;
  const int length = lengths[map];
  const int* list = lists + int64_t{map} * count;

  float sums[kColumns][V] = {};
  for (int base = 0; base < length; base += kThreads) {
    TileRoi mine;
    bool touches = false;
    if (base + threadIdx.x < length) {
      mine.k = list[base + threadIdx.x];
      const float* roi = rois + 5 * int64_t{mine.k};
      mine.y = RoiSide(roi[2], roi[4], level.scale, bins_y, options);
      mine.x = RoiSide(roi[1], roi[3], level.scale, bins_x, options);
      int first, last;
      mine.y.touched(bins_y, level.height, &first, &last);
      touches = first < first_row + kRows && last >= first_row;
      mine.x.touched(bins_x, level.width, &first, &last);
      touches &= first < first_column + kColumns && last >= first_column;
    }
    int found;
    const int rank = block_rank(touches, &found);
    if (touches) touching[rank] = mine;
    for (int group = 0; group < found; group += kGroup) {
      const int members = min(kGroup, found - group);
      __syncthreads();  // `touching` is written, the tables of the last group are read
      if (threadIdx.x < kGroup * kRows) row_bins[threadIdx.x / kRows][threadIdx.x % kRows] = 0;
      if (threadIdx.x < kGroup) column_bins[threadIdx.x] = 0;
      __syncthreads();
      for (int i = threadIdx.x; i < members * bins_y * kRows; i += kThreads) {
        const int member = i / (bins_y * kRows), bin = i / kRows % bins_y, r = i % kRows;
        const TileRoi& roi = touching[group + member];
        float weight = weight_of(roi.y, bin, first_row + r, level.height);
        weight /= static_cast<float>(max(roi.y.samples * roi.x.samples, 1));
        tables_y[i] = weight;
        if (weight != 0.0f) atomicOr(&row_bins[member][r], 1u << bin);
      }
      for (int i = threadIdx.x; i < members * bins_x * kColumns; i += kThreads) {
        const int member = i / (bins_x * kColumns), bin = i / kColumns % bins_x;
        const float weight =
            weight_of(touching[group + member].x, bin, first_column + i % kColumns, level.width);
        tables_x[i] = weight;
        if (weight != 0.0f) atomicOr(&column_bins[member], 1u << bin);
      }
      __syncthreads();
      if (!has_channels) continue;
      for (int member = 0; member < members; ++member) {
        const unsigned in_row = row_bins[member][row];
        if (in_row == 0) continue;
        const float* weights_y = tables_y + member * bins_y * kRows + row;
        const S* bins =
            grad + int64_t{touching[group + member].k} * bins_y * bins_x * channels + channel;
        for (unsigned in_columns = column_bins[member]; in_columns != 0;) {
          // Two bins at a time, so that more loads are under way; a lone last one with itself.
          const int p = __ffs(in_columns) - 1;
          in_columns &= in_columns - 1;
          const int q = in_columns != 0 ? __ffs(in_columns) - 1 : p;
          const float has_second = in_columns != 0 ? 1.0f : 0.0f;
          in_columns &= in_columns - 1;
          float first[V] = {}, second[V] = {};
          for (unsigned rest = in_row; rest != 0; rest &= rest - 1) {
            const int bin = __ffs(rest) - 1;
            const S* line = bins + int64_t{bin} * bins_x * channels;
            const float weight = weights_y[bin * kRows];
            float a[V], b[V];
            widen(load<S, V>(line + int64_t{p} * channels, 0), a);
            widen(load<S, V>(line + int64_t{q} * channels, 0), b);
#pragma unroll
            for (int v = 0; v < V; ++v) {
              first[v] += weight * a[v];
              second[v] += weight * has_second * b[v];
            }
          }
          const float* weights_x = tables_x + member * bins_x * kColumns;
#pragma unroll
          for (int x = 0; x < kColumns; ++x) {
            const float of_first = weights_x[p * kColumns + x];
            const float of_second = weights_x[q * kColumns + x];
#pragma unroll
            for (int v = 0; v < V; ++v) sums[x][v] += of_first * first[v] + of_second * second[v];
          }
        }
      }
    }
    __syncthreads();  // `touching` is read
  }
  const int y = first_row + row;
  if (y >= level.height || !has_channels) return;
  S* to = static_cast<S*>(level.data) +
          ((int64_t{image} * level.height + y) * level.width + first_column) * channels + channel;
#pragma unroll
  for (int x = 0; x < kColumns; ++x) {
    if (first_column + x < level.width) {
      store<S, V>(to + int64_t{x} * channels, 0, narrow<S, V>(sums[x]));
    }
  }
}

// `grad` with the channels of a bin adjacent in memory.
template <typename S>
Tensor turn(const Tensor& grad, cudaStream_t stream) {
  if (grad.numel() == 0 || channels_are_last(grad)) return grad;  // a grid has no 0 blocks
  const int64_t count = grad.size(0), channels = grad.size(1), bins = grad.size(2) * grad.size(3);
  const Tensor dense = make_contiguous(grad);
  Tensor turned =
      empty_channels_last(count, channels, grad.size(2), grad.size(3), grad.scalar_type(), grad);
  const int64_t chunk = std::min<int64_t>(channels, 40960 / (bins * sizeof(S)));
  const dim3 grid(grid_size(count), static_cast<unsigned>(ceil_divide(channels, chunk)));
  turn_kernel<S><<<grid, kThreads, chunk * bins * sizeof(S), stream>>>(
      static_cast<const S*>(dense.data_ptr()), static_cast<S*>(turned.data_ptr()),
      static_cast<int>(channels), static_cast<int>(bins), static_cast<int>(chunk));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return turned;
}

// `sizes` holds B, C and the height, the width and the layout (1: channels last) of each map.
std::vector<Tensor> multilevel_roi_align_backward_cuda(
    Tensor grad, Tensor rois, std::optional<Tensor> level_of, std::vector<int64_t> sizes,
    double finest_scale, std::vector<double> scales, int64_t sampling_ratio, bool aligned) {
  KAT_MM_CHECK(grad.dim() == 4 && grad.size(0) == rois.size(0) && sizes.size() >= 5 &&
                   sizes.size() % 3 == 2 && grad.size(1) == sizes[1] &&
                   grad.get_device() == rois.get_device(),
               "multilevel_roi_align_backward: grad must be [K, C, h, w] for rois [K, 5]");
  const RoiOptions options =
      check_rois(rois, level_of, sizes.size() / 3, scales.size(), grad.size(2), grad.size(3),
                 sampling_ratio, aligned, finest_scale);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const cudaStream_t stream = current_stream(grad.get_device());
  const int64_t images = sizes[0], channels = sizes[1], count = rois.size(0);
  RoiLevels levels = {};
  levels.count = static_cast<int>(sizes.size() / 3);
  levels.images = static_cast<int>(images);
  std::vector<Tensor> grads;
  int64_t tiles = 0;
  for (int i = 0; i < levels.count; ++i) {
    const int64_t height = sizes[2 + 3 * i], width = sizes[3 + 3 * i];
    grads.push_back(empty_channels_last(images, channels, height, width, grad.scalar_type(), grad));
    levels.level[i] = {grads[i].data_ptr(), static_cast<int>(height), static_cast<int>(width),
                       static_cast<float>(scales[i]), static_cast<int>(tiles)};
    tiles += images * ceil_divide(height, kRows) * ceil_divide(width, kColumns);
  }
  rois = make_contiguous(rois);
  if (level_of) level_of = make_contiguous(*level_of);
  const int64_t maps = images * levels.count;
  Tensor lists = empty<2>({maps, count}, ScalarType::Int, grad);
  Tensor lengths = empty<1>({maps}, ScalarType::Int, grad);
  list_kernel<<<grid_size(maps), kThreads, 0, stream>>>(
      levels, options, static_cast<const float*>(rois.data_ptr()),
      level_of ? static_cast<const int64_t*>(level_of->data_ptr()) : nullptr,
      static_cast<int>(count), static_cast<int*>(lists.data_ptr()),
      static_cast<int*>(lengths.data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  dispatch_maps(grad.scalar_type(), [&](auto s) {
    using S = decltype(s);
    const Tensor turned = turn<S>(grad, stream);
    const size_t shared = kGroup * (options.bins_y * kRows + options.bins_x * kColumns) * 4;
    const auto launch = [&](auto vector) {
      constexpr int V = decltype(vector)::value;
      const dim3 grid(grid_size(tiles),
                      static_cast<unsigned>(ceil_divide(channels, int64_t{kLanes} * V)));
      backward_kernel<S, V><<<grid, kThreads, shared, stream>>>(
          levels, options, static_cast<const float*>(rois.data_ptr()),
          static_cast<const S*>(turned.data_ptr()), static_cast<int>(channels),
          static_cast<int>(count), static_cast<const int*>(lists.data_ptr()),
          static_cast<const int*>(lengths.data_ptr()));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    };
    if (channels % 4 == 0 && is_aligned(turned.data_ptr(), 16)) {
      launch(Constant<4>{});
    } else {
      launch(Constant<1>{});
    }
  });
  for (int i = 0; i < levels.count; ++i) {
    if (sizes[4 + 3 * i] == 0) grads[i] = make_contiguous(grads[i]);
  }
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) {
  m.impl("multilevel_roi_align_backward", TORCH_BOX(&multilevel_roi_align_backward_cuda));
}

}  // namespace kat_mm
