// Kept blocks on the matrix units (see cuda_blocks.h). A block of threads makes `Positions` positions by one row of
// blocks; inputs and weights come through shared memory three stages deep, in rows of 16-byte words whose places are
// exchanged (exclusive or with the row) so that no two rows of a matrix meet in a bank.
#include "base/cuda_launch.h"
#include "base/cuda_mma.h"
#include "kernels/masked/cuda_blocks.h"

namespace edgeprune {
namespace {

constexpr int kStages = 3;     // copies under way behind the one in use: hides a read of the second-level cache
constexpr int kThreads = 256;  // eight warps, four along positions and two along channels (eight by one for 32)

// Byte offset of 16-byte word `word` of row `row` in a tile of `Block` 16-bit words a row.
template <int Block>
__device__ __forceinline__ SharedAddress place(int row, int word) {
    constexpr int kWords = Block / 8;  // in a row; for 32, two rows share the eight banks' worth of 128 bytes
    const int turn = kWords == 8 ? row % 8 : row / 2 % 4;
    return static_cast<SharedAddress>((row * kWords + (word ^ turn)) * 16);
}

// Pixel of the input that position (image, h, w) of the output reads at a tap: -1 for none.
__device__ __forceinline__ int source_pixel(const BlocksGeometry& g, int image, int h, int w, int tap) {
    const int taps[2] = {tap / g.taps_w, tap % g.taps_w};
    const int at[2] = {h, w};
    int from[2];
#pragma unroll
    for (int d = 0; d < 2; ++d) {
        if (g.backward) {
            const int scaled = at[d] + g.padding[d] - taps[d] * g.dilation[d];
            if (scaled < 0 || scaled % g.stride[d]) return -1;
            from[d] = scaled / g.stride[d];
        } else {
            from[d] = at[d] * g.stride[d] - g.padding[d] + taps[d] * g.dilation[d];
        }
        if (from[d] < 0 || from[d] >= g.in_size[d]) return -1;
    }
    return (image * g.in_size[0] + from[0]) * g.in_size[1] + from[1];
}

struct Position {
    int image, h, w;  // image -1: behind the last
};
__device__ __forceinline__ Position position_of(const BlocksGeometry& g, int p) {
    const int pixels = g.out_size[0] * g.out_size[1], image = p / pixels, rest = p - image * pixels;
    const int h = rest / g.out_size[1];
    return {image < g.images ? image : -1, h, rest - h * g.out_size[1]};
}

template <int Positions, int Block>
constexpr int kStageBytes = (Positions + Block) * Block * 2;
template <int Positions, int Block>
constexpr int64_t kSharedBytes = kStages * kStageBytes<Positions, Block> + Positions * int64_t{sizeof(Position)};

template <int Positions, int Block, bool Bf16>
__global__ void __launch_bounds__(kThreads) blocks_kernel(const BlocksCuda task) {
    constexpr int kWords = Block / 8, kAcross = Block / 32, kDown = 8 / kAcross;  // warps
    constexpr int kRows = Positions / kDown;                                      // positions of a warp
    constexpr int kTiles = kRows / 16;
    EDGEPRUNE_SHARED(shared);
    const BlocksGeometry& g = task.geometry;
    const BlocksPlan& plan = task.plan;
    auto* const where = reinterpret_cast<Position*>(shared + kStages * kStageBytes<Positions, Block>);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_row = warp / kAcross * kRows, warp_column = warp % kAcross * 32;
    const int first = plan.first[blockIdx.y], last = plan.first[blockIdx.y + 1];
    const int first_position = blockIdx.x * Positions;
    for (int p = threadIdx.x; p < Positions; p += kThreads) where[p] = position_of(g, first_position + p);
    __syncthreads();

    const auto stage = [&](int b) {
        const SharedAddress to =
            shared_address(shared) + static_cast<SharedAddress>((b - first) % kStages * kStageBytes<Positions, Block>);
        const int tap = plan.tap[b], channel = plan.source[b] * Block;
        for (int i = threadIdx.x; i < Positions * kWords; i += kThreads) {
            const int row = i / kWords, word = i % kWords;
            const Position at = where[row];
            const int pixel = at.image < 0 ? -1 : source_pixel(g, at.image, at.h, at.w, tap);
            const int64_t from = static_cast<int64_t>(pixel < 0 ? 0 : pixel) * g.channels + channel + word * 8;
            copy_16(to + place<Block>(row, word), task.in + from, pixel >= 0);
        }
        const uint16_t* const weights = task.weights + plan.at[b];
        const int step = plan.step[b];
        for (int i = threadIdx.x; i < Block * kWords; i += kThreads) {
            const int row = i / kWords, word = i % kWords;
            copy_16(to + Positions * Block * 2 + place<Block>(row, word), weights + row * step + word * 8);
        }
    };

    float sum[kTiles][4][4] = {};
    for (int s = 0; s < kStages - 1; ++s) {
        if (first + s < last) stage(first + s);
        commit_copies();
    }
    for (int b = first; b < last; ++b) {
        wait_for_copies<kStages - 2>();
        __syncthreads();  // this stage has come, and the one before is no longer read
        if (b + kStages - 1 < last) stage(b + kStages - 1);
        commit_copies();
        const SharedAddress inputs =
            shared_address(shared) + static_cast<SharedAddress>((b - first) % kStages * kStageBytes<Positions, Block>);
        const SharedAddress weights = inputs + Positions * Block * 2;
#pragma unroll
        for (int k = 0; k < Block / 16; ++k) {
            uint32_t right[2][4];  // of 16 columns each: two tiles of 8
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int n = warp_column + half * 16;
                if (g.backward)  // rows of a weight block are what is summed over
                    load_matrices<true>(right[half], weights + place<Block>(k * 16 + lane % 16, n / 8 + lane / 16));
                else
                    load_matrices<false>(right[half],
                                         weights + place<Block>(n + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                uint32_t left[4];
                load_matrices<false>(left, inputs + place<Block>(warp_row + t * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
                for (int n = 0; n < 4; ++n)
                    multiply_add<Bf16>(sum[t][n], left, right[n / 2][n % 2 * 2], right[n / 2][n % 2 * 2 + 1]);
            }
        }
    }
    wait_for_copies();  // what is under way must not outlive the block

#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + t * 16 + lane / 4 + half * 8;
            const Position at = where[row];
            if (at.image < 0) continue;
            const int64_t pixel = static_cast<int64_t>(first_position) + row;
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const int column = blockIdx.y * Block + warp_column + n * 8 + lane % 4 * 2;
                const float bias0 = task.bias ? task.bias[column] : 0.0f;
                const float bias1 = task.bias ? task.bias[column + 1] : 0.0f;
                const uint32_t pair = to_word<Bf16>(sum[t][n][half * 2] + bias0) |
                                      static_cast<uint32_t>(to_word<Bf16>(sum[t][n][half * 2 + 1] + bias1)) << 16;
                *reinterpret_cast<uint32_t*>(task.out + pixel * g.rows + column) = pair;
            }
        }
}

// ---- the gradient of kept blocks ------------------------------------------------------------------------------------

constexpr int kDotsThreads = 128, kDotsPositions = 64;  // four warps, a quarter of a weight block each

template <int Block, bool Bf16>
__global__ void __launch_bounds__(kDotsThreads) block_dots_kernel(const BlockDotsCuda task) {
    constexpr int kWords = Block / 8, kSide = Block / 2, kTiles = kSide / 16, kPairs = kSide / 16;
    constexpr int kBytes = kDotsPositions * Block * 2;
    EDGEPRUNE_SHARED(shared);
    const BlocksGeometry& g = task.geometry;
    const BlocksPlan& plan = task.plan;
    const int b = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = plan.row[b] * Block, channel = plan.source[b] * Block, tap = plan.tap[b];
    const int warp_row = warp / 2 * kSide, warp_column = warp % 2 * kSide;
    const int positions = g.images * g.out_size[0] * g.out_size[1];
    const int chunks = (positions + kDotsPositions - 1) / kDotsPositions;

    const auto stage = [&](int chunk, int slot) {
        const SharedAddress to = shared_address(shared) + static_cast<SharedAddress>(slot * 2 * kBytes);
        for (int i = threadIdx.x; i < kDotsPositions * kWords; i += kDotsThreads) {
            const int p = chunk * kDotsPositions + i / kWords, word = i % kWords;
            const bool inside = p < positions;
            const Position at = position_of(g, inside ? p : 0);
            const int pixel = inside ? source_pixel(g, at.image, at.h, at.w, tap) : -1;
            copy_16(to + place<Block>(i / kWords, word),
                    task.dy + static_cast<int64_t>(inside ? p : 0) * g.rows + row + word * 8, inside);
            copy_16(to + kBytes + place<Block>(i / kWords, word),
                    task.in + static_cast<int64_t>(pixel < 0 ? 0 : pixel) * g.channels + channel + word * 8,
                    pixel >= 0);
        }
    };

    float sum[kTiles][2 * kPairs][4] = {};
    int ahead = blockIdx.y;
    for (int s = 0; s < kStages - 1; ++s, ahead += task.splits) {
        if (ahead < chunks) stage(ahead, s);
        commit_copies();
    }
    int slot = 0;
    for (int chunk = blockIdx.y; chunk < chunks; chunk += task.splits, ahead += task.splits) {
        wait_for_copies<kStages - 2>();
        __syncthreads();
        if (ahead < chunks) stage(ahead, (slot + kStages - 1) % kStages);
        commit_copies();
        const SharedAddress dy = shared_address(shared) + static_cast<SharedAddress>(slot * 2 * kBytes);
        slot = (slot + 1) % kStages;
#pragma unroll
        for (int k = 0; k < kDotsPositions / 16; ++k) {
            uint32_t right[kPairs][4];
#pragma unroll
            for (int n = 0; n < kPairs; ++n)
                load_matrices<true>(
                    right[n], dy + kBytes + place<Block>(k * 16 + lane % 16, (warp_column + n * 16) / 8 + lane / 16));
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                uint32_t left[4];  // dy lies by positions, which are summed over: its transpose is wanted
                load_matrices<true>(
                    left, dy + place<Block>(k * 16 + lane / 16 * 8 + lane % 8, (warp_row + t * 16) / 8 + lane / 8 % 2));
#pragma unroll
                for (int n = 0; n < 2 * kPairs; ++n)
                    multiply_add<Bf16>(sum[t][n], left, right[n / 2][n % 2 * 2], right[n / 2][n % 2 * 2 + 1]);
            }
        }
    }
    wait_for_copies();

    float* const to = task.partial + (static_cast<int64_t>(blockIdx.y) * plan.kept + b) * Block * Block;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int n = 0; n < 2 * kPairs; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at_row = warp_row + t * 16 + lane / 4 + i / 2 * 8;
                to[at_row * Block + warp_column + n * 8 + lane % 4 * 2 + i % 2] = sum[t][n][i];
            }
}

template <bool Bf16>
__global__ void add_block_splits_kernel(const BlockDotsCuda task) {
    const int block = task.plan.block;
    const int64_t words = static_cast<int64_t>(task.plan.kept) * block * block;
    const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= words) return;
    float sum = 0.0f;
    for (int s = 0; s < task.splits; ++s) sum += task.partial[s * words + at];
    const auto b = static_cast<int>(at / (block * block)), rest = static_cast<int>(at % (block * block));
    task.dw[task.plan.at[b] + rest / block * task.plan.step[b] + rest % block] = to_word<Bf16>(sum);
}

