// How gather and scatter walk a task on the device. A task's axes are rows (all but the last two) and, within a row,
// items times a block. Two walks:
//
//   tall   many rows of at least a warp: a thread keeps its place in the row, whose index it looks up once, and walks
//          down the rows, whose offsets the block worked out together and left in shared memory;
//   flat   few or short rows: elements are numbered through, and each finds its place by multiplications.
//
// Where blocks, strides and addresses are multiples of 16 bytes, an "element" of both is four floats.
#pragma once

#include <cuda_runtime.h>

#include "base/cuda_index.h"
#include "base/cuda_launch.h"
#include "kernels/channels/channels_cuda.h"

namespace edgeprune {
namespace {

struct WalkConfig {
    static constexpr int threads = 256;
    static constexpr int each = 16;  // floats of a thread in a tile: what hides the memory's latency
    static constexpr int tile = threads * each;
    static constexpr int least_inner = 32;  // a warp's lanes side by side: shorter rows are walked flat
    static constexpr int least_rows = 8;    // fewer do not pay for the shared offsets
    static constexpr int most_rows = threads / least_inner * each;  // of a tile: their offsets in shared memory
    static constexpr int blocks_each = 4;  // on a multiprocessor, each thread with 64 registers
};

// Tasks walk with numbers of 32 bits: elements and offsets below this. Longer ones go the plain way (cuda.cu).
constexpr int64_t kShort = int64_t{1} << 31;

inline int64_t walk_blocks(int64_t tiles) {
    const int64_t most = static_cast<int64_t>(multiprocessors()) * WalkConfig::blocks_each;
    return tiles < most ? tiles : most;
}

// S: tensors whose offsets depend on the index (gather: src; scatter: total, count, x).
template <int S>
struct WalkRow {
    FastDivisor size;
    int32_t stride[S];
    const int64_t* index;
    int64_t limit;
};

// Sizes and numbers of elements are in units of the element, strides in floats.
template <int S, int Axes>
struct Walk {
    int64_t first_tile;
    uint32_t rows, inner;
    FastDivisor block, by_inner, column_tiles;
    bool wide, tall;  // elements of four floats; which walk
    int log_width;    // tall: threads side by side in a row
    int row_axes;
    int32_t item_stride[S];
    const int64_t* item_index;
    int64_t item_limit;
    WalkRow<S> row[Axes];
};

// ---- host: a task as a walk -----------------------------------------------------------------------------------------

inline void strides_of(const GatherAxis& axis, int64_t (&stride)[1]) { stride[0] = axis.stride; }
inline void strides_of(const ScatterAxis& axis, int64_t (&stride)[3]) {
    stride[0] = axis.total_stride;
    stride[1] = axis.count_stride;
    stride[2] = axis.x_stride;
}
template <int S, class Axis>
void strides_of(const Axis& axis, int32_t (&stride)[S]) {
    int64_t wide[S];
    strides_of(axis, wide);
    for (int s = 0; s < S; ++s) stride[s] = axis.size == 1 && !axis.index ? 0 : static_cast<int32_t>(wide[s]);
}

inline bool on16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Whether elements and offsets stay below kShort.
template <int S, class Task>
bool walks(const Task& task, const AxisLimits& limits) {
    int64_t elements = 1, reach[S] = {};
    for (int a = 0; a < task.axes; ++a) {
        const auto& axis = task.axis[a];
        elements *= axis.size;
        int64_t stride[S];
        strides_of(axis, stride);
        const int64_t last = (axis.index ? limits.of[a] : axis.size) - 1;
        for (int s = 0; s < S; ++s) reach[s] += (s == 2 ? axis.size - 1 : last) * stride[s];
    }
    bool fits = elements < kShort;
    for (int64_t each : reach) fits = fits && each < kShort;
    return fits;
}

template <class Task>
int64_t elements_of(const Task& task) {
    int64_t elements = 1;
    for (int a = 0; a < task.axes; ++a) elements *= task.axis[a].size;
    return elements;
}

template <class Task>
int row_axes_of(const Task& task) {
    return task.axes - 2;
}

// The width that wastes fewest threads at a row's end; the larger of two that waste as many.
inline int log_width_for(int64_t inner) {
    int best = 5;
    for (int width = 6; width <= 8; ++width)
        if ((ceil_div(inner, int64_t{1} << width) << width) <= (ceil_div(inner, int64_t{1} << best) << best))
            best = width;
    return best;
}

// Fills in all but first_tile; returns the number of tiles. `aligned`: of all memory that elements are read from or
// written to.
template <int S, int Axes, class Task>
int64_t make_walk(const Task& task, const AxisLimits& limits, bool aligned, Walk<S, Axes>& walk) {
    const auto& block = task.axis[task.axes - 1];
    const auto& items = task.axis[task.axes - 2];
    strides_of(items, walk.item_stride);
    bool wide = aligned && block.size % 4 == 0;
    int64_t rows = 1;
    for (int s = 0; s < S; ++s) wide = wide && walk.item_stride[s] % 4 == 0;
    walk.row_axes = row_axes_of(task);
    for (int a = 0; a < walk.row_axes; ++a) {
        WalkRow<S>& row = walk.row[a];
        row.size = FastDivisor(static_cast<uint32_t>(task.axis[a].size));
        row.index = task.axis[a].index;
        row.limit = limits.of[a];
        strides_of(task.axis[a], row.stride);
        rows *= task.axis[a].size;
        for (int s = 0; s < S; ++s) wide = wide && row.stride[s] % 4 == 0;
    }
    const int64_t unit = wide ? 4 : 1;
    walk.wide = wide;
    walk.item_index = items.index;
    walk.item_limit = limits.of[task.axes - 2];
    walk.rows = static_cast<uint32_t>(rows);
    walk.inner = static_cast<uint32_t>(items.size * block.size / unit);
    walk.block = FastDivisor(static_cast<uint32_t>(block.size / unit));
    walk.by_inner = FastDivisor(walk.inner);
    walk.tall = walk.inner >= WalkConfig::least_inner && walk.rows >= WalkConfig::least_rows;
    if (!walk.tall) {
        walk.log_width = 0;
        walk.column_tiles = FastDivisor(1);
        return ceil_div(rows * walk.inner * unit, WalkConfig::tile);
    }
    walk.log_width = log_width_for(walk.inner);
    const int64_t columns = ceil_div(walk.inner, int64_t{1} << walk.log_width);
    walk.column_tiles = FastDivisor(static_cast<uint32_t>(columns));
    const int64_t rows_of_tile = (WalkConfig::threads >> walk.log_width) * (WalkConfig::each / unit);
    return columns * ceil_div(rows, rows_of_tile);
}

// ---- device ---------------------------------------------------------------------------------------------------------

constexpr int32_t kOutside = INT32_MIN;  // in place of a row's first offset: its index lies outside

// Adds the offsets of position i of an axis; false when its index lies outside.
template <int S, class Axis>
__device__ inline bool add_row(const Axis& axis, uint32_t i, int32_t (&offset)[S]) {
    int64_t at = i;
    if (axis.index) at = axis.index[i];
    const bool inside = !axis.index || (at >= 0 && at < axis.limit);
#pragma unroll
    for (int s = 0; s < S; ++s)  // x (2) is not indexed
        offset[s] += static_cast<int32_t>(s == 2 ? i : static_cast<uint32_t>(at)) * axis.stride[s];
    return inside;
}

// Offsets where a row begins.
template <int S, int Axes>
__device__ inline bool row_offset(const Walk<S, Axes>& walk, uint32_t row, int32_t (&offset)[S]) {
#pragma unroll
    for (int s = 0; s < S; ++s) offset[s] = 0;
    bool inside = true;
#pragma unroll
    for (int a = Axes - 1; a >= 0; --a) {
        if (a >= walk.row_axes) continue;
        const uint32_t rest = walk.row[a].size.quotient(row);
        inside &= add_row<S>(walk.row[a], row - rest * walk.row[a].size.divisor, offset);
        row = rest;
    }
    return inside;
}

// Offsets of place p within a row, whose elements are `unit` floats.
template <int S, int Axes>
__device__ inline bool inner_offset(const Walk<S, Axes>& walk, uint32_t p, int unit, int32_t (&offset)[S]) {
    const uint32_t item = walk.block.quotient(p);
    const auto within = static_cast<int32_t>(p - item * walk.block.divisor) * unit;
    int64_t at = item;
    if (walk.item_index) at = walk.item_index[item];
    const bool inside = !walk.item_index || (at >= 0 && at < walk.item_limit);
#pragma unroll
    for (int s = 0; s < S; ++s)
        offset[s] = static_cast<int32_t>(s == 2 ? item : static_cast<uint32_t>(at)) * walk.item_stride[s] + within;
    return inside;
}

// Some elements that a thread moves together, so that their loads are all in flight.
template <int S, int N>
struct Elements {
    static constexpr int count = N;
    int32_t offset[N][S];
    uint32_t number[N];  // in the order of the task's elements
    bool inside[N];      // whether offsets may be followed
    bool exists[N];
};

// Calls move(Elements) for all elements of a tile: `Tall` or `Flat` at a time. Contains barriers.
template <int S, int Unit, int Tall, int Flat, int Axes, class Move>
__device__ inline void walk_tile(const Walk<S, Axes>& walk, uint32_t tile, Move move) {
    constexpr int each = WalkConfig::each / Unit;
    static_assert(each % Tall == 0 && each % Flat == 0, "a thread's elements are taken in whole groups");
    __shared__ int32_t first[WalkConfig::most_rows][S];
    const int t = static_cast<int>(threadIdx.x);
    if (!walk.tall) {
        const uint32_t all = walk.rows * walk.inner;
#pragma unroll 1
        for (int k = 0; k < each; k += Flat) {
            Elements<S, Flat> elements;
#pragma unroll
            for (int b = 0; b < Flat; ++b) {
                const uint32_t e = tile * (WalkConfig::threads * each) + (k + b) * WalkConfig::threads + t;
                elements.exists[b] = e < all;
                elements.inside[b] = false;
                elements.number[b] = e;
                if (!elements.exists[b]) continue;
                const uint32_t row = walk.by_inner.quotient(e);
                int32_t start[S];
                elements.inside[b] = row_offset(walk, row, start);
                elements.inside[b] &= inner_offset(walk, e - row * walk.inner, Unit, elements.offset[b]);
#pragma unroll
                for (int s = 0; s < S; ++s) elements.offset[b][s] += start[s];
            }
            move(elements);
        }
        return;
    }
    const uint32_t row_tile = walk.column_tiles.quotient(tile),
                   column_tile = tile - row_tile * walk.column_tiles.divisor;
    const int height = WalkConfig::threads >> walk.log_width, rows_of_tile = height * each;
    const uint32_t row0 = row_tile * rows_of_tile;
    __syncthreads();  // the tile before may still be reading
    for (int r = t; r < rows_of_tile; r += WalkConfig::threads) {
        if (row0 + r >= walk.rows) break;
        int32_t start[S];
        const bool found = row_offset(walk, row0 + r, start);
#pragma unroll
        for (int s = 0; s < S; ++s) first[r][s] = start[s];
        if (!found) first[r][0] = kOutside;
    }
    __syncthreads();
    const uint32_t p = (column_tile << walk.log_width) + (t & ((1 << walk.log_width) - 1));
    if (p >= walk.inner) return;
    int32_t place[S];
    const bool place_inside = inner_offset(walk, p, Unit, place);
#pragma unroll 1
    for (int k = 0; k < each; k += Tall) {
        Elements<S, Tall> elements;
#pragma unroll
        for (int b = 0; b < Tall; ++b) {
            const int r = (t >> walk.log_width) + (k + b) * height;
            elements.exists[b] = row0 + r < walk.rows;
            elements.inside[b] = false;
            elements.number[b] = (row0 + r) * walk.inner + p;
            if (!elements.exists[b]) continue;
            elements.inside[b] = place_inside && first[r][0] != kOutside;
#pragma unroll
            for (int s = 0; s < S; ++s) elements.offset[b][s] = first[r][s] + place[s];
        }
        move(elements);
    }
}

}  // namespace
}  // namespace edgeprune
