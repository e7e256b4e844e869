// pack: kept values in order to bytes, with or without error feedback. A warp takes 512 elements, a lane one of each
// 32: loads are coalesced, lines that hold nothing kept are not read, and what a warp writes lies side by side.
//
// f32, bf16 and f16 take one pass. In int8 a scale belongs to 256 values that may come from several tiles, so the pass
// leaves the kept values as floats in the workspace, a warp then turns each block into bytes, and with feedback a last
// pass takes what was sent off the residual. Without a mask and a residual blocks are read where they are.
#include "kernels/packing/cuda_coding.cuh"

namespace edgeprune {
namespace {

constexpr int kEach = TileConfig::words / TileConfig::warps;  // words of a warp
static_assert(kEach == 16, "half a warp loads its words of the mask");
constexpr int kPackBlocks = 4;  // on a multiprocessor: 16 loads of a thread are held in registers, up to 64 of them

// A warp's words of a tile and the ranks of their first elements.
struct WarpWords {
    uint32_t word = 0;   // lane i < 16: the i-th one
    int32_t rank = 0;    // of its first element, within the warp
    int32_t kept = 0;    // of the warp
    int64_t before = 0;  // kept in the tensor before the warp's first element
};

// Contains barriers; `before` needs those before the tile, which `find` gives to one warp when there is a mask. What
// `meanwhile` does with the words, `before` not being known yet, is under way while that warp looks back.
template <class Meanwhile, class Find>
__device__ inline WarpWords read_words(const PackingRow& row, const Tile& tile, uint32_t* status, Meanwhile meanwhile,
                                       Find find) {
    __shared__ int32_t kept_of_warp[TileConfig::warps];
    __shared__ int64_t before_tile;
    const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
    WarpWords words;
    uint32_t spare = 0;
    if (lane < kEach) words.word = mask_word(row, tile.first + (warp * kEach + lane) * 32, spare);
    const int own = __popc(words.word);
    int sum = own;
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(kAll, sum, step);
        if (lane >= step) sum += other;
    }
    words.rank = sum - own;
    words.kept = __shfl_sync(kAll, sum, 31);
    if (spare) report(status, kStatusSpare, tile.row);
    if (lane == 0) kept_of_warp[warp] = words.kept;
    __syncthreads();
    int before = 0, all = 0;
    for (int w = 0; w < TileConfig::warps; ++w) {
        if (w == warp) before = all;
        all += kept_of_warp[w];
    }
    meanwhile(words);
    if (warp == 0) {
        const int64_t found = row.mask ? find(all) : tile.first;
        if (lane == 0) before_tile = found;
        // A tensor's last tile knows how many it keeps.
        if (lane == 0 && tile.first + kCudaTile >= row.n && found + all != row.kept)
            report(status, kStatusKept, tile.row);
    }
    __syncthreads();
    words.before = before_tile + before;
    return words;
}

struct Staging {
    float* values;  // kept values of i8 as floats, 256 for each block; null: another coding
};

__device__ inline float* staged(const Staging& staging, const PackingRow& row, int64_t rank) {
    return staging.values + row.first_block * kScaleBlock + rank;
}

// ---- the pass over the elements -------------------------------------------------------------------------------------

template <Coding coding>
__global__ void __launch_bounds__(TileConfig::threads, kPackBlocks)
    pack_kernel(TileSpace space, int64_t tiles, Staging staging, uint32_t* status) {
    const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
    Tiles queue(space, tiles);
    Tile tile;
    while (queue.next(tile)) {
        const PackingRow row = space.rows[tile.row];
        const int64_t first = tile.first + warp * kEach * 32 + lane;
        const bool feedback = row.residual != nullptr, whole = coding == Coding::i8 || whole_items<coding>(row);
        const float* const source = row.x ? row.x : row.residual;
        float v[kEach];
        const auto load = [&](const WarpWords& held) {
#pragma unroll
            for (int w = 0; w < kEach; ++w) {
                const bool kept = __shfl_sync(kAll, held.word, w) >> lane & 1u;
                const int64_t i = first + w * 32;
                v[w] = 0.0f;
                if (feedback ? i < row.n : kept) v[w] = read(source + i);
                if (feedback && row.x && i < row.n) v[w] = __fadd_rn(v[w], read(row.residual + i));
            }
        };
        const WarpWords words = read_words(row, tile, status, load, [&](int64_t own) {
            return kept_before(space.state, tile.number, row.first_tile, own);
        });
        bool finite_all = true;
#pragma unroll
        for (int w = 0; w < kEach; ++w) {
            const uint32_t word = __shfl_sync(kAll, words.word, w);
            const int64_t start = words.before + __shfl_sync(kAll, words.rank, w);
            const int64_t i = first + w * 32;
            const int64_t rank = start + __popc(word & ((1u << lane) - 1u));
            float rest = v[w];
            if ((word >> lane & 1u) && rank < row.kept) {
                if constexpr (coding == Coding::i8) {
                    write(staged(staging, row, rank), v[w]);
                } else {
                    const float sent = encode<coding>(row, rank, v[w], whole);
                    finite_all = finite_all && finite(sent);
                    rest = v[w] - sent;
                }
            }
            // v stands in the residual already where nothing was added and nothing sent.
            if (feedback && i < row.n && (row.x || (word >> lane & 1u))) write(row.residual + i, rest);
        }
        if (feedback && !finite_all) report(status, kStatusNotFinite, tile.row);
    }
}

// ---- blocks of int8 -------------------------------------------------------------------------------------------------

constexpr int kLaneValues = static_cast<int>(kScaleBlock) / 32;
static_assert(kLaneValues == 8, "a lane's bytes of a block are one store of 8");

// A warp a block. With feedback what the receiver lacks takes the value's place in the staging.
__global__ void __launch_bounds__(TileConfig::threads)
    pack_blocks_kernel(const PackingRow* rows, int count, int64_t blocks, Staging staging, bool stochastic,
                       uint32_t* status) {
    const int lane = static_cast<int>(threadIdx.x & 31);
    const int64_t step = static_cast<int64_t>(gridDim.x) * TileConfig::warps;
    for (int64_t block = static_cast<int64_t>(blockIdx.x) * TileConfig::warps + threadIdx.x / 32; block < blocks;
         block += step) {
        const int r = last_at_or_before(count, block, [&](int i) { return rows[i].first_block; });
        const PackingRow& row = rows[r];
        const int64_t first = (block - row.first_block) * kScaleBlock + lane * kLaneValues;
        const float* const from = row.mask || row.residual ? staged(staging, row, 0) : row.x;
        const bool wide = aligned16(from);
        const float4 a = load4(from, first, row.kept, wide), b = load4(from, first + 4, row.kept, wide);
        const float v[kLaneValues] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        uint32_t largest = 0;
#pragma unroll
        for (int i = 0; i < kLaneValues; ++i) largest = max(largest, __float_as_uint(v[i]) & kMagnitude);
        for (int half = 16; half; half /= 2) largest = max(largest, __shfl_xor_sync(kAll, largest, half));
        const float scale = __fdiv_rn(__uint_as_float(largest), 127.0f);
        if (lane == 0) {
            write(row.scales + (block - row.first_block), scale);
            if (largest >= kInfinity) report(status, kStatusNotFinite, r);
        }
        if (largest >= kInfinity) continue;
        uint32_t bytes[2] = {0, 0};
        int q[kLaneValues];
#pragma unroll
        for (int i = 0; i < kLaneValues; ++i) {
            q[i] = to_i8(v[i], scale, stochastic, row, first + i);
            bytes[i / 4] |= static_cast<uint32_t>(q[i] & 255) << (8 * (i % 4));
        }
        uint8_t* const to = row.values + first;
        if (first + kLaneValues <= row.kept && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
            write(reinterpret_cast<uint2*>(to), make_uint2(bytes[0], bytes[1]));
        } else {
            for (int i = 0; i < kLaneValues && first + i < row.kept; ++i)
                write(to + i, static_cast<uint8_t>(bytes[i / 4] >> (8 * (i % 4))));
        }
        if (!row.residual) continue;
        bool finite_all = true;
#pragma unroll
        for (int i = 0; i < kLaneValues; ++i) {
            if (first + i >= row.kept) break;
            const float sent = __fmul_rn(static_cast<float>(q[i]), scale);
            finite_all = finite_all && finite(sent);
            write(staged(staging, row, first + i), v[i] - sent);
        }
        if (!finite_all) report(status, kStatusNotFinite, r);
    }
}

// What the receiver lacks, from the staging to the residual. The first pass left each tile's sum in the state.
__global__ void __launch_bounds__(TileConfig::threads)
    pack_rest_kernel(TileSpace space, int64_t tiles, Staging staging, uint32_t* status) {
    const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
    for (int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
        Tile tile;
        tile.number = number;
        tile.row = row_of_tile(space, number);
        const PackingRow row = space.rows[tile.row];
        tile.first = (number - row.first_tile) * kCudaTile;
        const auto nothing = [](const WarpWords&) {};
        const WarpWords words = read_words(row, tile, status, nothing, [&](int64_t) {
            return number == row.first_tile ? int64_t{0} : static_cast<int64_t>(space.state[number - 1] & ~kSaid);
        });
        if (row.residual) {
#pragma unroll
            for (int w = 0; w < kEach; ++w) {
                const uint32_t word = __shfl_sync(kAll, words.word, w);
                const int64_t rank =
                    words.before + __shfl_sync(kAll, words.rank, w) + __popc(word & ((1u << lane) - 1u));
                const int64_t i = tile.first + (warp * kEach + w) * 32 + lane;
                if ((word >> lane & 1u) && rank < row.kept) write(row.residual + i, read(staged(staging, row, rank)));
            }
        }
    }
}

// A row that blocks are read of where they are.
bool straight(const PackingRow& row) { return !row.mask && !row.residual; }

}  // namespace

