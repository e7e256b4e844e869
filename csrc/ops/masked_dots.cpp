#include <algorithm>
#include <cstring>

#include "base/scratch.h"
#include "base/threads.h"
#include "ops/masked_sweep.h"

namespace edgeprune {
namespace {

// Packed images that are walked while they are in the caches.
constexpr int64_t kPackedFloats = 1 << 20;
// Sums of the kept weights over parts of the images, of all parts.
constexpr int64_t kPartialFloats = 1 << 18;
constexpr int64_t kMostParts = 16;

// dy in the layout of sums: row r, grid rows without a gap, zero where no pixel is.
void pack_gradient(const Dots& d, int64_t group, int64_t first, int64_t last, int64_t row_floats, float* packed) {
    const int64_t width = d.planes.width, count = std::min(width, d.dy.count - group * width);
    if (d.dy.side > 1)
        return pack_side(d.dy, group * width, count, first, last, *d.kernels, packed + first * row_floats, row_floats,
                         row_floats);
    const float* const source = d.dy.data + group * width * d.dy.image();
    InterleaveTask task{};
    task.plain_image = d.dy.image();
    task.plain_step = 1;
    task.images = count;
    task.width = width;
    if (d.dy.pixels() == 1) {
        task.plain = const_cast<float*>(source) + first;
        task.packed = packed + first * row_floats;
        task.packed_step = row_floats;
        task.count = last - first;
        if (row_floats > width)
            std::memset(task.packed, 0, static_cast<size_t>((last - first) * row_floats) * sizeof(float));
        return d.kernels->interleave(task);
    }
    // Of eight images all rows at once; of one row by row, which are copied.
    const int64_t lines = width > 1 ? d.grid.size[0] : 1;
    task.packed_step = width;
    task.count = lines * d.grid.size[1];
    task.line = width > 1 ? d.grid.size[1] : 0;
    task.line_step = d.grid.row;
    for (int64_t r = first; r < last; ++r) {
        float* const row = packed + r * row_floats;
        if (d.grid.flat || d.grid.row > d.grid.size[1] * width)
            std::memset(row, 0, static_cast<size_t>(row_floats) * sizeof(float));
        for (int64_t u = 0; u < d.grid.size[0]; u += lines) {
            task.plain = const_cast<float*>(source) + r * d.dy.pixels() + u * d.grid.size[1];
            task.packed = row + u * d.grid.row;
            d.kernels->interleave(task);
        }
    }
}

// Everything that is the same for all groups of images.
struct Prepared {
    std::vector<int32_t> shifts;  // by column; empty: a column's shift is columns[k] * column_stride
    std::vector<Tile> tiles;
    std::vector<BlockRows> blocks;
    int64_t row_stride;  // of packed gradients
};

// Adds one group's part to dw, for rows [r0, r1).
void dots_of_group(const Dots& d, const Prepared& ready, const float* packed, const float* gradient, int64_t r0,
                   int64_t r1, float* dw) {
    const int64_t rows = d.filter.outputs;
    DotsTask task{};
    task.dw = dw;
    task.dy_stride = ready.row_stride;
    task.kept.columns = d.columns;
    task.kept.shift_of = ready.shifts.empty() ? nullptr : ready.shifts.data();
    task.kept.column_stride = d.planes.channel;
    task.kept.x = packed;
    for (const Tile& tile : ready.tiles) {
        std::copy_n(tile.chunk, tile.chunks, task.kept.chunk);
        task.kept.chunks = tile.chunks;
        for (const BlockRows& block : ready.blocks) {
            const int64_t first = std::max(r0, block.first), last = std::min(r1, block.last);
            if (first >= last) continue;
            task.kept.begin = d.starts + block.block * rows + first;
            task.kept.end = d.starts + block.next * rows + first;
            task.kept.rows = last - first;
            task.dy = gradient + first * ready.row_stride + tile.sums;
            d.kernels->dots(task);
        }
    }
}

// Few kept weights, many groups: the groups in `parts` parts, each with sums of its own, so that whoever packs a group
// walks it while it is in the caches. The parts do not depend on the number of threads, so neither do the bits.
void dots_by_parts(const Dots& d, const Prepared& ready, int64_t groups, int64_t parts, int threads) {
    const int64_t rows = d.filter.outputs;
    float* const sums = scratch(Slot::outputs, parts * d.kept);
    parallel_pieces(threads, parts, [&](int64_t part) {
        float* const packed = scratch(Slot::packed, d.planes.floats());
        float* const gradient = scratch(Slot::gradients, rows * ready.row_stride);
        float* const dw = sums + part * d.kept;
        std::memset(dw, 0, static_cast<size_t>(d.kept) * sizeof(float));
        for (int64_t g = groups * part / parts; g < groups * (part + 1) / parts; ++g) {
            pack_images(d.x, g, d.planes, 0, d.planes.channels, *d.kernels, packed);
            pack_gradient(d, g, 0, rows, ready.row_stride, gradient);
            dots_of_group(d, ready, packed, gradient, 0, rows, dw);
        }
    });
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t k = 0; k < d.kept; ++k) d.dw[k] += sums[part * d.kept + k];
}

}  // namespace

