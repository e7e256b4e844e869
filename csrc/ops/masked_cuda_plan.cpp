// Which tiles a masked product on a GPU is cut into, and which kept weights fall into each: host code, no GPU needed.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "ops/masked_cuda.h"

namespace edgeprune {
namespace {

int pieces(int64_t a, int64_t b) { return static_cast<int>(ceil_div(a, b)); }

// ---- geometry -----------------------------------------------------------------------------------------------------

// Shifts of the taps that occur, from the smallest to the largest.
void set_shifts(CudaGeometry& g, int d, int64_t taps, int64_t dilation, int64_t stride, int64_t phase, bool backward) {
    g.lowest[d] = 1, g.highest[d] = 0;
    for (int64_t tap = 0; tap < taps; ++tap) {
        if (backward && tap * dilation % stride != phase) continue;
        const int shift = static_cast<int>((g.numerator[d] + g.factor[d] * tap) / g.divisor[d]);
        if (g.lowest[d] > g.highest[d]) g.lowest[d] = g.highest[d] = shift;
        g.lowest[d] = std::min(g.lowest[d], shift);
        g.highest[d] = std::max(g.highest[d], shift);
    }
    if (g.lowest[d] > g.highest[d]) g.lowest[d] = g.highest[d] = 0;  // no tap: nothing is read
}

CudaGeometry make_geometry(const FilterShape& f, const int64_t (&padding)[2], const int64_t (&x_shape)[4],
                           MaskedWork work, int phase) {
    CudaGeometry g{};
    const bool backward = work == MaskedWork::input_gradient;
    g.images = static_cast<int>(x_shape[0]);
    g.channels = static_cast<int>(backward ? f.outputs : f.inputs);
    g.rows = static_cast<int>(backward ? f.inputs : f.outputs);
    g.taps = static_cast<int>(f.all_taps());
    g.taps_w = static_cast<int>(f.taps[1]);
    const int64_t phases[2] = {phase / f.stride[1], phase % f.stride[1]};
    for (int d = 0; d < 2; ++d) {
        const auto x_size = static_cast<int>(x_shape[2 + d]);
        const int y_size =
            static_cast<int>((x_size + 2 * padding[d] - (f.taps[d] - 1) * f.dilation[d] - 1) / f.stride[d]) + 1;
        const auto stride = static_cast<int>(f.stride[d]), dilation = static_cast<int>(f.dilation[d]);
        if (backward) {  // dx at h = first + stride * i reads dy at i + (first + padding - tap * dilation) / stride
            const auto first = static_cast<int>(((phases[d] - padding[d]) % stride + stride) % stride);
            g.in_size[d] = y_size, g.out_size[d] = x_size;
            g.grid[d] = first < x_size ? (x_size - first + stride - 1) / stride : 0;
            g.in_step[d] = 1, g.out_step[d] = stride, g.out_first[d] = first;
            g.numerator[d] = first + static_cast<int>(padding[d]), g.factor[d] = -dilation, g.divisor[d] = stride;
        } else {
            g.in_size[d] = x_size, g.out_size[d] = g.grid[d] = y_size;
            g.in_step[d] = stride, g.out_step[d] = 1, g.out_first[d] = 0;
            g.numerator[d] = -static_cast<int>(padding[d]), g.factor[d] = dilation, g.divisor[d] = 1;
        }
        set_shifts(g, d, f.taps[d], dilation, stride, phases[d], backward);
    }
    return g;
}

// ---- tiles --------------------------------------------------------------------------------------------------------

// Lanes that share a bank of shared memory, at worst, over the reads of one warp.
int conflicts(const CudaGeometry& g, const CudaTile& tile, int positions) {
    int worst = 1;
    for (int first = 0; first < positions; first += 32) {
        int lanes[32] = {}, places[32];
        int found = 0;
        for (int p = first; p < first + 32; ++p) {
            int image, row, column;
            if (!split_position(tile, p, image, row, column)) break;
            places[found++] = image * tile.image + row * g.in_step[0] * tile.pitch + column * g.in_step[1];
        }
        for (int i = 0; i < found; ++i) worst = std::max(worst, ++lanes[places[i] % 32]);
    }
    return worst;
}

void lay_out_patch(const CudaGeometry& g, CudaTile& tile, int positions) {
    for (int d = 0; d < 2; ++d) tile.patch[d] = (tile.size[d] - 1) * g.in_step[d] + g.highest[d] - g.lowest[d] + 1;
    CudaTile best = tile;
    double least = INFINITY;
    for (int extra = 0; extra < 8; ++extra) {  // a few floats between rows may spread them over the banks
        tile.pitch = tile.patch[1] + extra;
        tile.image = tile.patch[0] * tile.pitch;
        tile.plane = tile.images * tile.image;
        const double cost = (3.0 + conflicts(g, tile, positions)) * (8.0 + tile.plane);
        if (cost < least) least = cost, best = tile;
        if (tile.size[0] * tile.size[1] == 1) break;
    }
    tile = best;
    if (is_linear(g)) tile.plane |= 1;  // written along channels
}

// The tile of at most `positions` that covers the grid with the least work.
CudaTile choose_tile(const CudaGeometry& g, int positions) {
    CudaTile best{};
    double least = INFINITY;
    for (int across = 1; across <= g.grid[1]; ++across) {
        const int columns = pieces(g.grid[1], across);
        if (columns > positions) continue;
        if (across > 1 && columns < 8) break;
        for (int down = 1; down <= g.grid[0]; ++down) {
            CudaTile tile{};
            tile.size[1] = columns;
            tile.size[0] = pieces(g.grid[0], down);
            if (tile.size[0] * columns > positions) continue;
            tile.images = std::min(g.images, positions / (tile.size[0] * columns));
            tile.count[0] = pieces(g.images, tile.images);
            tile.count[1] = pieces(g.grid[0], tile.size[0]);
            tile.count[2] = pieces(g.grid[1], columns);
            lay_out_patch(g, tile, positions);
            const double tiles = static_cast<double>(tile.count[0]) * tile.count[1] * tile.count[2];
            const double cost = tiles * (positions * (3.0 + conflicts(g, tile, positions)) + tile.plane);
            if (cost < least) least = cost, best = tile;
            if (tile.size[0] == 1) break;
        }
    }
    return best;
}

// Channels in a block such that the patch and the kept weights of a tile fit; blocks of about equal size.
int fit_channels(const CudaGeometry& g, const CudaTile& tile, int64_t kept, int64_t t_rows, int rows_per_tile,
                 int64_t bytes, int align) {
    const double per_row_channel = static_cast<double>(kept) / (static_cast<double>(t_rows) * g.channels);
    const double fixed = 8.0 * align * rows_per_tile;  // padding of each row's segment
    const double each = 4.0 * tile.plane + 8.0 * 1.1 * rows_per_tile * per_row_channel;
    const double most = (static_cast<double>(bytes) - fixed) / each;
    if (most < 1.0) return 0;
    const int limit = static_cast<int>(std::min(most, static_cast<double>(g.channels)));
    return pieces(g.channels, pieces(g.channels, limit));
}

// Reads of shared memory that a block of threads makes, in units of one warp's 128 bytes.
double block_cost(const CudaGeometry& g, const CudaTile& tile, int64_t kept, int64_t t_rows, int rows_per_tile,
                  int positions_per_lane) {
    const double per_row = static_cast<double>(kept) / static_cast<double>(t_rows);
    return rows_per_tile * per_row * (positions_per_lane + 0.7) + static_cast<double>(tile.plane) * g.channels / 16.0 +
           500.0;
}

double tiles_of(const CudaTile& tile) { return static_cast<double>(tile.count[0]) * tile.count[1] * tile.count[2]; }

}  // namespace

int phases_of(const FilterShape& filter) { return static_cast<int>(filter.stride[0] * filter.stride[1]); }

Arrangement arrange(const FilterShape& f, const int64_t (&padding)[2], const int64_t (&x_shape)[4], MaskedWork work,
                    int phase, int64_t kept, const CudaLimits& limits, int channels_per_block) {
    check_filter("masked_cuda", f);
    for (int d = 0; d < 2; ++d)
        if (padding[d] < 0 || padding[d] > 1 << 20 || x_shape[2 + d] < 1 || x_shape[2 + d] > 1 << 20 ||
            x_shape[2 + d] + 2 * padding[d] < (f.taps[d] - 1) * f.dilation[d] + 1)
            fail("masked_cuda: pictures of %lld x %lld with padding %lld x %lld do not go with the filter",
                 static_cast<long long>(x_shape[2]), static_cast<long long>(x_shape[3]),
                 static_cast<long long>(padding[0]), static_cast<long long>(padding[1]));
    if (x_shape[0] < 1 || x_shape[0] > 1 << 30)
        fail("masked_cuda: a batch of %lld", static_cast<long long>(x_shape[0]));
    Arrangement best;
    best.geometry = make_geometry(f, padding, x_shape, work, phase);
    const CudaGeometry& g = best.geometry;
    if (best.empty()) return best;
    const bool dots = work == MaskedWork::weight_gradient;
    const int64_t t_rows = work == MaskedWork::input_gradient ? transposed_rows(f) : f.outputs;
    double least = INFINITY;
    for (const int lanes : {4, 2, 1}) {
        if (dots && lanes != 4) continue;
        const CudaTile tile = choose_tile(g, 32 * lanes);
        for (const int rows : {16, 8, 4}) {
            const int rows_per_tile = kCudaWarps * rows;
            int64_t bytes = limits.shared_bytes;
            if (dots) bytes -= dots_shared_bytes(tile, 0, 0, rows_per_tile);
            int channels =
                fit_channels(g, tile, kept, t_rows, rows_per_tile, bytes, dots ? kDotsAlign : kCorrelateAlign);
            if (channels < 1) continue;
            if (channels_per_block) channels = std::min(channels, channels_per_block);
            const double row_tiles = pieces(g.rows, rows_per_tile), tiles = tiles_of(tile);
            double blocks = row_tiles * tiles, cost = block_cost(g, tile, kept, t_rows, rows_per_tile, lanes);
            if (dots) {  // blocks own rows and channels, positions are split over as many as keep the chip busy
                const double owned = row_tiles * pieces(g.channels, channels);
                const double splits = std::min(tiles, std::ceil(4.0 * limits.multiprocessors / owned));
                blocks = owned * splits;
                cost = (rows_per_tile * (kept / static_cast<double>(t_rows)) * channels / g.channels * 5.6 +
                        (static_cast<double>(tile.plane) * channels + 128.0 * rows_per_tile) / 16.0) *
                           std::ceil(tiles / splits) +
                       500.0;
            }
            const double total = std::ceil(blocks / limits.multiprocessors) * cost;
            if (total < least) {
                least = total;
                best.tile = tile;
                best.rows_per_thread = rows;
                best.positions_per_lane = lanes;
                best.channels_per_block = channels;
                best.splits = dots ? static_cast<int>(blocks / (row_tiles * pieces(g.channels, channels))) : 1;
            }
        }
    }
    return best;
}

int64_t shared_bytes(const Arrangement& a, MaskedWork work, int longest) {
    return work == MaskedWork::weight_gradient
               ? dots_shared_bytes(a.tile, a.channels_per_block, longest, kCudaWarps * a.rows_per_thread)
               : correlate_shared_bytes(a.tile, a.channels_per_block, longest);
}

PlanEntries plan_entries(const SparsityPattern& pattern, MaskedWork work, int phase, int rows_per_tile,
                         int channels_per_block) {
    const FilterShape& f = pattern.filter;
    const bool backward = work == MaskedWork::input_gradient;
    const int align = work == MaskedWork::weight_gradient ? kDotsAlign : kCorrelateAlign;
    const auto rows = static_cast<int>(backward ? f.inputs : f.outputs), taps = static_cast<int>(f.all_taps());
    const int32_t* const columns = backward ? pattern.t_columns : pattern.columns;
    // The first and the last line of starts, at this phase.
    const int64_t all_rows = backward ? transposed_rows(f) : f.outputs;
    const int64_t lines = backward ? blocks_of(f.outputs, f) : blocks_of(f.inputs, f);
    const int32_t* const begin = (backward ? pattern.t_starts : pattern.starts) + static_cast<int64_t>(phase) * rows;
    const int32_t* const end = begin + lines * all_rows;

    for (int r = 0; r < rows; ++r)
        if (begin[r] < 0 || begin[r] > end[r] || end[r] > pattern.kept)
            fail("masked_cuda: row %d of the pattern ends beyond its %lld kept weights", r,
                 static_cast<long long>(pattern.kept));
    PlanEntries plan;
    plan.rows_per_tile = rows_per_tile, plan.channels_per_block = channels_per_block;
    const int row_tiles = pieces(rows, rows_per_tile), span = channels_per_block * taps;
    std::vector<int32_t> next(static_cast<size_t>(rows_per_tile));
    plan.row_first.push_back(0);
    for (int tile = 0; tile < row_tiles; ++tile) {
        const int first = tile * rows_per_tile, here = std::min(rows_per_tile, rows - first);
        for (int r = 0; r < here; ++r) next[static_cast<size_t>(r)] = begin[first + r];
        for (;;) {
            int lowest = -1;  // the nearest column that is left says which block comes next
            for (int r = 0; r < here; ++r) {
                const int32_t k = next[static_cast<size_t>(r)];
                if (k < end[first + r] && (lowest < 0 || columns[k] < lowest)) lowest = columns[k];
            }
            if (lowest < 0) break;
            const int block = lowest / span, from = block * span;
            const auto at = static_cast<int32_t>(plan.order.size());
            plan.tile_first.push_back(at);
            plan.tile_block.push_back(block);
            plan.tile_row.push_back(tile);
            for (int r = 0; r < rows_per_tile; ++r) {
                const auto start = static_cast<int32_t>(plan.order.size()) - at;
                int32_t kept = 0;
                if (r < here) {
                    int32_t& k = next[static_cast<size_t>(r)];
                    for (; k < end[first + r] && columns[k] < from + span; ++k, ++kept) {
                        plan.order.push_back(backward ? pattern.t_order[k] : k);
                        plan.column.push_back(columns[k] - from);
                    }
                }
                while (plan.order.size() %
                       static_cast<size_t>(align)) {  // padding multiplies what the row reads anyway
                    plan.order.push_back(-1);
                    plan.column.push_back(plan.column.back());
                }
                if (kept > 0xffff || start / align > 0xffff)
                    fail("masked_cuda: more than 65,535 kept weights of one row in one block of channels");
                plan.segments.push_back(
                    static_cast<int32_t>(static_cast<uint32_t>(start / align) << 16 | static_cast<uint32_t>(kept)));
            }
            plan.longest = std::max(plan.longest, static_cast<int>(plan.order.size()) - at);
        }
        plan.row_first.push_back(static_cast<int32_t>(plan.tile_block.size()));
    }
    plan.tile_first.push_back(static_cast<int32_t>(plan.order.size()));
    return plan;
}

}  // namespace edgeprune
