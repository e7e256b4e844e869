// unpack, accumulate and mask_to_indices: packed values, or positions, met again by the elements they belong to. A
// thread takes four neighbouring elements at a time, so that what is dense is read and written 16 bytes at once; a
// tile's words and their ranks lie in shared memory.
#include "kernels/packing/cuda_coding.cuh"

namespace edgeprune {
namespace {

constexpr int kGroups = TileConfig::each / 4;  // of four elements, for a thread

struct TileWords {
    uint32_t word[TileConfig::words];
    int32_t rank[TileConfig::words];  // of a word's first element, within the tile
    int64_t before;                   // kept in the tensor before the tile
};

// Fills `words`; contains barriers.
__device__ inline void read_tile(const TileSpace& space, const PackingRow& row, const Tile& tile, uint32_t* status,
                                 TileWords& words) {
    __shared__ int32_t kept_of_warp[TileConfig::words / 32];
    const int t = static_cast<int>(threadIdx.x), lane = t & 31, warp = t / 32;
    int sum = 0, own = 0;
    if (t < TileConfig::words) {
        uint32_t spare = 0;
        const uint32_t word = mask_word(row, tile.first + t * 32, spare);
        words.word[t] = word;
        if (spare) report(status, kStatusSpare, tile.row);
        sum = own = __popc(word);
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(kAll, sum, step);
            if (lane >= step) sum += other;
        }
        if (lane == 31) kept_of_warp[warp] = sum;
    }
    __syncthreads();
    int before = 0, all = 0;
    for (int w = 0; w < TileConfig::words / 32; ++w) {
        if (w == warp) before = all;
        all += kept_of_warp[w];
    }
    if (t < TileConfig::words) words.rank[t] = before + sum - own;
    if (warp == TileConfig::warps - 1) {  // one that has no words to add up
        const int64_t found = row.mask ? kept_before(space.state, tile.number, row.first_tile, all) : tile.first;
        if (lane == 0) {
            words.before = found;
            if (tile.first + kCudaTile >= row.n && found + all != row.kept) report(status, kStatusKept, tile.row);
        }
    }
    __syncthreads();
}
static_assert(TileConfig::words / 32 < TileConfig::warps, "the last warp has no words of its own");

// Which of four elements are kept, and the rank of the first kept one.
struct Four {
    uint32_t bits;
    int64_t rank;
};

__device__ inline Four four_at(const TileWords& words, int group, int64_t kept) {
    const int element = group * 4 * TileConfig::threads + static_cast<int>(threadIdx.x) * 4;
    const int w = element / 32, bit = element % 32;
    const uint32_t word = words.word[w];
    Four four;
    four.bits = word >> bit & 15u;
    four.rank = words.before + words.rank[w] + __popc(word & ((1u << bit) - 1u));
    // A mask that keeps more than there are values was reported; nothing beyond them is touched.
    const int64_t left = kept - four.rank;
    while (four.bits && __popc(four.bits) > left) four.bits &= ~(1u << (31 - __clz(static_cast<int>(four.bits))));
    return four;
}

template <Coding coding>
__device__ inline float4 decode4(const PackingRow& row, const Four& four, bool whole) {
    float v[4];
    int64_t rank = four.rank;
    if (coding == Coding::f32 && four.bits == 15u && aligned16(row.values + 4 * rank))
        return constant(reinterpret_cast<const float4*>(row.values + 4 * rank));
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = four.bits >> i & 1u ? decode<coding>(row, rank++, whole) : 0.0f;
    return make_float4(v[0], v[1], v[2], v[3]);
}

// ---- unpack ---------------------------------------------------------------------------------------------------------

template <Coding coding>
__global__ void __launch_bounds__(TileConfig::threads) unpack_kernel(TileSpace space, int64_t tiles, uint32_t* status) {
    __shared__ TileWords words;
    Tiles queue(space, tiles);
    Tile tile;
    while (queue.next(tile)) {
        const PackingRow row = space.rows[tile.row];
        read_tile(space, row, tile, status, words);
        const bool whole = whole_items<coding>(row), wide = aligned16(row.out);
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
            const int64_t i = tile.first + g * 4 * TileConfig::threads + threadIdx.x * 4;
            if (i >= row.n) continue;
            const float4 v = decode4<coding>(row, four_at(words, g, row.kept), whole);
            float* const to = row.out + i;
            if (wide && i + 4 <= row.n) {
                __stcs(reinterpret_cast<float4*>(to), v);
            } else {
                write(to, v.x);
                if (i + 1 < row.n) write(to + 1, v.y);
                if (i + 2 < row.n) write(to + 2, v.z);
                if (i + 3 < row.n) write(to + 3, v.w);
            }
        }
    }
}

