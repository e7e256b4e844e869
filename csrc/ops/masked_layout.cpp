#include "ops/masked_layout.h"

#include <algorithm>

namespace edgeprune {
namespace {

constexpr int64_t kPage = 1024;                    // floats in 4 KB: addresses this far apart share a line of the cache
constexpr int64_t kFirstCacheFloats = 8 * 1024;    // 32 KB, the smallest there is (Zen 4; Orin has 64)
constexpr int64_t kSecondCacheFloats = 32 * 1024;  // half of Orin's 256 KB
constexpr int64_t kFewTiles = 2;
constexpr int64_t kImageWidth = 8;  // a shift by one pixel keeps loads on half lines
constexpr int64_t kFewImages = 5;   // up to here images are taken one by one

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

void set_strides(Planes& p) {
    // A tile reads up to reach rows further, and its last chunk may hang over the end of its row.
    p.slack = p.reach[0] * p.row + p.reach[1] * p.width + kMaxTileChunks * kChunk;
    p.plane = p.height * p.row;
    const bool single = p.phases[0] * p.phases[1] == 1;
    p.channel = single ? spread(p.plane, p.plane <= kMaxTileChunks * kChunk ? p.plane : 64)
                       : p.plane * p.phases[0] * p.phases[1];
    if (!single) p.channel = spread(p.channel, 64);
}

}  // namespace

int64_t spread(int64_t floats, int64_t run) {
    if (floats <= run) return floats;
    const int64_t whole = floats / kPage * kPage + up(std::min(run, kPage / 2), kChunk);
    return whole >= floats ? whole : whole + kPage;
}

int64_t packed_width(int64_t images, const int64_t* in_size, const int64_t* out_size, int chunks) {
    if (in_size[0] * in_size[1] == 1 && out_size[0] * out_size[1] == 1)
        return std::min<int64_t>(chunks * kChunk, up(images, kChunk));
    if (images <= kFewImages) return 1;
    return out_size[1] == 1 && images > kImageWidth ? kChunk : kImageWidth;
}

Planes forward_planes(const FilterShape& f, const int64_t* padding, int64_t width, const int64_t* out_size) {
    Planes p;
    p.width = width;
    p.channels = f.inputs;
    int64_t phase_index[2][64], size[2];
    for (int d = 0; d < 2; ++d) {
        p.stride[d] = f.stride[d];
        p.phases[d] = 0;
        std::fill(phase_index[d], phase_index[d] + 64, -1);
        for (int64_t t = 0; t < f.taps[d]; ++t) {
            const int64_t phase = t * f.dilation[d] % f.stride[d];
            if (phase_index[d][phase] < 0) {
                phase_index[d][phase] = p.phases[d];
                p.used_phase[d][p.phases[d]++] = phase;
            }
        }
        p.reach[d] = (f.taps[d] - 1) * f.dilation[d] / f.stride[d];
        p.lead[d] = padding[d];
        size[d] = out_size[d] + p.reach[d];
    }
    p.height = size[0];
    p.row = size[1] * width;
    set_strides(p);
    for (int64_t h = 0; h < f.taps[0]; ++h)
        for (int64_t w = 0; w < f.taps[1]; ++w) {
            const int64_t i = h * f.dilation[0], j = w * f.dilation[1];
            const int64_t phase = phase_index[0][i % f.stride[0]] * p.phases[1] + phase_index[1][j % f.stride[1]];
            p.shift.push_back(phase * p.plane + i / f.stride[0] * p.row + j / f.stride[1] * width);
        }
    return p;
}

Planes backward_planes(const FilterShape& f, const int64_t* padding, int64_t width, const int64_t* x_size, Grid& grid,
                       int64_t* first) {
    Planes p;
    p.width = width;
    p.channels = f.outputs;
    p.used_phase[0][0] = p.used_phase[1][0] = 0;
    int64_t size[2];
    for (int d = 0; d < 2; ++d) {
        p.reach[d] = (f.taps[d] - 1) * f.dilation[d] / f.stride[d];
        first[d] = padding[d] / f.stride[d];
        grid.size[d] = (x_size[d] - 1 + padding[d]) / f.stride[d] - first[d] + 1;
        p.lead[d] = p.reach[d] - first[d];
        size[d] = grid.size[d] + p.reach[d];
    }
    p.height = size[0];
    p.row = size[1] * width;
    set_strides(p);
    for (int64_t h = 0; h < f.taps[0]; ++h)
        for (int64_t w = 0; w < f.taps[1]; ++w) {
            const int64_t i = h * f.dilation[0] / f.stride[0], j = w * f.dilation[1] / f.stride[1];
            p.shift.push_back((p.reach[0] - i) * p.row + (p.reach[1] - j) * width);
        }
    grid = make_grid(grid.size, p);
    return p;
}

int64_t Grid::floats(int64_t rows, int64_t width) const {
    return flat ? up((rows - 1) * row + size[1] * width, kChunk) : rows * row;
}

Grid make_grid(const int64_t* size, const Planes& planes) {
    Grid grid;
    grid.size[0] = size[0];
    grid.size[1] = size[1];
    grid.row = up(size[1] * planes.width, kChunk);
    Grid flat = grid;
    flat.row = planes.row;
    flat.flat = true;
    return flat.floats(size[0], planes.width) < grid.floats(size[0], planes.width) ? flat : grid;
}

std::vector<Tile> make_tiles(const Grid& grid, const Planes& planes, int64_t row, int64_t rows, int most) {
    std::vector<Tile> tiles;
    const int64_t all = grid.floats(rows, planes.width) / kChunk, in_row = grid.flat ? all : grid.row / kChunk;
    for (int64_t at = 0; at < all; at += most) {
        Tile tile;
        tile.chunks = static_cast<int>(std::min<int64_t>(most, all - at));
        tile.sums = at * kChunk;
        for (int c = 0; c < tile.chunks; ++c)
            tile.chunk[c] = (row + (at + c) / in_row) * planes.row + (at + c) % in_row * kChunk;
        tiles.push_back(tile);
    }
    return tiles;
}

int64_t cached_channels(const FilterShape& filter, const Grid& grid, const Planes& p, int tile_chunks, int64_t tiles) {
    const int64_t tile = tile_chunks * kChunk, row = grid.size[1] * p.width;
    const int64_t rows = (tile + row - 1) / row + p.reach[0];
    const int64_t run = up(std::min(tile, row) + p.reach[1] * p.width, kChunk);
    const int64_t floats = std::max(rows * run, tile) * p.phases[0] * p.phases[1];
    const int64_t block = block_channels(filter);
    const int64_t cache = tiles <= kFewTiles ? kSecondCacheFloats : kFirstCacheFloats;
    return std::max(cache / floats / block, int64_t{1}) * block;
}

}  // namespace edgeprune
