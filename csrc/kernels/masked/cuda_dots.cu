// The gradient of kept weights on a GPU (see cuda.h). A warp takes R output rows; for each it holds dy of 128 positions
// in registers, four a lane, and multiplies it with the input of eight kept weights at a time. The eight sums of 32
// lanes are then added in one exchange, in which every lane gives away half of what it holds, three times over.
#include "base/cuda_launch.h"
#include "kernels/masked/cuda_stage.h"

namespace edgeprune {
namespace {

constexpr int kPositions = kDotsPositions, kLanePositions = kPositions / 32;

// Sums of eight values over the lanes of a warp: lanes 4 u .. 4 u + 3 return value u. Nine exchanges.
__device__ __forceinline__ float sum_of_eight(float (&v)[8]) {
    const int lane = threadIdx.x % 32;
    int held = 8;
#pragma unroll
    for (int step = 16; step >= 4; step /= 2) {
        held /= 2;
#pragma unroll
        for (int i = 0; i < held; ++i) {
            const bool upper = lane & step;
            const float give = upper ? v[i] : v[i + held];
            v[i] = (upper ? v[i + held] : v[i]) + __shfl_xor_sync(0xffffffffu, give, step);
        }
    }
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], 2);
    return v[0] + __shfl_xor_sync(0xffffffffu, v[0], 1);
}

// Floats from one row of dy to the next in shared memory: odd for a linear layer, whose rows are written across.
template <bool Linear>
constexpr int kDyPitch = Linear ? kPositions + 1 : kPositions;

// dy of `rows` rows from `first` on, zeros behind the last position.
template <bool Linear>
__device__ __forceinline__ void stage_dy(const DotsCuda& task, const TileAt& at, int first, int rows,
                                         SharedAddress to) {
    const CudaGeometry& g = task.geometry;
    if (Linear) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        for (int n = warp; n < kPositions; n += kCudaWarps) {
            const bool inside = n < task.tile.images && at.image + n < g.images;
            const float* from = task.dy + static_cast<int64_t>(inside ? at.image + n : 0) * g.rows;
            for (int r = lane; r < rows; r += 32) {
                const bool valid = inside && first + r < g.rows;
                copy_4(to + 4u * (r * kDyPitch<true> + n), valid ? from + first + r : task.dy, valid);
            }
        }
        return;
    }
    constexpr int kRowsAtOnce = kCudaThreads / kPositions;
    const int p = threadIdx.x % kPositions;
    int image, row, column;
    bool inside = split_position(task.tile, p, image, row, column);
    image += at.image, row += at.row, column += at.column;
    inside = inside && image < g.images && row < g.grid[0] && column < g.grid[1];
    const int64_t pixels = static_cast<int64_t>(g.out_size[0]) * g.out_size[1];
    const int64_t pixel = inside ? static_cast<int64_t>(image) * g.rows * pixels + row * g.out_size[1] + column : 0;
    for (int r = threadIdx.x / kPositions; r < rows; r += kRowsAtOnce) {
        const bool valid = inside && first + r < g.rows;
        copy_4(to + 4u * (r * kDyPitch<false> + p), valid ? task.dy + pixel + (first + r) * pixels : task.dy, valid);
    }
}