// ---- accumulate -----------------------------------------------------------------------------------------------------

// A product is rounded before it is added, as on the CPU; what is not kept keeps its bits.
__device__ inline void add_to(float& total, float& weight_sum, bool kept, float weight, float value) {
    if (!kept) return;
    total = __fadd_rn(total, __fmul_rn(weight, value));
    weight_sum = __fadd_rn(weight_sum, weight);
}

template <Coding coding>
__global__ void __launch_bounds__(TileConfig::threads, TileConfig::blocks_each)
    accumulate_kernel(TileSpace space, int64_t tiles, float weight, uint32_t* status) {
    __shared__ TileWords words;
    Tiles queue(space, tiles);
    Tile tile;
    while (queue.next(tile)) {
        const PackingRow row = space.rows[tile.row];
        read_tile(space, row, tile, status, words);
        const bool whole = whole_items<coding>(row), wide = aligned16(row.out) && aligned16(row.weight_sum);
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
            const int64_t i = tile.first + g * 4 * TileConfig::threads + threadIdx.x * 4;
            const Four four = four_at(words, g, row.kept);
            if (!four.bits) continue;
            const float4 v = decode4<coding>(row, four, whole);
            float* const total = row.out + i;
            float* const held = row.weight_sum + i;
            if (wide && i + 4 <= row.n) {
                float4 sum = read(reinterpret_cast<const float4*>(total));
                float4 weights = read(reinterpret_cast<const float4*>(held));
                add_to(sum.x, weights.x, four.bits & 1u, weight, v.x);
                add_to(sum.y, weights.y, four.bits & 2u, weight, v.y);
                add_to(sum.z, weights.z, four.bits & 4u, weight, v.z);
                add_to(sum.w, weights.w, four.bits & 8u, weight, v.w);
                write(reinterpret_cast<float4*>(total), sum);
                write(reinterpret_cast<float4*>(held), weights);
            } else {
                const float value[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (four.bits >> j & 1u) {
                        float sum = read(total + j), weights = read(held + j);
                        add_to(sum, weights, true, weight, value[j]);
                        write(total + j, sum);
                        write(held + j, weights);
                    }
            }
        }
    }
}

// ---- masks ----------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(TileConfig::threads)
    indices_kernel(TileSpace space, int64_t tiles, int64_t* indices, uint32_t* status) {
    __shared__ TileWords words;
    Tiles queue(space, tiles);
    Tile tile;
    while (queue.next(tile)) {
        const PackingRow row = space.rows[tile.row];
        read_tile(space, row, tile, status, words);
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
            const Four four = four_at(words, g, row.kept);
            const int64_t i = tile.first + g * 4 * TileConfig::threads + threadIdx.x * 4;
            int64_t rank = four.rank;
            for (int j = 0; j < 4; ++j)
                if (four.bits >> j & 1u) indices[rank++] = i + j;
        }
    }
}

