// CUDA kernels of kat_mm::bitmap_targets and kat_mm::polygon_targets.
//
// Of bitmaps, a thread averages the samples of one bin, which it reads as bits from the box that
// holds the mask. It rounds as torchvision's RoIAlign does on a GPU, so that averages of a half
// fall on the same side.
//
// Of polygons, a block draws one mask. In shared memory a column of it is a few words, in which
// each edge toggles the bit of the row from which on the column changes between outside and
// inside: a running parity of the bits is the polygon. Products and sums are those of pycocotools,
// in fp64 and not fused.
#include "launch.cuh"

namespace kat_mm {
namespace {

constexpr int kBinThreads = 256;
constexpr int kPolygonThreads = 64;
constexpr int kBitmapColumns = 7;
constexpr int kPolygonColumns = 4;
constexpr int kDrawnScale = 5;  // of pycocotools' grid
constexpr int64_t kMaxShared = 48 * 1024;

// What both kernels ask of the boxes: which instance each has, and where.
struct Boxes {
  const int64_t* starts;
  const int64_t* table;
  const float* boxes;
  const int64_t* images;
  const int64_t* instances;
};

// Returns the row of the box's instance, or nothing.
template <int kColumns>
__device__ __forceinline__ const int64_t* row_of(const Boxes& of, int64_t box) {
  const int64_t instance = of.instances[box];
  if (instance < 0) return nullptr;
  return of.table + (of.starts[of.images[box]] + instance) * kColumns;
}

// One side of a box, clipped to the image.
struct Span {
  float begin, end;

  __device__ Span(const float* box, int axis, int64_t side)
      : begin(fminf(fmaxf(box[axis], 0.f), static_cast<float>(side))),
        end(fminf(fmaxf(box[axis + 2], 0.f), static_cast<float>(side))) {}
};

// The samples along one side of a bin.
struct Samples {
  float begin, bin;
  int count;

  __device__ Samples(const Span& span, int bins, int at) {
    const float start = span.begin - 0.5f;
    const float extent = (span.end - 0.5f) - start;
    bin = extent / static_cast<float>(bins);
    count = static_cast<int>(ceilf(bin));
    begin = __fmaf_rn(static_cast<float>(at), bin, start);
  }

  __device__ __forceinline__ float at(int i) const {
    return begin + (static_cast<float>(i) + 0.5f) * bin / static_cast<float>(count);
  }
};

// The two pixels around a sample along one side, and the weight of the second.
struct Neighbours {
  int low, high;
  float weight;
  bool inside;

  __device__ Neighbours(float place, int side) {
    inside = !(place < -1.f || place > static_cast<float>(side));
    place = fmaxf(place, 0.f);
    low = static_cast<int>(place);
    if (low >= side - 1) {
      low = high = side - 1;
      weight = 0.f;
    } else {
      high = low + 1;
      weight = place - static_cast<float>(low);
    }
  }
};

// The bits of a box, and zeros around it.
struct Bits {
  const uint32_t* words;
  int left, top, width, height;

  __device__ __forceinline__ float at(int row, int column) const {
    row -= top;
    column -= left;
    if (static_cast<unsigned>(row) >= static_cast<unsigned>(height) ||
        static_cast<unsigned>(column) >= static_cast<unsigned>(width)) {
      return 0.f;
    }
    const unsigned bit = static_cast<unsigned>(row) * width + column;
    return static_cast<float>((__ldg(words + bit / 32) >> (bit % 32)) & 1u);
  }
};

__global__ void __launch_bounds__(kBinThreads)
    bitmap_kernel(Boxes of, const int64_t* __restrict__ words, float* __restrict__ targets,
                  int height, int width, bool binarize) {
  const int bin = blockIdx.y * kBinThreads + threadIdx.x;
  if (bin >= height * width) return;
  const int64_t box = blockIdx.x;
  float* target = targets + box * height * width + bin;
  const int64_t* row = row_of<kBitmapColumns>(of, box);
  if (row == nullptr) {
    *target = 0.f;
    return;
  }
  const Bits bits{reinterpret_cast<const uint32_t*>(words + row[4]), static_cast<int>(row[0]),
                  static_cast<int>(row[1]), static_cast<int>(row[2]), static_cast<int>(row[3])};
  const int image_height = static_cast<int>(row[5]), image_width = static_cast<int>(row[6]);
  const float* corners = of.boxes + box * 4;
  const Samples y(Span(corners, 1, image_height), height, bin / width);
  const Samples x(Span(corners, 0, image_width), width, bin % width);
  float sum = 0.f;
  for (int i = 0; i < y.count; ++i) {
    const Neighbours v(y.at(i), image_height);
    if (!v.inside) continue;
    for (int j = 0; j < x.count; ++j) {
      const Neighbours h(x.at(j), image_width);
      if (!h.inside) continue;
      const float first = (1.f - v.weight) * (1.f - h.weight) * bits.at(v.low, h.low);
      const float second = (1.f - v.weight) * h.weight * bits.at(v.low, h.high);
      const float third = v.weight * (1.f - h.weight) * bits.at(v.high, h.low);
      const float fourth = v.weight * h.weight * bits.at(v.high, h.high);
      sum += first + second + third + fourth;
    }
  }
  sum /= static_cast<float>(max(y.count * x.count, 1));
  *target = binarize ? static_cast<float>(sum >= 0.5f) : sum;
}

// --- polygons ----------------------------------------------------------------------------------

__device__ __forceinline__ double line_at(double start, double slope, int step) {
  return __dadd_rn(__dadd_rn(start, __dmul_rn(slope, static_cast<double>(step))), 0.5);
}

// How a polygon's vertices come to the fine grid of a mask.
struct Frame {
  double x, y, x_scale, y_scale;

