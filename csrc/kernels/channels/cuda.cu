// gather, scatter-accumulate and finish on a GPU: one launch for as many tensors as its arguments have room for. How a
// tile's elements are found: cuda_walk.cuh. Tasks with 2^31 elements or offsets and more go one by one, with plain
// divisions.
#include <type_traits>
#include <vector>

#include "kernels/channels/cuda_walk.cuh"

namespace edgeprune {
namespace {

// ---- batches: the arguments of a launch -----------------------------------------------------------------------------

template <class Piece, int N>
struct Batch {
    int count;
    int64_t tiles;
    Piece piece[N];
};

template <class Piece, int N>
__device__ inline const Piece& piece_of(const Batch<Piece, N>& batch, int64_t tile) {
    return batch.piece[last_at_or_before(batch.count, tile, [&](int i) { return batch.piece[i].first_tile; })];
}

// ---- gather ---------------------------------------------------------------------------------------------------------

template <int Axes>
struct GatherPiece : Walk<1, Axes> {
    const float* src;
    float* dst;
};

template <class Element>
__device__ inline Element not_a_number();
template <>
__device__ inline float not_a_number<float>() {
    return __uint_as_float(0x7FC00000u);
}
template <>
__device__ inline float4 not_a_number<float4>() {
    const float nan = not_a_number<float>();
    return make_float4(nan, nan, nan, nan);
}

template <class Element, int Tall, int Flat, int Axes>
__device__ inline void gather_tile(const GatherPiece<Axes>& piece, uint32_t tile) {
    constexpr int unit = static_cast<int>(sizeof(Element) / sizeof(float));
    walk_tile<1, unit, Tall, Flat>(piece, tile, [&](const auto& elements) {
        constexpr int n = std::decay_t<decltype(elements)>::count;
        Element value[n];
#pragma unroll
        for (int b = 0; b < n; ++b) {
            value[b] = not_a_number<Element>();  // which shows; a stray read does not
            if (elements.inside[b]) value[b] = *reinterpret_cast<const Element*>(piece.src + elements.offset[b][0]);
        }
#pragma unroll
        for (int b = 0; b < n; ++b)
            if (elements.exists[b]) reinterpret_cast<Element*>(piece.dst)[elements.number[b]] = value[b];
    });
}

template <int Axes, int N>
__global__ void __launch_bounds__(WalkConfig::threads, WalkConfig::blocks_each)
    gather_kernel(const __grid_constant__ Batch<GatherPiece<Axes>, N> batch) {
    for (int64_t tile = blockIdx.x; tile < batch.tiles; tile += gridDim.x) {
        const GatherPiece<Axes>& piece = piece_of(batch, tile);
        const auto within = static_cast<uint32_t>(tile - piece.first_tile);
        if (piece.wide) {
            gather_tile<float4, 4, 2>(piece, within);
        } else {
            gather_tile<float, 8, 4>(piece, within);
        }
    }
}

__global__ void gather_long_kernel(const GatherTask task, const AxisLimits limits, int64_t elements) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; element < elements;
         element += step) {
        int64_t rest = element, from = 0;
        bool inside = true;
        for (int a = task.axes - 1; a >= 0; --a) {
            const GatherAxis& axis = task.axis[a];
            int64_t i = rest % axis.size;
            rest /= axis.size;
            if (axis.index) {
                i = axis.index[i];
                inside = inside && i >= 0 && i < limits.of[a];
            }
            from += i * axis.stride;
        }
        task.dst[element] = inside ? task.src[from] : not_a_number<float>();
    }
}

// ---- scatter --------------------------------------------------------------------------------------------------------

template <int Axes>
struct ScatterPiece : Walk<3, Axes> {
    float* total;
    float* count;
    const float* x;
};