template <int Positions, int Block, bool Bf16>
int run(const BlocksCuda& task, int64_t positions, void* stream) {
    return launch_shared(blocks_kernel<Positions, Block, Bf16>, (positions + Positions - 1) / Positions,
                         task.plan.block_rows, kThreads, kSharedBytes<Positions, Block>, stream, task);
}

template <int Block, bool Bf16>
int run(const BlocksCuda& task, void* stream) {
    const BlocksGeometry& g = task.geometry;
    const int64_t positions = int64_t{g.images} * g.out_size[0] * g.out_size[1];
    // Twice the positions read each weight block half as often, where there is work for every multiprocessor anyway.
    // Not every GPU has the shared memory for it (8.6, 8.9 and 12.0: 99 KB a block).
    if constexpr (Block == 64)
        if (positions / 256 * task.plan.block_rows >= 2 * multiprocessors() &&
            kSharedBytes<256, Block> <= most_shared())
            return run<256, Block, Bf16>(task, positions, stream);
    return run<128, Block, Bf16>(task, positions, stream);
}

template <int Block, bool Bf16>
int run(const BlockDotsCuda& task, void* stream) {
    const int64_t bytes = kStages * 2 * kDotsPositions * Block * 2;
    if (const int code = launch_shared(block_dots_kernel<Block, Bf16>, task.plan.kept, task.splits, kDotsThreads, bytes,
                                       stream, task))
        return code;
    const int64_t words = int64_t{task.plan.kept} * Block * Block;
    return launch(add_block_splits_kernel<Bf16>, (words + 255) / 256, 256, stream, task);
}

}  // namespace

int masked_blocks_cuda(const BlocksCuda& task, void* stream) {
    if (task.plan.block == 64) return task.bf16 ? run<64, true>(task, stream) : run<64, false>(task, stream);
    return task.bf16 ? run<32, true>(task, stream) : run<32, false>(task, stream);
}

int masked_block_dots_cuda(const BlockDotsCuda& task, void* stream) {
    if (!task.plan.kept) return 0;
    if (task.plan.block == 64) return task.bf16 ? run<64, true>(task, stream) : run<64, false>(task, stream);
    return task.bf16 ? run<32, true>(task, stream) : run<32, false>(task, stream);
}

}  // namespace edgeprune
