#include "ops/masked_sweep.h"

#include <algorithm>

#include "base/scratch.h"
#include "base/threads.h"

namespace edgeprune {
namespace {

// Sums of one piece stay in the second-level cache until they are written out.
constexpr int64_t kSumsFloats = 48 * 1024;

int64_t pieces_of(int64_t items, int64_t each) { return (items + each - 1) / each; }

// Writes grid rows [row, row + rows) of sweep rows [r0, r1) to the output.
void write_out(const Sweep& s, int64_t group, const float* sums, int64_t sums_row, int64_t row, int64_t rows,
               int64_t r0, int64_t r1) {
    const int64_t width = s.planes.width, pixels = s.out_size[0] * s.out_size[1], image = s.out_channels * pixels;
    InterleaveTask task{};
    task.plain_image = image;
    task.images = std::min(width, s.in.count - group * width);
    task.packed_step = width;
    task.width = width;
    float* const out = s.out + group * width * image;
    if (pixels == 1 && s.stride[0] * s.stride[1] == 1) {
        task.plain = out + r0;
        task.plain_step = 1;
        task.packed = const_cast<float*>(sums);
        task.packed_step = sums_row;
        task.count = r1 - r0;
        return s.kernels->deinterleave(task);
    }
    for (int64_t r = r0; r < r1; ++r) {
        const int64_t phase = r / s.out_channels, channel = r % s.out_channels;
        const int64_t at[2] = {phase / s.stride[1], phase % s.stride[1]};
        const int64_t left = s.first[1] * s.stride[1] + at[1] - s.padding[1];  // pixel of grid column 0
        const int64_t from = left >= 0 ? 0 : pieces_of(-left, s.stride[1]);
        const int64_t upto = std::min(s.grid.size[1], pieces_of(s.out_size[1] - left, s.stride[1]));
        if (upto <= from) continue;
        task.plain_step = s.stride[1];
        task.count = upto - from;
        for (int64_t u = row; u < row + rows; ++u) {
            const int64_t i = (s.first[0] + u) * s.stride[0] + at[0] - s.padding[0];
            if (i < 0 || i >= s.out_size[0]) continue;
            task.plain = out + channel * pixels + i * s.out_size[1] + from * s.stride[1] + left;
            task.packed = const_cast<float*>(sums) + (r - r0) * sums_row + (u - row) * s.grid.row + from * width;
            s.kernels->deinterleave(task);
        }
    }
}

struct Prepared {
    std::vector<int32_t> shifts;
    std::vector<BlockRows> blocks;
    int64_t strip;  // grid rows whose sums are formed before they are written out
};

void sum_strip(const Sweep& s, const Prepared& ready, const float* packed, int64_t group, int64_t row, int64_t rows,
               int64_t r0, int64_t r1) {
    const int64_t floats = s.grid.floats(rows, s.planes.width), sums_row = spread(floats, kTileChunks * kChunk);
    float* const sums = scratch(Slot::outputs, (r1 - r0) * sums_row);
    for (int64_t r = r0; r < r1; ++r) std::fill_n(sums + (r - r0) * sums_row, floats, s.bias ? s.bias[r] : 0.0f);
    AccumulateTask task{};
    task.w = s.w;
    task.y_stride = sums_row;
    task.kept.columns = s.columns;
    task.kept.shift_of = s.filter.all_taps() == 1 ? nullptr : ready.shifts.data();
    task.kept.column_stride = s.planes.channel;
    task.kept.span_stride = s.blocks + 1;
    task.kept.x = packed;
    for (const Tile& tile : make_tiles(s.grid, s.planes, row, rows, kTileChunks)) {
        std::copy_n(tile.chunk, tile.chunks, task.kept.chunk);
        task.kept.chunks = tile.chunks;
        for (const BlockRows& block : ready.blocks) {
            const int64_t first = std::max(r0, block.first), last = std::min(r1, block.last);
            if (first >= last) continue;
            task.kept.begin = s.starts + first * (s.blocks + 1) + block.block;
            task.kept.end = s.starts + first * (s.blocks + 1) + block.next;
            task.kept.rows = last - first;
            task.y = sums + (first - r0) * sums_row + tile.sums;
            s.kernels->accumulate(task);
        }
    }
    write_out(s, group, sums, sums_row, row, rows, r0, r1);
}

void sweep_group(const Sweep& s, const Prepared& ready, int64_t group, int threads) {
    float* const packed = scratch(Slot::packed, s.planes.floats());
    const int64_t each = std::max(int64_t{1}, pieces_of(s.planes.channels, 4 * threads));
    parallel_pieces(threads, threads == 1 ? 1 : pieces_of(s.planes.channels, each), [&](int64_t piece) {
        const int64_t first = threads == 1 ? 0 : piece * each;
        const int64_t last = threads == 1 ? s.planes.channels : std::min(s.planes.channels, first + each);
        pack_images(s.in, group, s.planes, first, last, *s.kernels, packed);
    });
    const int64_t strips = pieces_of(s.grid.size[0], ready.strip);
    // Few strips: their rows are shared out too.
    const int64_t ranges = strips >= 2 * threads ? 1 : std::min<int64_t>(threads, s.rows);
    parallel_pieces(threads, strips * ranges, [&](int64_t piece) {
        const int64_t row = piece / ranges * ready.strip, range = piece % ranges;
        sum_strip(s, ready, packed, group, row, std::min(ready.strip, s.grid.size[0] - row),
                  s.rows * range / ranges, s.rows * (range + 1) / ranges);
    });
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
        const auto any = [&](int64_t r) { return starts[r * (blocks + 1) + block] < starts[r * (blocks + 1) + next]; };
        int64_t first = 0, last = rows;
        while (first < rows && !any(first)) ++first;
        while (last > first && !any(last - 1)) --last;
        if (first < last) all.push_back({first, last, block, next});
    }
    return all;
}

void run_sweep(const Sweep& s, int threads) {
    Prepared ready;
    if (s.filter.all_taps() > 1) ready.shifts = column_shifts(s.filter, s.planes);
    const int64_t step = cached_channels(s.filter, s.grid, s.planes, kTileChunks) / block_channels(s.filter);
    ready.blocks = make_blocks(s.starts, s.rows, s.blocks, step);
    ready.strip = std::min(s.grid.size[0], std::max(int64_t{1}, kSumsFloats / (s.rows * s.grid.row)));
    const int64_t groups = pieces_of(s.in.count, s.planes.width);
    if (threads > 1 && (groups % threads == 0 || groups >= 4 * threads)) {
        parallel_pieces(threads, groups, [&](int64_t group) { sweep_group(s, ready, group, 1); });
    } else {
        for (int64_t group = 0; group < groups; ++group) sweep_group(s, ready, group, threads);
    }
}

}  // namespace edgeprune