// The product is rounded before it is added.
__device__ inline float added(float total, float weight, float x) { return __fadd_rn(total, __fmul_rn(weight, x)); }
__device__ inline float4 added(float4 total, float weight, float4 x) {
    return make_float4(added(total.x, weight, x.x), added(total.y, weight, x.y), added(total.z, weight, x.z),
                       added(total.w, weight, x.w));
}
__device__ inline float raised(float count, float weight) { return __fadd_rn(count, weight); }
__device__ inline float4 raised(float4 count, float weight) {
    return make_float4(raised(count.x, weight), raised(count.y, weight), raised(count.z, weight),
                       raised(count.w, weight));
}

// No two elements meet in one place (an index has no duplicates), so there is nothing to do atomically.
template <class Element, int Tall, int Flat, int Axes>
__device__ inline void scatter_tile(const ScatterPiece<Axes>& piece, float weight, uint32_t tile) {
    constexpr int unit = static_cast<int>(sizeof(Element) / sizeof(float));
    walk_tile<3, unit, Tall, Flat>(piece, tile, [&](const auto& elements) {
        constexpr int n = std::decay_t<decltype(elements)>::count;
        Element total[n] = {}, count[n] = {}, x[n] = {};
#pragma unroll
        for (int b = 0; b < n; ++b) {
            if (!elements.inside[b]) continue;
            total[b] = *reinterpret_cast<const Element*>(piece.total + elements.offset[b][0]);
            count[b] = *reinterpret_cast<const Element*>(piece.count + elements.offset[b][1]);
            x[b] = *reinterpret_cast<const Element*>(piece.x + elements.offset[b][2]);
        }
#pragma unroll
        for (int b = 0; b < n; ++b) {
            if (!elements.inside[b]) continue;
            *reinterpret_cast<Element*>(piece.total + elements.offset[b][0]) = added(total[b], weight, x[b]);
            *reinterpret_cast<Element*>(piece.count + elements.offset[b][1]) = raised(count[b], weight);
        }
    });
}

template <int Axes, int N>
__global__ void __launch_bounds__(WalkConfig::threads,
                                  WalkConfig::blocks_each - 1)  // three tensors' loads: more registers
    scatter_kernel(const __grid_constant__ Batch<ScatterPiece<Axes>, N> batch, float weight) {
    for (int64_t tile = blockIdx.x; tile < batch.tiles; tile += gridDim.x) {
        const ScatterPiece<Axes>& piece = piece_of(batch, tile);
        const auto within = static_cast<uint32_t>(tile - piece.first_tile);
        if (piece.wide) {
            scatter_tile<float4, 2, 1>(piece, weight, within);
        } else {
            scatter_tile<float, 4, 2>(piece, weight, within);
        }
    }
}

__global__ void scatter_long_kernel(const ScatterTask task, const AxisLimits limits, int64_t elements) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; element < elements;
         element += step) {
        int64_t rest = element, to_total = 0, to_count = 0, from = 0;
        bool inside = true;
        for (int a = task.axes - 1; a >= 0; --a) {
            const ScatterAxis& axis = task.axis[a];
            const int64_t i = rest % axis.size;
            rest /= axis.size;
            int64_t where = i;
            if (axis.index) {
                where = axis.index[i];
                inside = inside && where >= 0 && where < limits.of[a];
            }
            to_total += where * axis.total_stride;
            to_count += where * axis.count_stride;
            from += i * axis.x_stride;
        }
        if (inside) {
            task.total[to_total] = added(task.total[to_total], task.weight, task.x[from]);
            task.count[to_count] = raised(task.count[to_count], task.weight);
        }
    }
}

// ---- finish ---------------------------------------------------------------------------------------------------------

struct FinishPiece {
    int64_t first_tile, size;
    FinishTask task;
    bool wide;  // all addresses are multiples of 16
};

__device__ inline float finished(float base, float total, float count) {
    return count > 0.0f ? __fdiv_rn(total, count) : base;
}