// Integers are added, so the order does not matter.
__global__ void __launch_bounds__(TileConfig::threads)
    count_kernel(TileSpace space, int64_t tiles, unsigned long long* counts, uint32_t* status) {
    const int lane = static_cast<int>(threadIdx.x & 31);
    const int64_t step = static_cast<int64_t>(gridDim.x) * TileConfig::warps;
    for (int64_t tile = static_cast<int64_t>(blockIdx.x) * TileConfig::warps + threadIdx.x / 32; tile < tiles;
         tile += step) {
        const int r = row_of_tile(space, tile);
        const PackingRow& row = space.rows[r];
        const int64_t first = (tile - row.first_tile) * kCudaTile;
        uint32_t spare = 0;
        int kept = 0;
#pragma unroll
        for (int i = 0; i < TileConfig::words / 32; ++i)
            kept += __popc(mask_word(row, first + (i * 32 + lane) * 32, spare));
        for (int half = 16; half; half /= 2) kept += __shfl_xor_sync(kAll, kept, half);
        if (spare) report(status, kStatusSpare, r);
        if (lane == 0 && kept) atomicAdd(counts + r, static_cast<unsigned long long>(kept));
    }
}

__global__ void zero_kernel(unsigned long long* words, int64_t count) {
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += static_cast<int64_t>(gridDim.x) * blockDim.x)
        words[i] = 0;
}

__global__ void __launch_bounds__(TileConfig::threads)
    from_indices_kernel(const int64_t* indices, int64_t count, int64_t n, uint32_t* mask, uint32_t* status) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        const int64_t at = indices[i];
        if (at < 0 || at >= n) {
            report(status, kStatusIndex, 0);
        } else {
            atomicOr(mask + at / 32, 1u << (at % 32));
        }
    }
}

template <class Kernel, class... Arguments>
int over_tiles(const PackingCuda& call, Kernel kernel, Arguments... arguments) {
    const TileSpace space = tile_space(call);
    const int code = prepare(call, space, call.tiles + 1);
    if (code) return code;
    return launch(kernel, tile_blocks(call.tiles), TileConfig::threads, call.stream, space, call.tiles, arguments...,
                  call.status);
}

}  // namespace

int64_t packing_workspace_rows(int64_t rows, int64_t tiles) { return tile_space_bytes(rows, tiles); }

int packing_unpack_cuda(const PackingCuda& call, Coding coding) {
    switch (coding) {
        case Coding::f32:
            return over_tiles(call, &unpack_kernel<Coding::f32>);
        case Coding::bf16:
            return over_tiles(call, &unpack_kernel<Coding::bf16>);
        case Coding::f16:
            return over_tiles(call, &unpack_kernel<Coding::f16>);
        default:
            return over_tiles(call, &unpack_kernel<Coding::i8>);
    }
}

int packing_accumulate_cuda(const PackingCuda& call, Coding coding, float weight) {
    switch (coding) {
        case Coding::f32:
            return over_tiles(call, &accumulate_kernel<Coding::f32>, weight);
        case Coding::bf16:
            return over_tiles(call, &accumulate_kernel<Coding::bf16>, weight);
        case Coding::f16:
            return over_tiles(call, &accumulate_kernel<Coding::f16>, weight);
        default:
            return over_tiles(call, &accumulate_kernel<Coding::i8>, weight);
    }
}

int packing_indices_cuda(const PackingCuda& call, int64_t* indices) {
    return over_tiles(call, &indices_kernel, indices);
}

int packing_count_cuda(const PackingCuda& call, int64_t* counts) {
    auto* const words = reinterpret_cast<unsigned long long*>(counts);
    const int code = launch(&zero_kernel, ceil_div(call.count, TileConfig::threads), TileConfig::threads, call.stream,
                            words, static_cast<int64_t>(call.count));
    if (code) return code;
    return over_tiles(call, &count_kernel, words);
}

int packing_from_indices_cuda(const PackingCuda& call, const int64_t* indices, int64_t count, uint32_t* mask) {
    const int64_t blocks = ceil_div(count, TileConfig::threads);
    const int64_t most = static_cast<int64_t>(multiprocessors()) * TileConfig::blocks_each;
    return launch(&from_indices_kernel, blocks < most ? blocks : most, TileConfig::threads, call.stream, indices, count,
                  call.rows[0].n, mask, call.status);
}

}  // namespace edgeprune
