// Device code shared by the masked kernels: where a tile lies, and its patch of the input in shared memory.
#pragma once

#include "base/cuda_shared.h"
#include "kernels/masked/cuda.h"

namespace edgeprune {
namespace {

// Where a tile of positions begins.
struct TileAt {
    int image, row, column;
};
__device__ __forceinline__ TileAt tile_at(const CudaTile& tile, int index) {
    const int column = index % tile.count[2], rest = index / tile.count[2];
    return {rest / tile.count[1] * tile.images, rest % tile.count[1] * tile.size[0], column * tile.size[1]};
}

// Byte offset in a channel's plane of the position that this lane's j-th sum belongs to.
template <int J>
__device__ __forceinline__ void lane_bases(const CudaGeometry& g, const CudaTile& tile, uint32_t (&base)[J]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < J; ++j) {
        int image, row, column;
        const bool inside = split_position(tile, lane + 32 * j, image, row, column);
        const int at = image * tile.image + row * g.in_step[0] * tile.pitch + column * g.in_step[1];
        base[j] = inside ? 4u * static_cast<uint32_t>(at) : 0u;  // behind the last: any address will do
    }
}

// Brings channels [first, first + channels) of the patch under a tile to `to`, zeros outside of the picture.
template <bool Linear>
__device__ __forceinline__ void stage_patch(const CudaGeometry& g, const CudaTile& tile, const TileAt& at,
                                            const float* in, int first, int channels, SharedAddress to) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (Linear) {  // a sample's features are contiguous, so lanes lie along channels; the plane is odd: no conflicts
        for (int n = warp; n < tile.images; n += kCudaWarps) {
            const bool valid = at.image + n < g.images;
            const float* row = in + static_cast<int64_t>(valid ? at.image + n : 0) * g.channels + first;
            for (int c = lane; c < channels; c += 32) copy_4(to + 4u * (c * tile.plane + n), row + c, valid);
        }
        return;
    }
    // A thread copies the same pixel of every channel (of every `groups`-th one where a patch has few pixels).
    const int patch = tile.patch[0] * tile.patch[1], pixels = tile.images * patch;
    const int groups = pixels < kCudaThreads ? kCudaThreads / pixels : 1;
    const int group = pixels < kCudaThreads ? static_cast<int>(threadIdx.x) / pixels : 0;
    if (group >= groups) return;
    const int64_t picture = static_cast<int64_t>(g.in_size[0]) * g.in_size[1];
    for (int e = threadIdx.x - group * pixels; e < pixels; e += kCudaThreads) {
        const int image = e / patch, rest = e - image * patch;
        const int h = rest / tile.patch[1], w = rest - h * tile.patch[1];
        const int row = at.row * g.in_step[0] + g.lowest[0] + h, column = at.column * g.in_step[1] + g.lowest[1] + w;
        const bool valid =
            at.image + image < g.images && row >= 0 && row < g.in_size[0] && column >= 0 && column < g.in_size[1];
        const int64_t pixel =
            valid ? static_cast<int64_t>(at.image + image) * g.channels * picture + row * g.in_size[1] + column : 0;
        const float* from = in + pixel + (first + group) * picture;
        SharedAddress place = to + 4u * (group * tile.plane + image * tile.image + h * tile.pitch + w);
        for (int c = group; c < channels; c += groups) {
            copy_4(place, from, valid);
            from += groups * picture;
            place += 4u * groups * tile.plane;
        }
    }
}

}  // namespace
}  // namespace edgeprune
