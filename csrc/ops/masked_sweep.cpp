#include "ops/masked_sweep.h"

#include <algorithm>

#include "base/scratch.h"
#include "base/threads.h"

namespace edgeprune {
namespace {

// Of a second-level cache of 1 MB (Zen 4; Orin has 256 KB beside a larger third level): sums of one piece until they
// are written out, and the kept weights of a range of rows with their columns (8 bytes each).
constexpr int64_t kSumsFloats = 48 * 1024;
constexpr int64_t kRangeKept = 32 * 1024;
// Packed images that are walked while they are in the third level.
constexpr int64_t kPackedFloats = 512 * 1024;
// A group of images that one thread packs for itself.
constexpr int64_t kOwnFloats = 64 * 1024;
constexpr int64_t kTilesWorthShifts = 6;

// Everything that is the same for all groups of images.
struct Prepared {
    std::vector<int32_t> shifts;  // by column; empty: a column's shift is columns[k] * column_stride
    const int32_t* columns;
    int64_t column_stride;
    std::vector<BlockRows> blocks;
    std::vector<int64_t> cuts;  // ranges of rows
    int64_t strip;              // grid rows whose sums are formed before they are written out
};

void sum_strip(const Sweep& s, const Prepared& ready, const float* packed, int64_t group, int64_t row, int64_t rows,
               int64_t r0, int64_t r1) {
    const int64_t floats = s.grid.floats(rows, s.planes.width), sums_row = spread(floats, kTileChunks * kChunk);
    float* const sums = scratch(Slot::outputs, (r1 - r0) * sums_row);
    AccumulateTask task{};
    task.w = s.w;
    task.order = s.order;
    task.y_stride = sums_row;
    task.kept.columns = ready.columns;
    task.kept.shift_of = ready.shifts.empty() ? nullptr : ready.shifts.data();
    task.kept.column_stride = ready.column_stride;
    task.kept.x = packed;
    for (const Tile& tile : make_tiles(s.grid, s.planes, row, rows, kTileChunks)) {
        std::copy_n(tile.chunk, tile.chunks, task.kept.chunk);
        task.kept.chunks = tile.chunks;
        for (const BlockRows& block : ready.blocks) {
            task.first = &block == ready.blocks.data();
            const int64_t first = std::max(r0, block.first), last = std::min(r1, block.last);
            if (first >= last) continue;
            task.bias = s.bias ? s.bias + first : nullptr;
            task.kept.begin = s.starts + block.block * s.rows + first;
            task.kept.end = s.starts + block.next * s.rows + first;
            task.kept.rows = last - first;
            task.y = sums + (first - r0) * sums_row + tile.sums;
            s.kernels->accumulate(task);
        }
    }
    unpack_sums(s, group, {sums, sums_row, row, rows, r0, r1});
}

}  // namespace

std::vector<int32_t> column_shifts(const FilterShape& filter, const Planes& planes) {
    std::vector<int32_t> shifts;
    shifts.reserve(static_cast<size_t>(planes.channels * filter.all_taps()));
    for (int64_t c = 0; c < planes.channels; ++c)
        for (const int64_t shift : planes.shift) shifts.push_back(static_cast<int32_t>(c * planes.channel + shift));
    return shifts;
}

std::vector<BlockRows> make_blocks(const int32_t* starts, int64_t rows, int64_t blocks, int64_t step) {
    std::vector<BlockRows> all;
    for (int64_t block = 0; block < blocks; block += step) {
        const int64_t next = std::min(block + step, blocks);
        const auto any = [&](int64_t r) { return starts[block * rows + r] < starts[next * rows + r]; };
        int64_t first = 0, last = rows;
        while (first < rows && !any(first)) ++first;
        while (last > first && !any(last - 1)) --last;
        if (first < last) all.push_back({first, last, block, next});
    }
    if (all.empty()) all.push_back({0, 0, 0, blocks});
    return all;
}

std::vector<int64_t> even_ranges(const int32_t* starts, int64_t rows, int64_t blocks, int64_t pieces) {
    const int64_t first = starts[0], kept = starts[(blocks + 1) * rows - 1] - first;
    std::vector<int64_t> cuts(1, 0);
    for (int64_t p = 1; p < pieces; ++p) {
        // The first row from which a p-th of the kept weights lies behind; rows start in rising order.
        const auto cut = std::lower_bound(starts + cuts.back(), starts + rows, first + kept * p / pieces) - starts;
        if (cut > cuts.back() && cut < rows) cuts.push_back(cut);
    }
    cuts.push_back(rows);
    return cuts;
}

int64_t range_count(int64_t kept, int64_t others, int threads) {
    const int64_t cached = pieces_of(kept, kRangeKept);
    const int64_t wanted = others >= 2 * threads ? 1 : threads;
    return std::max(cached, wanted);
}

void run_sweep(const Sweep& s, int threads) {
    Prepared ready;
    const int64_t kept = s.starts[(s.blocks + 1) * s.rows - 1] - s.starts[0];
    const int64_t groups = pieces_of(s.in.count, s.planes.width);
    const int64_t tiles = groups * pieces_of(s.grid.floats(s.grid.size[0], s.planes.width), kTileChunks * kChunk);
    ready.columns = s.columns;
    ready.column_stride = s.planes.channel;
    if (s.filter.all_taps() > 1) {
        ready.shifts = column_shifts(s.filter, s.planes);
        // Many tiles: look every shift up once.
        if (tiles >= kTilesWorthShifts) {
            auto* const shifts = reinterpret_cast<int32_t*>(scratch(Slot::shifts, kept));
            for (int64_t k = 0; k < kept; ++k) shifts[k] = ready.shifts[static_cast<size_t>(s.columns[k])];
            ready.shifts.clear();
            ready.columns = shifts;
            ready.column_stride = 1;
        }
    }
    const int64_t step = cached_channels(s.filter, s.grid, s.planes, kTileChunks, tiles) / block_channels(s.filter);
    ready.blocks = make_blocks(s.starts, s.rows, s.blocks, step);
    ready.blocks.front().first = 0;  // where every row's sums begin
    ready.blocks.front().last = s.rows;
    const int64_t at_once = std::clamp(kPackedFloats / s.planes.floats(), int64_t{1}, groups);
    const auto strip_of = [&](int64_t rows) {
        return std::min(s.grid.size[0], std::max(int64_t{1}, kSumsFloats / (rows * s.grid.row)));
    };
    const int64_t others = at_once * pieces_of(s.grid.size[0], strip_of(s.rows));
    ready.cuts = even_ranges(s.starts, s.rows, s.blocks, range_count(kept, others, threads));
    const int64_t ranges = static_cast<int64_t>(ready.cuts.size()) - 1;
    ready.strip = strip_of(pieces_of(s.rows, ranges));
    const int64_t strips = pieces_of(s.grid.size[0], ready.strip);
    if (ranges == 1 && strips == 1 && s.planes.floats() <= kOwnFloats && (threads == 1 || groups >= 2 * threads))
        // Each thread packs a group and walks it while it is in its caches.
        return parallel_pieces(threads, groups, [&](int64_t group) {
            float* const packed = scratch(Slot::packed, s.planes.floats());
            pack_images(s.in, group, s.planes, 0, s.planes.channels, *s.kernels, packed);
            sum_strip(s, ready, packed, group, 0, s.grid.size[0], 0, s.rows);
        });
    float* const packed = scratch(Slot::packed, at_once * s.planes.floats());
    for (int64_t group = 0; group < groups; group += at_once) {
        const int64_t here = std::min(at_once, groups - group);
        pack_groups(s.in, s.planes, group, here, *s.kernels, threads, packed);
        // Rows outermost: their kept weights stay in the second-level cache while all images pass by.
        parallel_pieces(threads, ranges * here * strips, [&](int64_t piece) {
            const int64_t range = piece / (here * strips), g = piece / strips % here;
            const int64_t row = piece % strips * ready.strip;
            sum_strip(s, ready, packed + g * s.planes.floats(), group + g, row,
                      std::min(ready.strip, s.grid.size[0] - row), ready.cuts[static_cast<size_t>(range)],
                      ready.cuts[static_cast<size_t>(range) + 1]);
        });
    }
}

}  // namespace edgeprune