  __device__ Frame(const float* box, int64_t image_height, int64_t image_width, int height,
                   int width) {
    const Span h(box, 0, image_width), v(box, 1, image_height);
    x = h.begin;
    y = v.begin;
    x_scale = __fdiv_rn(static_cast<float>(width), fmaxf(h.end - h.begin, 1.f));
    y_scale = __fdiv_rn(static_cast<float>(height), fmaxf(v.end - v.begin, 1.f));
  }

  __device__ __forceinline__ static int drawn(double at, double begin, double scale) {
    const double scaled = __dmul_rn(__dsub_rn(at, begin), scale);
    return static_cast<int>(__dadd_rn(__dmul_rn(scaled, kDrawnScale), 0.5));
  }

  __device__ __forceinline__ int2 place(const double* vertex) const {
    return {drawn(vertex[0], x, x_scale), drawn(vertex[1], y, y_scale)};
  }
};

// Toggles, in each column that the edge steps across, the row where it does. The step across
// column c is the one between the places 5 c + 2 and 5 c + 3 of the fine grid.
__device__ __forceinline__ void draw_edge(int2 start, int2 end, uint32_t* toggles, int words,
                                          int height, int width) {
  const int dx = abs(end.x - start.x), dy = abs(end.y - start.y);
  const bool is_wide = dx >= dy;
  if (is_wide ? start.x > end.x : start.y > end.y) {
    const int2 other = start;
    start = end;
    end = other;
  }
  const int low = min(start.x, end.x), high = max(start.x, end.x);
  const int half = kDrawnScale / 2;
  const int first = max((low - half + kDrawnScale - 1) / kDrawnScale, 0);
  const double slope =
      is_wide ? __ddiv_rn(end.y - start.y, max(dx, 1)) : __ddiv_rn(end.x - start.x, max(dy, 1));
  for (int c = first; c < width && kDrawnScale * c + half < high; ++c) {
    const int column = kDrawnScale * c + half;
    int y;
    if (is_wide) {
      const int step = column - start.x;
      y = min(static_cast<int>(line_at(start.y, slope, step)),
              static_cast<int>(line_at(start.y, slope, step + 1)));
    } else {
      const auto has_passed = [&](int step) {
        return (static_cast<int>(line_at(start.x, slope, step)) > column) == (slope > 0);
      };
      int step = static_cast<int>(ceil((column + 0.5 - start.x) / slope));
      if (has_passed(step - 1)) {
        --step;
      } else if (!has_passed(step)) {
        ++step;
      }
      y = start.y + step - 1;
    }
    const int row = (max(y, 0) + half) / kDrawnScale;
    if (row < height) atomicXor(toggles + c * words + row / 32, 1u << (row % 32));
  }
}

__global__ void __launch_bounds__(kPolygonThreads)
    polygon_kernel(Boxes of, const int64_t* __restrict__ polygons,
                   const double* __restrict__ vertices, float* __restrict__ targets, int height,
                   int width, int words) {
  extern __shared__ uint32_t shared[];
  uint32_t* toggles = shared;
  uint32_t* mask = shared + width * words;
  const int64_t box = blockIdx.x;
  for (int i = threadIdx.x; i < 2 * width * words; i += kPolygonThreads) shared[i] = 0;
  __syncthreads();
  const int64_t* row = row_of<kPolygonColumns>(of, box);
  if (row != nullptr) {
    const Frame frame(of.boxes + box * 4, row[2], row[3], height, width);
    for (int64_t p = row[0]; p < row[0] + row[1]; ++p) {
      const double* outline = vertices + 2 * polygons[2 * p];
      const int count = static_cast<int>(polygons[2 * p + 1]);
      for (int edge = threadIdx.x; edge < count; edge += kPolygonThreads) {
        const int next = edge + 1 < count ? edge + 1 : 0;
        draw_edge(frame.place(outline + 2 * edge), frame.place(outline + 2 * next), toggles, words,
                  height, width);
      }
      __syncthreads();
      for (int column = threadIdx.x; column < width; column += kPolygonThreads) {
        uint32_t inside = 0;  // all ones where the rows before end inside
        for (int w = column * words; w < (column + 1) * words; ++w) {
          uint32_t parity = toggles[w];
          toggles[w] = 0;
#pragma unroll
          for (int shift = 1; shift < 32; shift *= 2) parity ^= parity << shift;
          parity ^= inside;
          mask[w] |= parity;
          inside = parity >> 31 ? ~0u : 0u;
        }
      }
      __syncthreads();
    }
  }
  float* target = targets + box * height * width;
  for (int i = threadIdx.x; i < height * width; i += kPolygonThreads) {
    const int y = i / width, x = i % width;
    target[i] = static_cast<float>((mask[x * words + y / 32] >> (y % 32)) & 1u);
  }
}

// --- calls -------------------------------------------------------------------------------------

// The operands that both ops share, checked and contiguous.
struct MaskOperands {
  Tensor starts, table, boxes, images, instances;

