#include <algorithm>
#include <cstring>

#include "base/scratch.h"
#include "base/threads.h"
#include "ops/masked_sweep.h"

namespace edgeprune {
namespace {

// Packed images that are walked while they are in the caches.
constexpr int64_t kPackedFloats = 1 << 20;

// dy in the layout of sums: row r, grid rows without a gap, zero where no pixel is.
void pack_gradient(const Dots& d, int64_t group, int64_t first, int64_t last, int64_t row_floats, float* packed) {
    const int64_t width = d.planes.width, count = std::min(width, d.dy.count - group * width);
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
    task.packed_step = width;
    task.count = d.grid.size[1];
    for (int64_t r = first; r < last; ++r) {
        float* const row = packed + r * row_floats;
        if (d.grid.flat || d.grid.row > task.count * width)
            std::memset(row, 0, static_cast<size_t>(row_floats) * sizeof(float));
        for (int64_t u = 0; u < d.grid.size[0]; ++u) {
            task.plain = const_cast<float*>(source) + r * d.dy.pixels() + u * d.grid.size[1];
            task.packed = row + u * d.grid.row;
            d.kernels->interleave(task);
        }
    }
}

}  // namespace

void run_dots(const Dots& d, int threads) {
    if (d.kept == 0) return;
    std::memset(d.dw, 0, static_cast<size_t>(d.kept) * sizeof(float));
    if (d.x.count == 0) return;
    const int64_t rows = d.filter.outputs, row_floats = d.grid.floats(d.grid.size[0], d.planes.width);
    const int64_t row_stride = spread(row_floats, d.kernels->dots_chunks * kChunk);
    std::vector<int32_t> shifts;
    if (d.filter.all_taps() > 1) shifts = column_shifts(d.filter, d.planes);
    const int64_t groups = (d.x.count + d.planes.width - 1) / d.planes.width;
    const std::vector<Tile> tiles = make_tiles(d.grid, d.planes, 0, d.grid.size[0], d.kernels->dots_chunks);
    const int64_t step = cached_channels(d.filter, d.grid, d.planes, d.kernels->dots_chunks,
                                         groups * static_cast<int64_t>(tiles.size())) /
                         block_channels(d.filter);
    const std::vector<BlockRows> blocks = make_blocks(d.starts, rows, d.blocks, step);
    const std::vector<int64_t> cuts = even_ranges(d.starts, rows, d.blocks, range_count(d.kept, 0, threads));

    const int64_t group_floats = d.planes.floats() + rows * row_stride;
    const int64_t at_once = std::clamp(kPackedFloats / group_floats, int64_t{1}, groups);
    float* const packed = scratch(Slot::packed, at_once * d.planes.floats());
    float* const gradient = scratch(Slot::gradients, at_once * rows * row_stride);
    for (int64_t group = 0; group < groups; group += at_once) {
        const int64_t here = std::min(at_once, groups - group);
        pack_groups(d.x, d.planes, group, here, *d.kernels, threads, packed);
        const int64_t shares = threads == 1 ? 1 : std::min<int64_t>(rows, 4 * threads);
        parallel_pieces(threads, here * shares, [&](int64_t piece) {
            const int64_t g = piece / shares, share = piece % shares;
            pack_gradient(d, group + g, rows * share / shares, rows * (share + 1) / shares, row_stride,
                          gradient + g * rows * row_stride);
        });
        // A kept weight belongs to one range, so its sum has one order whatever the number of threads.
        parallel_pieces(threads, static_cast<int64_t>(cuts.size()) - 1, [&](int64_t range) {
            const int64_t r0 = cuts[static_cast<size_t>(range)], r1 = cuts[static_cast<size_t>(range) + 1];
            DotsTask task{};
            task.dw = d.dw;
            task.dy_stride = row_stride;
            task.kept.columns = d.columns;
            task.kept.shift_of = shifts.empty() ? nullptr : shifts.data();
            task.kept.column_stride = d.planes.channel;
            for (int64_t g = 0; g < here; ++g) {
                task.kept.x = packed + g * d.planes.floats();
                for (const Tile& tile : tiles) {
                    std::copy_n(tile.chunk, tile.chunks, task.kept.chunk);
                    task.kept.chunks = tile.chunks;
                    for (const BlockRows& block : blocks) {
                        const int64_t first = std::max(r0, block.first), last = std::min(r1, block.last);
                        if (first >= last) continue;
                        task.kept.begin = d.starts + block.block * rows + first;
                        task.kept.end = d.starts + block.next * rows + first;
                        task.kept.rows = last - first;
                        task.dy = gradient + (g * rows + first) * row_stride + tile.sums;
                        d.kernels->dots(task);
                    }
                }
            }
        });
    }
}

}  // namespace edgeprune
