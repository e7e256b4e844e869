// One pass of kept weights over packed images: the forward pass and the input gradient are both one. And the weight
// gradient, which reads what they pack. Used by ops/masked.cpp.
#pragma once

#include "ops/masked_pack.h"

namespace edgeprune {

// sums[r, position] = bias[r] + sum over kept k of row r: w[k] * plane of its channel [position + shift of its tap]
struct Sweep {
    const MaskedKernels* kernels;
    FilterShape filter;
    Images in;
    Planes planes;
    Grid grid;
    const int32_t *columns, *starts;  // of the pattern, in the direction of the sweep
    int64_t rows, blocks;
    const float* w;
    const int32_t* order;  // of w where it lies in another direction's, else null; of linear layers only
    const float* bias;

    // Where sums go: row r = phase * channels + c holds, at grid position (u, v), the pixel
    // ((first + (u, v)) * stride + phase - padding) of channel c; positions outside of the image are dropped.
    float* out;
    int64_t out_channels, out_size[2], stride[2], first[2], padding[2];
};

void run_sweep(const Sweep& sweep, int threads);

// Sums of grid rows [row, row + rows) for sweep rows [r0, r1), `step` floats from one of these to the next.
struct Sums {
    float* data;
    int64_t step, row, rows, r0, r1;
};

// Writes sums of an image group to the sweep's output.
void unpack_sums(const Sweep& sweep, int64_t group, const Sums& sums);

// dw[k] = sum over images and positions of dy[row of k] * plane of its channel [position + shift of its tap]
struct Dots {
    const MaskedKernels* kernels;
    FilterShape filter;
    Images x, dy;
    Planes planes;
    Grid grid;
    const int32_t *columns, *starts;
    int64_t blocks, kept;
    float* dw;
};

void run_dots(const Dots& dots, int threads);

// shift of every column: its channel's place plus its tap's.
std::vector<int32_t> column_shifts(const FilterShape& filter, const Planes& planes);

// Kept weights of one block of channels for all rows, with the first and last row that have any.
struct BlockRows {
    int64_t first, last, block, next;
};
std::vector<BlockRows> make_blocks(const int32_t* starts, int64_t rows, int64_t blocks, int64_t step);

// Cuts rows into at most `pieces` ranges with about as many kept weights in each: first rows, and the end.
std::vector<int64_t> even_ranges(const int32_t* starts, int64_t rows, int64_t blocks, int64_t pieces);

// How many ranges: few enough kept weights in each to stay cached, and, where there are fewer than two `others` for
// each thread to share out, one for each thread.
int64_t range_count(int64_t kept, int64_t others, int threads);

inline int64_t pieces_of(int64_t items, int64_t each) { return (items + each - 1) / each; }

// The threads for one pass over so few kept weights: a wake-up costs about as much as 20,000.
inline int worth_waking(int64_t kept, int threads) { return kept < 50000 ? 1 : threads; }

}  // namespace edgeprune
