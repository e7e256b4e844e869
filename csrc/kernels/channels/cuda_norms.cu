// Norms of channels on a GPU, many tensors in two launches. The first adds parts of channels in double, in an order
// that depends on the shape alone; the second adds the parts and takes the root.
//
//   runs      a channel is one run, or a few long ones: a team of threads (a warp, or a block for long channels, which
//             are cut into parts) walks it, then adds up pairwise
//   columns   channels lie side by side in short blocks over many rows: a thread keeps to its column and walks down the
//             rows of its part, so that what neighbours read is one line of memory; each column's sum is a part
#include <cuda_runtime.h>

#include <vector>

#include "base/cuda_index.h"
#include "base/cuda_launch.h"
#include "kernels/channels/channels_cuda.h"

namespace edgeprune {
namespace {

struct NormsConfig {
    static constexpr int threads = 256;
    static constexpr int warps = threads / 32;
    static constexpr int64_t short_run = 2048;  // elements of a channel that a warp adds alone
    static constexpr int64_t part = 16384;      // elements of a part of a longer one: 64 for each thread of a block
    static constexpr int64_t rows = 64;         // of a column, for a thread: partial sums are a thirtieth of the bytes
    static constexpr int64_t short_block = 32;  // blocks of fewer elements, over several rows, are walked as columns
    static constexpr int blocks_each = 8;       // on a multiprocessor
    static constexpr int in_flight = 8;         // loads of a thread before their values are needed
};

struct NormsPiece {
    const float* x;
    float* norm;
    int64_t before, channels, after;
    FastDivisor by_after, by_units;  // runs: elements of a block; units of a row of units (see below)
    int64_t first_unit, first_channel;
    int64_t parts, part_at;  // of each channel; where they begin in the workspace
    int p;
    int log_width;  // columns: threads side by side
    bool columns, block_team;
};

struct NormsBatch {
    static constexpr int room = (kLaunchBytes - 64) / static_cast<int>(sizeof(NormsPiece));
    int count;
    int64_t units, channels;
    NormsPiece piece[room];
};

// ---- host: shapes to units ------------------------------------------------------------------------------------------

// A unit is what a block of threads does at a time: runs of warps: 8 channels; runs of a block: a part of a channel;
// columns: a part of as many columns as threads lie side by side. Returns how many there are.
int64_t plan(const NormsTask& task, NormsPiece& piece) {
    piece.x = task.x;
    piece.norm = task.norm;
    piece.before = task.before;
    piece.channels = task.channels;
    piece.after = task.after;
    piece.p = task.p;
    piece.first_unit = piece.first_channel = piece.part_at = 0;
    piece.columns = task.after < NormsConfig::short_block && task.before > 1 && task.channels * task.after > 0;
    piece.block_team = false;
    piece.log_width = 0;
    piece.by_after = FastDivisor(static_cast<uint32_t>(task.after < INT32_MAX && task.after ? task.after : 1));
    piece.parts = 1;
    if (piece.columns) {
        const int64_t columns = task.channels * task.after;
        while (piece.log_width < 8 && (int64_t{1} << piece.log_width) < columns) ++piece.log_width;
        const int64_t height = NormsConfig::threads >> piece.log_width;
        const int64_t row_units = ceil_div(task.before, NormsConfig::rows * height);
        const int64_t column_units = ceil_div(columns, int64_t{1} << piece.log_width);
        piece.parts = row_units * height;
        piece.by_units = FastDivisor(static_cast<uint32_t>(column_units));
        return row_units * column_units;
    }
    const int64_t elements = task.before * task.after;
    piece.block_team = elements > NormsConfig::short_run;
    if (!piece.block_team) return ceil_div(task.channels, NormsConfig::warps);
    piece.parts = ceil_div(elements, NormsConfig::part);
    piece.by_units = FastDivisor(static_cast<uint32_t>(piece.parts));
    return piece.parts * task.channels;
}

// Sums that go through the workspace; a run in one part writes its norm at once.
int64_t part_sums(const NormsPiece& piece) {
    if (piece.columns) return piece.parts * piece.channels * piece.after;
    return piece.parts > 1 ? piece.parts * piece.channels : 0;
}

// ---- device ---------------------------------------------------------------------------------------------------------

__device__ inline double term(float x, int p) {
    const auto wide = static_cast<double>(x);
    return p == 1 ? fabs(wide) : wide * wide;
}

__device__ inline float norm_of(double sum, int p) { return static_cast<float>(p == 1 ? sum : sqrt(sum)); }

// The same sum in all lanes; the order is fixed.
__device__ inline double sum_of_warp(double sum) {
    for (int half = 16; half; half /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, half);
    return sum;
}

// Elements [from, to) of a channel, by `team` threads of which this is number `t`.
__device__ inline double sum_of_run(const NormsPiece& piece, int64_t channel, int64_t from, int64_t to, int t,
                                    int team) {
    const float* const x = piece.x + channel * piece.after;
    const bool whole = piece.before == 1;
    const bool divides = piece.before * piece.after < INT32_MAX;
    double sum[2] = {0.0, 0.0};
    if (whole && reinterpret_cast<uintptr_t>(x + from) % 16 == 0) {
        const auto* const x4 = reinterpret_cast<const float4*>(x + from);
        const int64_t count = (to - from) / 4;
        for (int64_t i = t; i < count; i += static_cast<int64_t>(team) * 4) {
            float4 v[4];
#pragma unroll
            for (int b = 0; b < 4; ++b) {
                v[b] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (i + b * team < count) v[b] = __ldcs(x4 + i + b * team);
            }
#pragma unroll
            for (int b = 0; b < 4; ++b) {
                sum[0] += term(v[b].x, piece.p) + term(v[b].y, piece.p);
                sum[1] += term(v[b].z, piece.p) + term(v[b].w, piece.p);
            }
        }
        for (int64_t i = from + count * 4 + t; i < to; i += team) sum[0] += term(x[i], piece.p);
        return sum[0] + sum[1];
    }
    const int64_t row = piece.channels * piece.after;
    for (int64_t i = from + t; i < to; i += static_cast<int64_t>(team) * NormsConfig::in_flight) {
        float v[NormsConfig::in_flight];
#pragma unroll
        for (int b = 0; b < NormsConfig::in_flight; ++b) {
            const int64_t e = i + b * team;
            v[b] = 0.0f;
            if (e >= to) continue;
            if (whole) {
                v[b] = x[e];
            } else if (divides) {
                const uint32_t block = piece.by_after.quotient(static_cast<uint32_t>(e));
                v[b] = x[block * row + (static_cast<uint32_t>(e) - block * piece.by_after.divisor)];
            } else {
                v[b] = x[e / piece.after * row + e % piece.after];
            }
        }
#pragma unroll
        for (int b = 0; b < NormsConfig::in_flight; ++b) sum[b % 2] += term(v[b], piece.p);
    }
    return sum[0] + sum[1];
}

__device__ inline void columns_unit(const NormsPiece& piece, uint32_t unit, double* parts) {
    const uint32_t row_unit = piece.by_units.quotient(unit), column_unit = unit - row_unit * piece.by_units.divisor;
    const int t = static_cast<int>(threadIdx.x), width = 1 << piece.log_width, height = NormsConfig::threads / width;
    const int64_t columns = piece.channels * piece.after;
    const int64_t column = static_cast<int64_t>(column_unit) * width + (t & (width - 1));
    if (column >= columns) return;
    // Rows of neighbouring threads are neighbours, so that short rows make long lines.
    const int64_t part = static_cast<int64_t>(row_unit) * height + (t >> piece.log_width);
    const int64_t row0 = static_cast<int64_t>(row_unit) * height * NormsConfig::rows + (t >> piece.log_width);
    double sum[2] = {0.0, 0.0};
    for (int k = 0; k < NormsConfig::rows; k += NormsConfig::in_flight) {
        float v[NormsConfig::in_flight];
        if (row0 + static_cast<int64_t>(k) * height >= piece.before) break;
#pragma unroll
        for (int b = 0; b < NormsConfig::in_flight; ++b) {
            const int64_t row = row0 + static_cast<int64_t>(k + b) * height;
            v[b] = row < piece.before ? piece.x[row * columns + column] : 0.0f;
        }
#pragma unroll
        for (int b = 0; b < NormsConfig::in_flight; ++b) sum[b % 2] += term(v[b], piece.p);
    }
    parts[piece.part_at + part * columns + column] = sum[0] + sum[1];
}

__global__ void __launch_bounds__(NormsConfig::threads)
    norms_parts_kernel(const __grid_constant__ NormsBatch batch, double* parts) {
    __shared__ double of_warp[NormsConfig::warps];
    const int t = static_cast<int>(threadIdx.x), lane = t & 31, warp = t / 32;
    for (int64_t unit = blockIdx.x; unit < batch.units; unit += gridDim.x) {
        const NormsPiece& piece =
            batch.piece[last_at_or_before(batch.count, unit, [&](int i) { return batch.piece[i].first_unit; })];
        const auto within = static_cast<uint32_t>(unit - piece.first_unit);
        if (piece.columns) {
            columns_unit(piece, within, parts);
            continue;
        }
        const int64_t elements = piece.before * piece.after;
        if (!piece.block_team) {
            const int64_t channel = static_cast<int64_t>(within) * NormsConfig::warps + warp;
            if (channel >= piece.channels) continue;
            const double sum = sum_of_warp(sum_of_run(piece, channel, 0, elements, lane, 32));
            if (lane == 0) piece.norm[channel] = norm_of(sum, piece.p);
            continue;
        }
        const uint32_t channel = piece.by_units.quotient(within), part = within - channel * piece.by_units.divisor;
        const int64_t from = part * NormsConfig::part;
        const int64_t to = from + NormsConfig::part < elements ? from + NormsConfig::part : elements;
        const double own = sum_of_warp(sum_of_run(piece, channel, from, to, t, NormsConfig::threads));
        __syncthreads();  // the unit before may still be read
        if (lane == 0) of_warp[warp] = own;
        __syncthreads();
        if (t == 0) {
            double sum = 0.0;
            for (double each : of_warp) sum += each;
            if (piece.parts == 1) {
                piece.norm[channel] = norm_of(sum, piece.p);
            } else {
                parts[piece.part_at + part * piece.channels + channel] = sum;
            }
        }
    }
}

// A warp a channel.
__global__ void __launch_bounds__(NormsConfig::threads)
    norms_total_kernel(const __grid_constant__ NormsBatch batch, const double* parts) {
    const int lane = static_cast<int>(threadIdx.x & 31);
    const int64_t step = static_cast<int64_t>(gridDim.x) * NormsConfig::warps;
    for (int64_t c = static_cast<int64_t>(blockIdx.x) * NormsConfig::warps + threadIdx.x / 32; c < batch.channels;
         c += step) {
        const NormsPiece& piece =
            batch.piece[last_at_or_before(batch.count, c, [&](int i) { return batch.piece[i].first_channel; })];
        if (!piece.columns && piece.parts == 1) continue;
        const int64_t channel = c - piece.first_channel, after = piece.columns ? piece.after : 1;
        const int64_t terms = piece.parts * after, row = piece.channels * after;
        double sum = 0.0;
        for (int64_t i = lane; i < terms; i += 32) {
            const int64_t part = i / after;
            sum += parts[piece.part_at + part * row + channel * after + (i - part * after)];
        }
        sum = sum_of_warp(sum);
        if (lane == 0) piece.norm[channel] = norm_of(sum, piece.p);
    }
}

int64_t norms_blocks(int64_t units) {
    const int64_t most = static_cast<int64_t>(multiprocessors()) * NormsConfig::blocks_each;
    return units < most ? units : most;
}

}  // namespace

int64_t channels_norms_workspace(const NormsTask* tasks, int count) {
    int64_t sums = 0;
    for (int i = 0; i < count; ++i) {
        NormsPiece piece;
        plan(tasks[i], piece);
        sums += part_sums(piece);
    }
    return sums * static_cast<int64_t>(sizeof(double));
}

int channels_norms_cuda(const NormsTask* tasks, int count, void* workspace, void* stream) {
    auto* const parts = static_cast<double*>(workspace);
    int64_t part_at = 0;
    for (int first = 0; first < count; first += NormsBatch::room) {
        NormsBatch batch;
        batch.count = 0;
        batch.units = batch.channels = 0;
        bool second = false;
        for (int i = first; i < count && i < first + NormsBatch::room; ++i) {
            if (!tasks[i].channels) continue;
            NormsPiece& piece = batch.piece[batch.count++];
            const int64_t units = plan(tasks[i], piece);
            piece.first_unit = batch.units;
            piece.first_channel = batch.channels;
            piece.part_at = part_at;
            part_at += part_sums(piece);
            second = second || part_sums(piece);
            batch.units += units;
            batch.channels += piece.channels;
        }
        int code = launch(&norms_parts_kernel, norms_blocks(batch.units), NormsConfig::threads, stream, batch, parts);
        if (code || !second) {
            if (code) return code;
            continue;
        }
        code = launch(&norms_total_kernel, norms_blocks(ceil_div(batch.channels, NormsConfig::warps)),
                      NormsConfig::threads, stream, batch, static_cast<const double*>(parts));
        if (code) return code;
    }
    return 0;
}

}  // namespace edgeprune