  MaskOperands(const Tensor& starts, const Tensor& table, const Tensor& boxes, const Tensor& images,
               const Tensor& instances, int columns, int64_t height, int64_t width)
      : starts(make_contiguous(starts)),
        table(make_contiguous(table)),
        boxes(make_contiguous(boxes)),
        images(make_contiguous(images)),
        instances(make_contiguous(instances)) {
    KAT_MM_CHECK(boxes.dim() == 2 && boxes.size(1) == 4 && images.dim() == 1 &&
                     instances.dim() == 1 && images.size(0) == boxes.size(0) &&
                     instances.size(0) == boxes.size(0),
                 "mask_targets: boxes must be [K, 4], images and instances [K]");
    KAT_MM_CHECK(table.dim() == 2 && table.size(1) == columns, "mask_targets: the table must have ",
                 columns, " columns");
    KAT_MM_CHECK(boxes.scalar_type() == ScalarType::Float, "mask_targets: boxes must be float32");
    for (const Tensor* tensor : {&starts, &table, &images, &instances}) {
      KAT_MM_CHECK(tensor->scalar_type() == ScalarType::Long &&
                       tensor->get_device_index() == boxes.get_device_index(),
                   "mask_targets: indices and tables must be int64, on the boxes' device");
    }
    KAT_MM_CHECK(height > 0 && width > 0 && height * width < (int64_t{1} << 24),
                 "mask_targets: cannot make masks of ", height, " x ", width);
  }

  Tensor empty_targets(int64_t height, int64_t width) const {
    return empty<3>({boxes.size(0), height, width}, ScalarType::Float, boxes);
  }

  Boxes pointers() const {
    return {static_cast<const int64_t*>(starts.data_ptr()),
            static_cast<const int64_t*>(table.data_ptr()),
            static_cast<const float*>(boxes.data_ptr()),
            static_cast<const int64_t*>(images.data_ptr()),
            static_cast<const int64_t*>(instances.data_ptr())};
  }
};

Tensor bitmap_targets_cuda(Tensor starts, Tensor table, Tensor words, Tensor boxes, Tensor images,
                           Tensor instances, int64_t height, int64_t width, bool binarize) {
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const MaskOperands of(starts, table, boxes, images, instances, kBitmapColumns, height, width);
  words = make_contiguous(words);
  Tensor targets = of.empty_targets(height, width);
  const int64_t count = of.boxes.size(0);
  if (count == 0) return targets;
  // Boxes are the grid's x: it alone may be large.
  const dim3 grid(grid_size(count), grid_size(ceil_divide(height * width, kBinThreads)));
  bitmap_kernel<<<grid, kBinThreads, 0, current_stream(boxes.get_device())>>>(
      of.pointers(), static_cast<const int64_t*>(words.data_ptr()),
      static_cast<float*>(targets.data_ptr()), static_cast<int>(height), static_cast<int>(width),
      binarize);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return targets;
}

Tensor polygon_targets_cuda(Tensor starts, Tensor table, Tensor polygons, Tensor vertices,
                            Tensor boxes, Tensor images, Tensor instances, int64_t height,
                            int64_t width) {
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const MaskOperands of(starts, table, boxes, images, instances, kPolygonColumns, height, width);
  polygons = make_contiguous(polygons);
  vertices = make_contiguous(vertices);
  Tensor targets = of.empty_targets(height, width);
  const int64_t count = of.boxes.size(0);
  if (count == 0) return targets;
  const int64_t words = ceil_divide(height, 32), shared = 2 * width * words * 4;
  KAT_MM_CHECK(shared <= kMaxShared, "mask_targets: masks of ", height, " x ", width,
               " do not fit into the GPU's shared memory");
  polygon_kernel<<<grid_size(count), kPolygonThreads, shared, current_stream(boxes.get_device())>>>(
      of.pointers(), static_cast<const int64_t*>(polygons.data_ptr()),
      static_cast<const double*>(vertices.data_ptr()), static_cast<float*>(targets.data_ptr()),
      static_cast<int>(height), static_cast<int>(width), static_cast<int>(words));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return targets;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(kat_mm, CUDA, m) {
  m.impl("bitmap_targets", TORCH_BOX(&bitmap_targets_cuda));
  m.impl("polygon_targets", TORCH_BOX(&polygon_targets_cuda));
}

}  // namespace kat_mm