template <int R, bool Linear>
__global__ void __launch_bounds__(kCudaThreads, 2) dots_kernel(const DotsCuda task) {
    EDGEPRUNE_SHARED(shared);
    const CudaGeometry& g = task.geometry;
    const CudaPlan& plan = task.plan;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = blockIdx.x;
    auto* const offsets = reinterpret_cast<uint32_t*>(shared);
    auto* const sums = reinterpret_cast<float*>(shared) + plan.longest;
    const float* const dy = sums + plan.longest;
    const char* const inputs = reinterpret_cast<const char*>(dy + plan.rows_per_tile * kDyPitch<Linear>);

    const int entry = plan.tile_first[t], entries = plan.tile_first[t + 1] - entry;
    for (int i = threadIdx.x; i < entries; i += kCudaThreads) {
        offsets[i] = static_cast<uint32_t>(shared_offset(g, task.tile, plan.column[entry + i]));
        sums[i] = 0.0f;
    }
    const int first_row = plan.tile_row[t] * plan.rows_per_tile;
    const int channel = plan.tile_block[t] * plan.channels_per_block;
    const int channels = min(plan.channels_per_block, g.channels - channel);
    const uint32_t mine = plan.segments[static_cast<int64_t>(t) * plan.rows_per_tile + warp * R + lane % R];
    uint32_t base[kLanePositions];
    lane_bases<kLanePositions>(g, task.tile, base);

    const int tiles = task.tile.count[0] * task.tile.count[1] * task.tile.count[2];
    for (int p = blockIdx.y; p < tiles; p += task.splits) {
        const TileAt at = tile_at(task.tile, p);
        __syncthreads();  // the tile before is no longer read
        stage_dy<Linear>(task, at, first_row, plan.rows_per_tile, shared_address(dy));
        stage_patch<Linear>(g, task.tile, at, task.in, channel, channels, shared_address(inputs));
        wait_for_copies();
        __syncthreads();
        for (int r = 0; r < R; ++r) {
            const uint32_t segment = __shfl_sync(0xffffffffu, mine, r);
            const int kept = segment & 0xffff, from = (segment >> 16) * kDotsAlign;
            float d[kLanePositions];
#pragma unroll
            for (int j = 0; j < kLanePositions; ++j) d[j] = dy[(warp * R + r) * kDyPitch<Linear> + lane + 32 * j];
            for (int i = from; i < from + kept; i += 8) {
                const uint4 a = *reinterpret_cast<const uint4*>(offsets + i);
                const uint4 b = *reinterpret_cast<const uint4*>(offsets + i + 4);
                const uint32_t offset[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
                float v[8];
#pragma unroll
                for (int u = 0; u < 8; ++u) {
                    v[u] = 0.0f;
#pragma unroll
                    for (int j = 0; j < kLanePositions; ++j)
                        v[u] = fmaf(d[j], *reinterpret_cast<const float*>(inputs + (base[j] + offset[u])), v[u]);
                }
                const float total = sum_of_eight(v);
                if (lane % 4 == 0) sums[i + lane / 4] += total;
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < entries; i += kCudaThreads) {
        if (task.splits > 1) {
            task.partial[static_cast<int64_t>(blockIdx.y) * plan.entries + entry + i] = sums[i];
        } else if (plan.order[entry + i] >= 0) {
            task.dw[plan.order[entry + i]] = sums[i];
        }
    }
}

__global__ void add_splits_kernel(const DotsCuda task) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= task.plan.entries) return;
    const int k = task.plan.order[at];
    if (k < 0) return;
    float sum = 0.0f;
    for (int s = 0; s < task.splits; ++s) sum += task.partial[static_cast<int64_t>(s) * task.plan.entries + at];
    task.dw[k] = sum;
}

template <int R>
int run(const DotsCuda& task, void* stream) {
    return launch_shared(
        is_linear(task.geometry) ? dots_kernel<R, true> : dots_kernel<R, false>, task.plan.tiles, task.splits,
        kCudaThreads,
        dots_shared_bytes(task.tile, task.plan.channels_per_block, task.plan.longest, task.plan.rows_per_tile), stream,
        task);
}

}  // namespace

int masked_dots_cuda(const DotsCuda& task, int rows_per_thread, void* stream) {
    if (!task.plan.entries) return 0;
    const auto how = rows_per_thread == 4 ? run<4> : rows_per_thread == 8 ? run<8> : run<16>;
    const int code = how(task, stream);
    if (code || task.splits == 1) return code;
    return launch(add_splits_kernel, (task.plan.entries + 255) / 256, 256, stream, task);
}

}  // namespace edgeprune
