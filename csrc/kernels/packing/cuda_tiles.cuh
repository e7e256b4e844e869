// What the packing kernels share on the device: the call's rows in the workspace, tiles, masks as words, and how many
// kept elements lie before a tile. For the .cu files of this folder alone.
#pragma once

#include <cuda_runtime.h>

#include "base/cuda_index.h"
#include "base/cuda_launch.h"
#include "kernels/packing/packing_cuda.h"

namespace edgeprune {
namespace {

// ---- launch shape ---------------------------------------------------------------------------------------------------

struct TileConfig {
    static constexpr int threads = 256;  // 8 warps: a tile's 128 words of mask are 16 a warp, one for each half warp
    static constexpr int warps = threads / 32;
    static constexpr int each = static_cast<int>(kCudaTile) / threads;  // elements of a thread: loads in flight
    static constexpr int words = static_cast<int>(kCudaTile) / 32;
    static constexpr int blocks_each = 5;  // on a multiprocessor: 48 registers a thread, with 40 some kernels spill
};
static_assert(TileConfig::each == 16 && TileConfig::words == 128, "kernels count words and bits by these");

inline int64_t tile_blocks(int64_t tiles) {
    const int64_t most = static_cast<int64_t>(multiprocessors()) * TileConfig::blocks_each;
    return tiles < most ? tiles : most;
}

constexpr unsigned kAll = 0xFFFFFFFFu;  // lanes

// ---- the workspace --------------------------------------------------------------------------------------------------

// rows | row of each tile | state: a word for each tile and one that hands tiles out | what else an operator needs
struct TileSpace {
    int count;  // of rows
    PackingRow* rows;
    int32_t* row_of_tile;
    unsigned long long* state;  // [tiles + 1], zeros at the start
    char* rest;
};

inline int64_t padded(int64_t bytes) { return (bytes + 15) / 16 * 16; }

inline int64_t tile_space_bytes(int64_t rows, int64_t tiles) {
    return padded(rows * static_cast<int64_t>(sizeof(PackingRow))) + padded(tiles * 4) + padded((tiles + 1) * 8);
}

inline TileSpace tile_space(const PackingCuda& call) {
    char* at = static_cast<char*>(call.workspace);
    TileSpace space;
    space.count = call.count;
    space.rows = reinterpret_cast<PackingRow*>(at);
    at += padded(call.count * static_cast<int64_t>(sizeof(PackingRow)));
    space.row_of_tile = reinterpret_cast<int32_t*>(at);
    at += padded(call.tiles * 4);
    space.state = reinterpret_cast<unsigned long long*>(at);
    space.rest = at + padded((call.tiles + 1) * 8);
    return space;
}

template <int N>
struct RowChunk {
    int count, first_row;
    int64_t first_tile, tiles;
    PackingRow row[N];
};
constexpr int kFewRows = 4, kManyRows = (kLaunchBytes - 64) / static_cast<int>(sizeof(PackingRow));

template <int N>
__global__ void prepare_kernel(const __grid_constant__ RowChunk<N> chunk, TileSpace space, unsigned long long* zero,
                               int64_t zeros) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = first; i < chunk.count; i += step) space.rows[chunk.first_row + i] = chunk.row[i];
    for (int64_t i = first; i < chunk.tiles; i += step) {
        const int row =
            last_at_or_before(chunk.count, chunk.first_tile + i, [&](int r) { return chunk.row[r].first_tile; });
        space.row_of_tile[chunk.first_tile + i] = chunk.first_row + row;
    }
    for (int64_t i = first; i < zeros; i += step) zero[i] = 0;
}

template <int N>
int prepare_by(const PackingCuda& call, const TileSpace& space, int64_t zeros) {
    for (int first = 0; first < call.count; first += N) {
        RowChunk<N> chunk = {};
        chunk.count = call.count - first < N ? call.count - first : N;
        chunk.first_row = first;
        chunk.first_tile = call.rows[first].first_tile;
        const int64_t end = first + chunk.count < call.count ? call.rows[first + chunk.count].first_tile : call.tiles;
        chunk.tiles = end - chunk.first_tile;
        for (int i = 0; i < chunk.count; ++i) chunk.row[i] = call.rows[first + i];
        const int64_t zero_now = first ? 0 : zeros;
        const int64_t work = chunk.tiles > zero_now ? chunk.tiles : zero_now;
        int64_t blocks = ceil_div(work > chunk.count ? work : chunk.count, 4 * TileConfig::threads);
        if (blocks > multiprocessors()) blocks = multiprocessors();
        const int code =
            launch(&prepare_kernel<N>, blocks, TileConfig::threads, call.stream, chunk, space, space.state, zero_now);
        if (code) return code;
    }
    return 0;
}

// Rows, tiles and `zeros` words of 8 bytes from the state on (at least tiles + 1).
inline int prepare(const PackingCuda& call, const TileSpace& space, int64_t zeros) {
    return call.count <= kFewRows ? prepare_by<kFewRows>(call, space, zeros)
                                  : prepare_by<kManyRows>(call, space, zeros);
}

// ---- device: rows, status, masks ------------------------------------------------------------------------------------

__device__ inline void report(uint32_t* status, PackingStatus word, int64_t row) {
    atomicMax(status + word, 0xFFFFFFFFu - static_cast<uint32_t>(row));
}

