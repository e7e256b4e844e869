// Products with kept weights only, on a GPU: plain structs of device pointers and numbers, no checks, no allocation,
// the caller's stream. ops/masked_cuda*.cpp checks, plans and fills these in. Reference: masked.h's, and torch in
// double.
//
// Positions (pixels of a batch, or samples of a linear layer) lie along the lanes of a warp, kept weights are walked
// one after the other: each is read once by a whole warp and multiplies 32 * J inputs that lie in shared memory. A
// block of threads owns one tile of positions and 8 * R output rows, whose sums stay in registers while the channels
// pass by in blocks. One multiply-add needs one 4-byte read of shared memory, so a quarter of the multiply-add peak is
// the most that this form can reach; dense float32 reaches three quarters of it, so the kept share must be below about
// a third.
#pragma once

#include <cstdint>

#include "base/cuda_index.h"

namespace edgeprune {

constexpr int kCudaWarps = 8;  // a block of threads: with two of them on a multiprocessor, 128 registers a thread
constexpr int kCudaThreads = 32 * kCudaWarps;

// sum[n, r, p] over kept (c, tap) of w * in[n, c, p * in_step + shift(tap)] goes to
// out[n, r, p * out_step + out_first]; positions p run over `grid`.
//   shift of tap t along one direction = (numerator + factor * t) / divisor, exact for the taps that occur, from
//   `lowest` to `highest`. Forward: divisor 1. Input gradient: one call for each phase of the stride.
struct CudaGeometry {
    int images, channels, rows;
    int in_size[2], out_size[2], grid[2];
    int in_step[2], out_step[2], out_first[2];
    int numerator[2], factor[2], divisor[2], lowest[2], highest[2];
    int taps_w, taps;
};

// A picture of one pixel under a filter of one tap: samples lie along the lanes, features are contiguous.
inline bool is_linear(const CudaGeometry& g) {
    return g.taps == 1 && g.in_size[0] * g.in_size[1] * g.out_size[0] * g.out_size[1] == 1 && g.lowest[0] == 0 &&
           g.lowest[1] == 0;
}

// A tile of positions, at most 32 * J, and the patch of the input under it as it lies in shared memory.
struct CudaTile {
    int images, size[2];      // positions
    int count[3];             // tiles over images, rows, columns
    int patch[2];             // pixels of one image's patch
    int pitch, image, plane;  // floats from row to row, image to image, channel to channel
};

// Kept weights by (tile of rows, block of channels); tiles without any are left out. Made by ops/masked_cuda_plan.cpp.
struct CudaPlan {
    int rows_per_tile, row_tiles, channels_per_block;
    int tiles, entries, longest;  // `longest`: entries of the fullest tile
    const int32_t* order;         // (entries) number among the compact weights, -1 for padding
    const int32_t* column;        // (entries) channel within the block * taps + tap
    const uint32_t* segments;     // (tiles, rows_per_tile) first entry / align << 16 | entries, within the tile
    const int32_t* tile_first;    // (tiles + 1) first entry
    const int32_t* tile_block;    // (tiles) block of channels
    const int32_t* tile_row;      // (tiles) tile of rows
    const int32_t* row_first;     // (row_tiles + 1) first tile
};
constexpr int kCorrelateAlign = 2, kDotsAlign = 8;  // entries: what one 16-byte read, and one reduction, take

struct CorrelateCuda {
    CudaGeometry geometry;
    CudaTile tile;
    CudaPlan plan;
    const float *in, *weights, *bias;  // bias null: none
    float* out;
    uint64_t* pairs;  // workspace, (entries)
};
// rows_per_thread (R) 4, 8 or 16; positions_per_lane (J) 1, 2 or 4. Return a cudaError_t; 0 is success.
int masked_correlate_cuda(const CorrelateCuda&, int rows_per_thread, int positions_per_lane, void* stream);

// dw[k] = sum over positions of dy[n, r, p] * x[n, c, p * in_step + shift(tap)], with x in `in` and dy in `dy`, both of
// the forward geometry. Positions are split over `splits` blocks; their sums are added in order.
struct DotsCuda {
    CudaGeometry geometry;
    CudaTile tile;
    CudaPlan plan;
    const float *in, *dy;
    float* dw;
    float* partial;  // workspace, (splits, entries), when splits > 1
    int splits;
};
int masked_dots_cuda(const DotsCuda&, int rows_per_thread, void* stream);

// Shared memory in bytes of one block of threads.
inline int64_t correlate_shared_bytes(const CudaTile& tile, int channels_per_block, int longest) {
    return 8ll * longest + 4ll * channels_per_block * tile.plane;
}
// dy lies in rows of 128 positions, with one float between rows where it is written across (a linear layer).
constexpr int kDotsPositions = 128;
inline int64_t dots_shared_bytes(const CudaTile& tile, int channels_per_block, int longest, int rows_per_tile) {
    return 8ll * longest + 4ll * rows_per_tile * (kDotsPositions + 1) + 4ll * channels_per_block * tile.plane;
}

// A linear layer on few samples: rows of a compressed matrix; weight k of row r, begin[r] <= k < end[r].
constexpr int kFewSamples = 8;
struct FewRowsCuda {
    const int32_t *columns, *begin, *end, *order;  // order null: k itself
    int rows, inputs, samples;
    const float *w, *x, *bias;
    float* y;  // (samples, rows)
};
int masked_few_rows_cuda(const FewRowsCuda&, void* stream);
struct FewOuterCuda {
    const int32_t *columns, *begin, *end;
    int rows, inputs, samples;
    const float *dy, *x;
    float* dw;
};
int masked_few_outer_cuda(const FewOuterCuda&, void* stream);

// Byte offset in a tile's shared memory of a plan's column: used on both sides.
EDGEPRUNE_HD int shared_offset(const CudaGeometry& g, const CudaTile& tile, int column) {
    const int channel = column / g.taps, tap = column - channel * g.taps;
    const int tap_h = tap / g.taps_w, tap_w = tap - tap_h * g.taps_w;
    const int h = (g.numerator[0] + g.factor[0] * tap_h) / g.divisor[0] - g.lowest[0];
    const int w = (g.numerator[1] + g.factor[1] * tap_w) / g.divisor[1] - g.lowest[1];
    return 4 * (channel * tile.plane + h * tile.pitch + w);
}

// Position `p` of a tile, as (image, row, column) within it; false behind the last.
EDGEPRUNE_HD bool split_position(const CudaTile& tile, int p, int& image, int& row, int& column) {
    const int per_image = tile.size[0] * tile.size[1];
    image = p / per_image;
    const int rest = p - image * per_image;
    row = rest / tile.size[1];
    column = rest - row * tile.size[1];
    return image < tile.images;
}

}  // namespace edgeprune