template <int N>
__global__ void __launch_bounds__(WalkConfig::threads)
    finish_kernel(const __grid_constant__ Batch<FinishPiece, N> batch) {
    constexpr int groups = WalkConfig::each / 4;
    for (int64_t tile = blockIdx.x; tile < batch.tiles; tile += gridDim.x) {
        const FinishPiece& piece = piece_of(batch, tile);
        const FinishTask& task = piece.task;
        const int64_t first = (tile - piece.first_tile) * WalkConfig::tile + threadIdx.x * 4;
        const bool whole = piece.wide && first - threadIdx.x * 4 + WalkConfig::tile <= piece.size;
        if (!whole) {
            for (int g = 0; g < groups; ++g)
                for (int j = 0; j < 4; ++j) {
                    const int64_t i = first + g * 4 * WalkConfig::threads + j;
                    if (i < piece.size) task.out[i] = finished(task.base[i], task.total[i], task.count[i]);
                }
            continue;
        }
#pragma unroll
        for (int g = 0; g < groups; g += 2) {
            float4 base[2], total[2], count[2];
#pragma unroll
            for (int b = 0; b < 2; ++b) {
                const int64_t i = first + (g + b) * 4 * WalkConfig::threads;
                count[b] = *reinterpret_cast<const float4*>(task.count + i);
                total[b] = *reinterpret_cast<const float4*>(task.total + i);
                base[b] = *reinterpret_cast<const float4*>(task.base + i);
            }
#pragma unroll
            for (int b = 0; b < 2; ++b) {
                const int64_t i = first + (g + b) * 4 * WalkConfig::threads;
                __stcs(reinterpret_cast<float4*>(task.out + i),  // a plain store would be taken apart
                       make_float4(
                           finished(base[b].x, total[b].x, count[b].x), finished(base[b].y, total[b].y, count[b].y),
                           finished(base[b].z, total[b].z, count[b].z), finished(base[b].w, total[b].w, count[b].w)));
            }
        }
    }
}

// ---- launches -------------------------------------------------------------------------------------------------------

template <class Piece>
constexpr int kRoom = (kLaunchBytes - 64) / static_cast<int>(sizeof(Piece));
constexpr int kFew = 4;

// Launches pieces in batches of N; `start` launches one.
template <int N, class Piece, class Start>
int launch_by(const std::vector<Piece>& pieces, const std::vector<int64_t>& tiles, Start start) {
    for (size_t first = 0; first < pieces.size(); first += N) {
        Batch<Piece, N> batch;
        batch.count = 0;
        batch.tiles = 0;
        for (size_t i = first; i < pieces.size() && batch.count < N; ++i) {
            batch.piece[batch.count] = pieces[i];
            batch.piece[batch.count++].first_tile = batch.tiles;
            batch.tiles += tiles[i];
        }
        const int code = start(batch);
        if (code) return code;
    }
    return 0;
}

template <template <int> class Piece, int Axes, class Task, class Fill>
void add_piece(const Task& task, const AxisLimits& limits, bool aligned, std::vector<Piece<Axes>>& pieces,
               std::vector<int64_t>& tiles, Fill fill) {
    Piece<Axes> piece;
    tiles.push_back(make_walk(task, limits, aligned, piece));
    fill(piece);
    pieces.push_back(piece);
}

template <int Axes>
int gather_by(const GatherTask* tasks, const AxisLimits* limits, int count, void* stream) {
    std::vector<GatherPiece<Axes>> pieces;
    std::vector<int64_t> tiles;
    for (int i = 0; i < count; ++i) {
        const GatherTask& task = tasks[i];
        const int64_t elements = elements_of(task);
        if (!elements) continue;
        if (!walks<1>(task, limits[i])) {
            const int code = launch(&gather_long_kernel, walk_blocks(elements), WalkConfig::threads, stream, task,
                                    limits[i], elements);
            if (code) return code;
            continue;
        }
        add_piece(task, limits[i], on16(task.src) && on16(task.dst), pieces, tiles, [&](GatherPiece<Axes>& piece) {
            piece.src = task.src;
            piece.dst = task.dst;
        });
    }
    const auto start = [&](const auto& batch) {
        constexpr int n = sizeof(batch.piece) / sizeof(batch.piece[0]);
        return launch(&gather_kernel<Axes, n>, walk_blocks(batch.tiles), WalkConfig::threads, stream, batch);
    };
    return pieces.size() <= kFew ? launch_by<kFew>(pieces, tiles, start)
                                 : launch_by<kRoom<GatherPiece<Axes>>>(pieces, tiles, start);
}

