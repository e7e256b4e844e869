// How images are packed for the masked kernels: planes of pixels with `width` images side by side, padded so that
// every tap of a filter is one constant shift. Used by ops/masked_sweep.cpp and ops/masked_dots.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/masked/masked.h"
#include "ops/sparsity_pattern.h"

namespace edgeprune {

// Images (count, channels, size[0], size[1]), dense float32. A convolution of one tap does not ask which pixels are
// neighbours: then every pixel is an image of its own (`count` counts them), and `side` of them lie side by side, those
// of one picture: sample s of channel c at (s / side * channels + c) * side + s % side.
struct Images {
    const float* data = nullptr;
    int64_t count = 0, channels = 0;
    int64_t size[2] = {1, 1};
    int64_t side = 1;

    int64_t pixels() const { return size[0] * size[1]; }
    int64_t image() const { return channels * pixels(); }
};

// The positions at which sums are formed, and where their chunks lie. A row of the grid is `row_chunks` chunks, or,
// where that wastes too much, the rows of the padded plane follow each other without a gap (`flat`).
struct Grid {
    int64_t size[2] = {1, 1};
    int64_t row = 0;  // floats from one row of the grid to the next in sums
    bool flat = false;

    // Floats of sums for `rows` grid rows, a multiple of kChunk.
    int64_t floats(int64_t rows, int64_t width) const;
};

// Planes of one group of `width` images: plane (channel, phase) is `height` rows of `row` floats; `shift[tap]` is
// where a tap reads, counted from the plane of its channel.
struct Planes {
    int64_t width = 1;
    int64_t channels = 0, phases[2] = {1, 1};  // phases in use, of `stride`
    int64_t stride[2] = {1, 1};
    int64_t used_phase[2][64];       // which ones
    int64_t height = 0, row = 0;     // rows of a plane, floats of a row
    int64_t lead[2] = {0, 0};        // padding before the first row and column; negative: left out
    int64_t plane = 0, channel = 0;  // floats from one plane, one channel to the next
    std::vector<int64_t> shift;      // by tap
    int64_t reach[2] = {0, 0};       // rows and pixels that the farthest tap is away
    int64_t slack = 0;               // floats behind the last channel that a tile may read

    int64_t floats() const { return channels * channel + slack; }
};

// Images side by side: 1, or as many as fill vectors; samples of a linear layer: up to one tile of `chunks`.
int64_t packed_width(int64_t images, const int64_t* in_size, const int64_t* out_size, int chunks);

// For a forward pass (and the weight gradient): planes of x, grid of y.
Planes forward_planes(const FilterShape& filter, const int64_t* padding, int64_t width, const int64_t* out_size);
// For the input gradient: planes of dy, and the grid on which one phase of dx lies. `first` becomes the position of
// the grid's corner: pixel of dx = (first + grid position) * stride + phase - padding.
Planes backward_planes(const FilterShape& filter, const int64_t* padding, int64_t width, const int64_t* x_size,
                       Grid& grid, int64_t* first);
Grid make_grid(const int64_t* size, const Planes& planes);

// The chunks of grid rows [row, row + rows), cut into tiles of at most `most` chunks; for each tile the places of its
// chunks in planes and of its first chunk in sums.
struct Tile {
    int64_t chunk[kMaxTileChunks];
    int chunks;
    int64_t sums;
};
std::vector<Tile> make_tiles(const Grid& grid, const Planes& planes, int64_t row, int64_t rows, int most);

// Channels whose part of one tile fits the first-level cache, in whole blocks of the pattern. With so few `tiles` in
// all that kept weights are read only once or twice, longer rows are better than a first-level cache that is kept.
int64_t cached_channels(const FilterShape& filter, const Grid& grid, const Planes& planes, int tile_chunks,
                        int64_t tiles);

// At least `floats`, such that runs at this distance fall on different lines of a cache whose ways are 4 KB.
int64_t spread(int64_t floats, int64_t run);

}  // namespace edgeprune
