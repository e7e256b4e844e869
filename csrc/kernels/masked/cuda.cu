// Masked products on a GPU: forward and input gradient, which are one kernel (see cuda.h).
#include "base/cuda_launch.h"
#include "kernels/masked/cuda_stage.h"

namespace edgeprune {
namespace {

// A kept weight as the kernel reads it: byte offset of its input in shared memory, and its value.
__global__ void pairs_kernel(const CorrelateCuda task) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= task.plan.entries) return;
    const int k = task.plan.order[at];
    const float w = k < 0 ? 0.0f : task.weights[k];
    const auto offset = static_cast<uint32_t>(shared_offset(task.geometry, task.tile, task.plan.column[at]));
    task.pairs[at] = static_cast<uint64_t>(__float_as_uint(w)) << 32 | offset;
}

template <int J>
__device__ __forceinline__ void add_products(float (&sum)[J], const char* shared, const uint32_t (&base)[J],
                                             uint32_t offset, uint32_t weight) {
    const float w = __uint_as_float(weight);
#pragma unroll
    for (int j = 0; j < J; ++j) sum[j] = fmaf(w, *reinterpret_cast<const float*>(shared + (base[j] + offset)), sum[j]);
}

template <int R, int J, bool Linear>
__global__ void __launch_bounds__(kCudaThreads, 2) correlate_kernel(const CorrelateCuda task) {
    EDGEPRUNE_SHARED(shared);
    const CudaGeometry& g = task.geometry;
    const CudaPlan& plan = task.plan;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const char* const inputs = shared + 8 * plan.longest;
    const TileAt at = tile_at(task.tile, blockIdx.x);
    const int first_row = blockIdx.y * plan.rows_per_tile + warp * R;

    float sum[R][J];
#pragma unroll
    for (int r = 0; r < R; ++r) {
        const float start = task.bias && first_row + r < g.rows ? task.bias[first_row + r] : 0.0f;
#pragma unroll
        for (int j = 0; j < J; ++j) sum[r][j] = start;
    }
    uint32_t base[J];  // from the beginning of shared memory, so that an address is one addition
    lane_bases<J>(g, task.tile, base);
#pragma unroll
    for (int j = 0; j < J; ++j) base[j] += 8u * static_cast<uint32_t>(plan.longest);

    for (int t = plan.row_first[blockIdx.y]; t < plan.row_first[blockIdx.y + 1]; ++t) {
        const int channel = plan.tile_block[t] * plan.channels_per_block;
        const int entry = plan.tile_first[t], entries = plan.tile_first[t + 1] - entry;
        const uint32_t mine = plan.segments[static_cast<int64_t>(t) * plan.rows_per_tile + warp * R + lane % R];
        __syncthreads();  // the block before is no longer read
        stage_patch<Linear>(g, task.tile, at, task.in, channel, min(plan.channels_per_block, g.channels - channel),
                            shared_address(inputs));
        for (int i = threadIdx.x; i < entries / 2; i += kCudaThreads)
            copy_16(shared_address(shared) + 16 * i, task.pairs + entry + 2 * i);
        wait_for_copies();
        __syncthreads();
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const uint32_t segment = __shfl_sync(0xffffffffu, mine, r);
            const uint4* two = reinterpret_cast<const uint4*>(shared) + (segment >> 16);
            const int kept = segment & 0xffff;
#pragma unroll 2
            for (int i = 0; i < kept / 2; ++i) {
                const uint4 pair = two[i];
                add_products<J>(sum[r], shared, base, pair.x, pair.y);
                add_products<J>(sum[r], shared, base, pair.z, pair.w);
            }
            if (kept & 1) {
                const uint4 pair = two[kept / 2];
                add_products<J>(sum[r], shared, base, pair.x, pair.y);
            }
        }
    }

#pragma unroll
    for (int j = 0; j < J; ++j) {
        int image, row, column;
        const bool inside = split_position(task.tile, lane + 32 * j, image, row, column);
        image += at.image, row += at.row, column += at.column;
        if (!inside || image >= g.images || row >= g.grid[0] || column >= g.grid[1]) continue;
        const int64_t pixels = static_cast<int64_t>(g.out_size[0]) * g.out_size[1];
        const int64_t pixel = static_cast<int64_t>(row * g.out_step[0] + g.out_first[0]) * g.out_size[1] +
                              column * g.out_step[1] + g.out_first[1];
        float* const to = task.out + (static_cast<int64_t>(image) * g.rows + first_row) * pixels + pixel;
        if (Linear && R % 4 == 0 && g.rows % 4 == 0) {  // a sample's outputs are contiguous
#pragma unroll
            for (int r = 0; r < R; r += 4)
                if (first_row + r < g.rows)
                    *reinterpret_cast<float4*>(to + r) =
                        make_float4(sum[r][j], sum[r + 1][j], sum[r + 2][j], sum[r + 3][j]);
            continue;
        }
#pragma unroll
        for (int r = 0; r < R; ++r)
            if (first_row + r < g.rows) to[r * pixels] = sum[r][j];
    }
}

template <int R, int J, bool Linear>
int run(const CorrelateCuda& task, void* stream) {
    const CudaTile& tile = task.tile;
    return launch_shared(correlate_kernel<R, J, Linear>, int64_t{1} * tile.count[0] * tile.count[1] * tile.count[2],
                         task.plan.row_tiles, kCudaThreads,
                         correlate_shared_bytes(tile, task.plan.channels_per_block, task.plan.longest), stream, task);
}

template <int R, int J>
int run(const CorrelateCuda& task, void* stream) {
    return is_linear(task.geometry) ? run<R, J, true>(task, stream) : run<R, J, false>(task, stream);
}

template <int R>
int run(const CorrelateCuda& task, int positions_per_lane, void* stream) {
    switch (positions_per_lane) {
        case 1:
            return run<R, 1>(task, stream);
        case 2:
            return run<R, 2>(task, stream);
        default:
            return run<R, 4>(task, stream);
    }
}

}  // namespace

int masked_correlate_cuda(const CorrelateCuda& task, int rows_per_thread, int positions_per_lane, void* stream) {
    if (const int code = launch(pairs_kernel, (task.plan.entries + 255) / 256, 256, stream, task)) return code;
    switch (rows_per_thread) {
        case 4:
            return run<4>(task, positions_per_lane, stream);
        case 8:
            return run<8>(task, positions_per_lane, stream);
        default:
            return run<16>(task, positions_per_lane, stream);
    }
}

}  // namespace edgeprune