int64_t packing_workspace_pack(int64_t rows, int64_t tiles, int64_t blocks) {
    return tile_space_bytes(rows, tiles) + blocks * kScaleBlock * static_cast<int64_t>(sizeof(float));
}

int packing_pack_cuda(const PackingCuda& call, Coding coding, bool stochastic) {
    const TileSpace space = tile_space(call);
    int code = prepare(call, space, call.tiles + 1);
    if (code) return code;
    const int64_t blocks = tile_blocks(call.tiles);
    const Staging none = {nullptr}, staging = {reinterpret_cast<float*>(space.rest)};
    switch (coding) {
        case Coding::f32:
            return launch(&pack_kernel<Coding::f32>, blocks, TileConfig::threads, call.stream, space, call.tiles, none,
                          call.status);
        case Coding::bf16:
            return launch(&pack_kernel<Coding::bf16>, blocks, TileConfig::threads, call.stream, space, call.tiles, none,
                          call.status);
        case Coding::f16:
            return launch(&pack_kernel<Coding::f16>, blocks, TileConfig::threads, call.stream, space, call.tiles, none,
                          call.status);
        case Coding::i8:
            break;
    }
    bool all_straight = true, feedback = false;
    for (int i = 0; i < call.count; ++i) {
        all_straight = all_straight && straight(call.rows[i]);
        feedback = feedback || call.rows[i].residual;
    }
    if (!all_straight)
        code = launch(&pack_kernel<Coding::i8>, blocks, TileConfig::threads, call.stream, space, call.tiles, staging,
                      call.status);
    if (code) return code;
    const int64_t of_blocks = tile_blocks(ceil_div(call.blocks, TileConfig::warps));
    code =
        launch(&pack_blocks_kernel, of_blocks, TileConfig::threads, call.stream,
               static_cast<const PackingRow*>(space.rows), call.count, call.blocks, staging, stochastic, call.status);
    if (code || !feedback) return code;
    return launch(&pack_rest_kernel, blocks, TileConfig::threads, call.stream, space, call.tiles, staging, call.status);
}

}  // namespace edgeprune