void run_dots(const Dots& d, int threads) {
    if (d.kept == 0) return;
    std::memset(d.dw, 0, static_cast<size_t>(d.kept) * sizeof(float));
    if (d.x.count == 0) return;
    Prepared ready;
    const int64_t rows = d.filter.outputs;
    ready.row_stride = spread(d.grid.floats(d.grid.size[0], d.planes.width), d.kernels->dots_chunks * kChunk);
    if (d.filter.all_taps() > 1) ready.shifts = column_shifts(d.filter, d.planes);
    const int64_t groups = (d.x.count + d.planes.width - 1) / d.planes.width;
    ready.tiles = make_tiles(d.grid, d.planes, 0, d.grid.size[0], d.kernels->dots_chunks);
    const int64_t step = cached_channels(d.filter, d.grid, d.planes, d.kernels->dots_chunks,
                                         groups * static_cast<int64_t>(ready.tiles.size())) /
                         block_channels(d.filter);
    ready.blocks = make_blocks(d.starts, rows, d.blocks, step);
    const int64_t parts = std::min({kPartialFloats / d.kept, groups / 2, kMostParts});
    if (d.x.side > 1 && parts > 1) return dots_by_parts(d, ready, groups, parts, threads);

    const std::vector<int64_t> cuts = even_ranges(d.starts, rows, d.blocks, range_count(d.kept, 0, threads));
    const int64_t group_rows = rows * ready.row_stride;
    const int64_t at_once = std::clamp(kPackedFloats / (d.planes.floats() + group_rows), int64_t{1}, groups);
    float* const packed = scratch(Slot::packed, at_once * d.planes.floats());
    float* const gradient = scratch(Slot::gradients, at_once * group_rows);
    for (int64_t group = 0; group < groups; group += at_once) {
        const int64_t here = std::min(at_once, groups - group);
        pack_groups(d.x, d.planes, group, here, *d.kernels, threads, packed);
        const int64_t shares = threads == 1 ? 1 : std::min<int64_t>(rows, 4 * threads);
        parallel_pieces(threads, here * shares, [&](int64_t piece) {
            const int64_t g = piece / shares, share = piece % shares;
            pack_gradient(d, group + g, rows * share / shares, rows * (share + 1) / shares, ready.row_stride,
                          gradient + g * group_rows);
        });
        // A kept weight belongs to one range, so its sum has one order whatever the number of threads.
        parallel_pieces(threads, static_cast<int64_t>(cuts.size()) - 1, [&](int64_t range) {
            for (int64_t g = 0; g < here; ++g)
                dots_of_group(d, ready, packed + g * d.planes.floats(), gradient + g * group_rows,
                              cuts[static_cast<size_t>(range)], cuts[static_cast<size_t>(range) + 1], d.dw);
        });
    }
}

}  // namespace edgeprune