__device__ inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// A tensor's address comes out of the workspace, where the compiler cannot see that it is one of the GPU's memory, and
// takes slower instructions that fit any kind. These say so. `constant`: what no thread of the launch writes.
template <class T>
__device__ inline T constant(const T* p) {
    return __ldg(p);
}
template <class T>
__device__ inline T read(const T* p) {
    return __ldcg(p);
}
template <class T>
__device__ inline void write(T* p, T value) {
    __stcg(p, value);
}

// 32 bits of the mask from `element` on, a multiple of 32; elements that do not exist are not kept. Adds to `spare`
// the bits set beyond the last element.
__device__ inline uint32_t mask_word(const PackingRow& row, int64_t element, uint32_t& spare) {
    const int64_t left = row.n - element;
    if (!row.mask) return first_bits(kAll, left);
    if (left <= 0) return 0;
    const uint8_t* const from = row.mask + element / 8;
    uint32_t word = 0;
    if (left >= 32 && reinterpret_cast<uintptr_t>(from) % 4 == 0) {
        word = constant(reinterpret_cast<const uint32_t*>(from));
    } else {
        const int bytes = left >= 25 ? 4 : static_cast<int>((left + 7) / 8);
        for (int i = 0; i < bytes; ++i) word |= static_cast<uint32_t>(constant(from + i)) << (8 * i);
    }
    const uint32_t held = first_bits(word, left);
    spare |= word ^ held;
    return held;
}

// Four floats from x + i on; those from n on are 0.
__device__ inline float4 load4(const float* x, int64_t i, int64_t n, bool aligned) {
    if (aligned && i + 4 <= n) return __ldcs(reinterpret_cast<const float4*>(x + i));
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (i < n) v.x = read(x + i);
    if (i + 1 < n) v.y = read(x + i + 1);
    if (i + 2 < n) v.z = read(x + i + 2);
    if (i + 3 < n) v.w = read(x + i + 3);
    return v;
}

// ---- device: how many are kept before a tile ------------------------------------------------------------------------

// One pass over the mask (D. Merrill and M. Garland, Single-pass Parallel Prefix Scan with Decoupled Look-back, NVIDIA
// NVR-2016-002): a tile says how many it keeps, then looks back over what the tiles before it said, until one knows its
// sum from the tensor's start on. Tiles are handed out in order, so the ones looked at have all begun.
constexpr unsigned long long kSaidOwn = 1ull << 62, kSaidAll = 2ull << 62, kSaid = 3ull << 62;

// The kept elements of the tensor before this tile, to all lanes of one warp. `own`: of the tile itself.
__device__ inline int64_t kept_before(volatile unsigned long long* state, int64_t tile, int64_t first_tile,
                                      int64_t own) {
    const int lane = static_cast<int>(threadIdx.x & 31);
    const auto said = static_cast<unsigned long long>(own);
    if (tile == first_tile) {
        if (lane == 0) state[tile] = kSaidAll | said;
        return 0;
    }
    if (lane == 0) state[tile] = kSaidOwn | said;
    int64_t before = 0;
    for (int64_t last = tile - 1;; last -= 32) {
        const int64_t at = last - lane;
        unsigned long long word = kSaidAll;  // before the tensor's first tile: nothing
        if (at >= first_tile) {
            do {
                word = state[at];
            } while (!(word & kSaid));
        }
        // The nearest tile that knows everything before it ends the walk; farther lanes do not count.
        const unsigned knows = __ballot_sync(kAll, (word & kSaid) == kSaidAll);
        const int nearest = knows ? __ffs(static_cast<int>(knows)) - 1 : 31;
        int64_t part = lane <= nearest ? static_cast<int64_t>(word & ~kSaid) : 0;
        for (int step = 16; step; step /= 2) part += __shfl_down_sync(kAll, part, step);
        before += __shfl_sync(kAll, part, 0);
        if (knows) break;
    }
    if (lane == 0) state[tile] = kSaidAll | static_cast<unsigned long long>(before + own);
    return before;
}

// A tile as a block of threads sees it.
struct Tile {
    int64_t number, first;  // over the call; its first element in the tensor
    int row;
};

__device__ inline int row_of_tile(const TileSpace& space, int64_t tile) {
    return space.count == 1 ? 0 : space.row_of_tile[tile];
}

// Hands a block its tiles, in order. The number of the next one is asked for while the block is busy with this one; it
// then waits for no tile behind its own, so that of all tiles not done the first is always being worked on.
class Tiles {
  public:
    __device__ Tiles(const TileSpace& space, int64_t tiles) : space_(space), tiles_(tiles) {
        if (threadIdx.x == 0) ahead_ = atomicAdd(space_.state + tiles_, 1ull);
    }

    // To all threads of the block; false when none is left. Begins and ends with a barrier, so that shared memory of
    // the tile before may be written again.
    __device__ bool next(Tile& tile) {
        __shared__ unsigned long long drawn;
        __syncthreads();
        if (threadIdx.x == 0) drawn = ahead_;
        __syncthreads();
        tile.number = static_cast<int64_t>(drawn);
        if (tile.number >= tiles_) return false;
        if (threadIdx.x == 0) ahead_ = atomicAdd(space_.state + tiles_, 1ull);
        tile.row = row_of_tile(space_, tile.number);
        tile.first = (tile.number - space_.rows[tile.row].first_tile) * kCudaTile;
        return true;
    }

  private:
    const TileSpace& space_;
    int64_t tiles_;
    unsigned long long ahead_ = 0;  // of thread 0
};

}  // namespace
}  // namespace edgeprune