template <int Axes>
int scatter_by(const ScatterTask* tasks, const AxisLimits* limits, int count, void* stream) {
    std::vector<ScatterPiece<Axes>> pieces;
    std::vector<int64_t> tiles;
    for (int i = 0; i < count; ++i) {
        const ScatterTask& task = tasks[i];
        const int64_t elements = elements_of(task);
        if (!elements) continue;
        if (!walks<3>(task, limits[i])) {
            const int code = launch(&scatter_long_kernel, walk_blocks(elements), WalkConfig::threads, stream, task,
                                    limits[i], elements);
            if (code) return code;
            continue;
        }
        const bool aligned = on16(task.total) && on16(task.count) && on16(task.x);
        add_piece(task, limits[i], aligned, pieces, tiles, [&](ScatterPiece<Axes>& piece) {
            piece.total = task.total;
            piece.count = task.count;
            piece.x = task.x;
        });
    }
    const auto start = [&](const auto& batch) {
        constexpr int n = sizeof(batch.piece) / sizeof(batch.piece[0]);
        return launch(&scatter_kernel<Axes, n>, walk_blocks(batch.tiles), WalkConfig::threads, stream, batch,
                      tasks[0].weight);
    };
    return pieces.size() <= kFew ? launch_by<kFew>(pieces, tiles, start)
                                 : launch_by<kRoom<ScatterPiece<Axes>>>(pieces, tiles, start);
}

// Networks' tensors have at most two row axes; whatever has more takes a descriptor with room for all.
template <class Task>
bool few_axes(const Task* tasks, int count) {
    for (int i = 0; i < count; ++i)
        if (row_axes_of(tasks[i]) > 2) return false;
    return true;
}

}  // namespace

int channels_gather_cuda(const GatherTask* tasks, const AxisLimits* limits, int count, void* stream) {
    return few_axes(tasks, count) ? gather_by<2>(tasks, limits, count, stream)
                                  : gather_by<kChannelsAxes - 2>(tasks, limits, count, stream);
}

int channels_scatter_cuda(const ScatterTask* tasks, const AxisLimits* limits, int count, void* stream) {
    return few_axes(tasks, count) ? scatter_by<2>(tasks, limits, count, stream)
                                  : scatter_by<kChannelsAxes - 2>(tasks, limits, count, stream);
}

int channels_finish_cuda(const FinishTask* tasks, const int64_t* sizes, int count, void* stream) {
    std::vector<FinishPiece> pieces;
    std::vector<int64_t> tiles;
    for (int i = 0; i < count; ++i) {
        if (!sizes[i]) continue;
        const FinishTask& task = tasks[i];
        pieces.push_back(
            {0, sizes[i], task, on16(task.base) && on16(task.total) && on16(task.count) && on16(task.out)});
        tiles.push_back(ceil_div(sizes[i], WalkConfig::tile));
    }
    const auto start = [&](const auto& batch) {
        constexpr int n = sizeof(batch.piece) / sizeof(batch.piece[0]);
        return launch(&finish_kernel<n>, walk_blocks(batch.tiles), WalkConfig::threads, stream, batch);
    };
    return pieces.size() <= kFew ? launch_by<kFew>(pieces, tiles, start)
                                 : launch_by<kRoom<FinishPiece>>(pieces, tiles, start);
}

}  // namespace edgeprune
