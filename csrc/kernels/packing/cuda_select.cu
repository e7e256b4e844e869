// Selection by magnitude without a sort: three histograms of ever finer digits of the magnitude's 31 bits (12, 10 and 9
// of them) give the k-th largest exactly. Two passes read all elements: the first makes the first histogram, the second
// marks what lies above the k-th one's bucket in the masks and what lies in it in a second set of bits, while it counts
// the next digits of those. From then on only elements in the bucket are looked at. Ties go to the lower (tensor,
// index): where not all of them fit, tiles are counted, added up and filled in order.
//
// Which numbers the passes work with is decided on the device, by the last block of the pass before: nothing waits.
#include "kernels/packing/cuda_tiles.cuh"

namespace edgeprune {
namespace {

struct SelectConfig {
    static constexpr int threads = 512;  // share one histogram: fewer tables to add up at the end
    static constexpr int blocks_each =
        2;  // 1,024 threads of 64 bytes in flight each fill a multiprocessor's share of memory
    static constexpr int each =
        static_cast<int>(kCudaTile) / threads;  // neighbouring elements of a thread: a byte of mask
    static constexpr int first_bits = 12;       // of the magnitude: the exponent and 4 bits; 16 KB of shared memory
    static constexpr int second_bits = 10;
    static constexpr int third_bits = 9;
    static constexpr int in_flight = 2;  // tiles of a block at once
};
constexpr int kFirst = 1 << SelectConfig::first_bits, kSecond = 1 << SelectConfig::second_bits,
              kThird = 1 << SelectConfig::third_bits;
constexpr int kShiftFirst = 31 - SelectConfig::first_bits, kShiftSecond = SelectConfig::third_bits;
static_assert(SelectConfig::each == 8, "a thread writes whole bytes of a mask");
static_assert(kShiftFirst == SelectConfig::second_bits + SelectConfig::third_bits, "the digits make up 31 bits");
static_assert(kThird <= SelectConfig::threads && kFirst % SelectConfig::threads == 0, "threads share buckets evenly");

// What the passes tell each other.
struct Search {
    int64_t k;         // how many to take of the bucket found so far; in the end: of those equal to the k-th largest
    int64_t inside;    // elements in it
    uint32_t prefix;   // its digits; in the end all 31 bits
    uint32_t done[4];  // blocks that have finished a pass
    uint32_t unused;
};

struct SelectSpace {
    TileSpace tiles;
    Search* search;
    unsigned long long* histogram;  // [kFirst + kSecond + kThird]
    int64_t* ties;                  // of each tile; then of all before it
    uint8_t* maybe;                 // kCudaTile / 8 bytes a tile
};

constexpr int64_t kMaybeBytes = kCudaTile / 8;

SelectSpace select_space(const PackingCuda& call) {
    SelectSpace space;
    space.tiles = tile_space(call);
    char* at = space.tiles.rest;
    space.search = reinterpret_cast<Search*>(at);
    at += padded(sizeof(Search));
    space.histogram = reinterpret_cast<unsigned long long*>(at);
    at += padded((kFirst + kSecond + kThird) * 8);
    space.ties = reinterpret_cast<int64_t*>(at);
    at += padded(call.tiles * 8);
    space.maybe = reinterpret_cast<uint8_t*>(at);
    return space;
}

int64_t select_blocks(int64_t tiles) {
    const int64_t most = static_cast<int64_t>(multiprocessors()) * SelectConfig::blocks_each;
    return tiles < most ? tiles : most;
}

// ---- device: elements and bits --------------------------------------------------------------------------------------

// A thread's eight neighbouring elements as magnitudes; 0 for those that do not exist.
struct Eight {
    uint32_t key[8];
    int count;  // that exist

    __device__ void read(const PackingRow& row, int64_t first, bool wide) {
        const float4 a = load4(row.x, first, row.n, wide), b = load4(row.x, first + 4, row.n, wide);
        const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < 8; ++i) key[i] = __float_as_uint(v[i]) & kMagnitude;
        const int64_t left = row.n - first;
        count = left >= 8 ? 8 : left > 0 ? static_cast<int>(left) : 0;
    }
    __device__ bool nan() const {
        uint32_t largest = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) largest = max(largest, key[i]);
        return largest > kInfinity;
    }
};

struct Place {
    int row;
    int64_t first;  // element of the tensor where the thread's eight begin
};

__device__ inline Place place_of(const TileSpace& space, int64_t tile) {
    Place place;
    place.row = row_of_tile(space, tile);
    place.first = (tile - space.rows[place.row].first_tile) * kCudaTile + threadIdx.x * SelectConfig::each;
    return place;
}

// ---- device: histograms ---------------------------------------------------------------------------------------------

// Adds a block's table to the one of all; true, in all threads, for the last block to do so. Contains barriers.
__device__ inline bool add_up(const uint32_t* own, int size, unsigned long long* all, uint32_t* done) {
    __shared__ bool last;
    __syncthreads();
    for (int b = static_cast<int>(threadIdx.x); b < size; b += SelectConfig::threads)
        if (own[b]) atomicAdd(all + b, static_cast<unsigned long long>(own[b]));
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(done, 1u) == gridDim.x - 1;
    __syncthreads();
    __threadfence();
    return last;
}

// Sum of the values of the threads before this one. Contains barriers.
__device__ inline int64_t sum_before(int64_t own) {
    __shared__ int64_t of_warp[SelectConfig::threads / 32];
    const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
    int64_t sum = own;
    for (int step = 1; step < 32; step *= 2) {
        const int64_t other = __shfl_up_sync(kAll, sum, step);
        if (lane >= step) sum += other;
    }
    __syncthreads();
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    for (int w = 0; w < warp; ++w) sum += of_warp[w];
    return sum - own;
}

// One thread finds the bucket that holds the k-th largest, and appends it to the prefix.
__device__ inline void find_bucket(const unsigned long long* all, int size, int bits, Search* search) {
    const int each = size > SelectConfig::threads ? size / SelectConfig::threads : 1;
    const int top = size - 1 - static_cast<int>(threadIdx.x) * each;  // from the largest magnitudes down
    int64_t own = 0;
    for (int i = 0; i < each; ++i)
        if (top - i >= 0) own += static_cast<int64_t>(__ldcg(all + top - i));
    const int64_t k = search->k;
    int64_t before = sum_before(own);
    if (before < k && k <= before + own) {
        for (int i = 0; i < each; ++i) {
            const auto held = static_cast<int64_t>(__ldcg(all + top - i));
            if (k <= before + held) {
                search->prefix = search->prefix << bits | static_cast<uint32_t>(top - i);
                search->k = k - before;
                search->inside = held;
                break;
            }
            before += held;
        }
    }
}

// ---- the passes -----------------------------------------------------------------------------------------------------

__global__ void begin_kernel(Search* search, int64_t k, unsigned long long* histogram) {
    const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    for (int b = first; b < kFirst + kSecond + kThird; b += static_cast<int>(gridDim.x * blockDim.x)) histogram[b] = 0;
    if (first == 0) *search = {k, 0, 0, {0, 0, 0, 0}, 0};
}

// The first digits of all elements.
__global__ void __launch_bounds__(SelectConfig::threads)
    first_kernel(SelectSpace space, int64_t tiles, uint32_t* status) {
    __shared__ uint32_t own[kFirst];
    for (int b = static_cast<int>(threadIdx.x); b < kFirst; b += SelectConfig::threads) own[b] = 0;
    __syncthreads();
    for (int64_t tile = blockIdx.x; tile < tiles; tile += static_cast<int64_t>(SelectConfig::in_flight) * gridDim.x) {
        Eight eight[SelectConfig::in_flight];
        int row_of[SelectConfig::in_flight];
#pragma unroll
        for (int f = 0; f < SelectConfig::in_flight; ++f) {
            const int64_t number = tile + static_cast<int64_t>(f) * gridDim.x;
            eight[f].count = 0;
            if (number >= tiles) continue;
            const Place place = place_of(space.tiles, number);
            const PackingRow& row = space.tiles.rows[place.row];
            row_of[f] = place.row;
            eight[f].read(row, place.first, aligned16(row.x));
        }
#pragma unroll
        for (int f = 0; f < SelectConfig::in_flight; ++f) {
            if (eight[f].count == 0) continue;
            if (eight[f].nan()) report(status, kStatusNan, row_of[f]);
#pragma unroll
            for (int i = 0; i < 8; ++i)
                if (i < eight[f].count) atomicAdd(own + (eight[f].key[i] >> kShiftFirst), 1u);
        }
    }
    if (add_up(own, kFirst, space.histogram, space.search->done))
        find_bucket(space.histogram, kFirst, SelectConfig::first_bits, space.search);
}

// Writes the masks of what lies above the bucket and of what lies in it; counts the second digits of the latter.
__global__ void __launch_bounds__(SelectConfig::threads) second_kernel(SelectSpace space, int64_t tiles) {
    __shared__ uint32_t own[kSecond];
    for (int b = static_cast<int>(threadIdx.x); b < kSecond; b += SelectConfig::threads) own[b] = 0;
    __syncthreads();
    const uint32_t bucket = space.search->prefix;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += static_cast<int64_t>(SelectConfig::in_flight) * gridDim.x) {
        Eight eight[SelectConfig::in_flight];
        Place place[SelectConfig::in_flight];
#pragma unroll
        for (int f = 0; f < SelectConfig::in_flight; ++f) {
            const int64_t number = tile + static_cast<int64_t>(f) * gridDim.x;
            eight[f].count = 0;
            if (number >= tiles) continue;
            place[f] = place_of(space.tiles, number);
            const PackingRow& row = space.tiles.rows[place[f].row];
            eight[f].read(row, place[f].first, aligned16(row.x));
        }
#pragma unroll
        for (int f = 0; f < SelectConfig::in_flight; ++f) {
            const int64_t number = tile + static_cast<int64_t>(f) * gridDim.x;
            if (number >= tiles) continue;
            uint32_t above = 0, maybe = 0;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                if (i >= eight[f].count) break;
                const uint32_t digits = eight[f].key[i] >> kShiftFirst;
                above |= static_cast<uint32_t>(digits > bucket) << i;
                maybe |= static_cast<uint32_t>(digits == bucket) << i;
                if (digits == bucket) atomicAdd(own + (eight[f].key[i] >> kShiftSecond & (kSecond - 1)), 1u);
            }
            space.maybe[number * kMaybeBytes + threadIdx.x] = static_cast<uint8_t>(maybe);
            if (eight[f].count)
                write(space.tiles.rows[place[f].row].mask + place[f].first / 8, static_cast<uint8_t>(above));
        }
    }
    if (add_up(own, kSecond, space.histogram + kFirst, space.search->done + 1))
        find_bucket(space.histogram + kFirst, kSecond, SelectConfig::second_bits, space.search);
}

// The bucket's elements again, for the last digits.
__global__ void __launch_bounds__(SelectConfig::threads) third_kernel(SelectSpace space, int64_t tiles) {
    __shared__ uint32_t own[kThird];
    for (int b = static_cast<int>(threadIdx.x); b < kThird; b += SelectConfig::threads) own[b] = 0;
    __syncthreads();
    const uint32_t prefix = space.search->prefix;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        uint32_t maybe = space.maybe[tile * kMaybeBytes + threadIdx.x];
        if (!maybe) continue;
        const Place place = place_of(space.tiles, tile);
        const float* const x = space.tiles.rows[place.row].x + place.first;
        for (; maybe; maybe &= maybe - 1) {
            const uint32_t key = __float_as_uint(constant(x + __ffs(static_cast<int>(maybe)) - 1)) & kMagnitude;
            if (key >> kShiftSecond == prefix) atomicAdd(own + (key & (kThird - 1)), 1u);
        }
    }
    if (add_up(own, kThird, space.histogram + kFirst + kSecond, space.search->done + 2))
        find_bucket(space.histogram + kFirst + kSecond, kThird, SelectConfig::third_bits, space.search);
}

// A thread's candidates: those above the k-th largest, and those equal to it.
struct Candidates {
    uint32_t above, equal;
};

__device__ inline Candidates candidates(const SelectSpace& space, int64_t tile, uint32_t kth) {
    Candidates found = {0, 0};
    uint32_t maybe = space.maybe[tile * kMaybeBytes + threadIdx.x];
    if (!maybe) return found;
    const Place place = place_of(space.tiles, tile);
    const float* const x = space.tiles.rows[place.row].x + place.first;
    for (; maybe; maybe &= maybe - 1) {
        const int i = __ffs(static_cast<int>(maybe)) - 1;
        const uint32_t key = __float_as_uint(constant(x + i)) & kMagnitude;
        found.above |= static_cast<uint32_t>(key > kth) << i;
        found.equal |= static_cast<uint32_t>(key == kth) << i;
    }
    return found;
}

// Where more are equal to the k-th largest than may be taken: how many lie in each tile, then in all tiles before it.
__global__ void __launch_bounds__(SelectConfig::threads) ties_kernel(SelectSpace space, int64_t tiles) {
    __shared__ bool last;
    const Search search = *space.search;
    if (search.inside == search.k) return;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int equal = __popc(candidates(space, tile, search.prefix).equal);
        const int64_t before = sum_before(equal);
        if (threadIdx.x == SelectConfig::threads - 1) space.ties[tile] = before + equal;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(space.search->done + 3, 1u) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    int64_t before = 0;  // of the stretch
    __shared__ int64_t end;
    for (int64_t first = 0; first < tiles; first += SelectConfig::threads) {
        const int64_t tile = first + threadIdx.x;
        const int64_t own = tile < tiles ? __ldcg(space.ties + tile) : 0;
        const int64_t within = sum_before(own);
        if (tile < tiles) space.ties[tile] = before + within;
        if (threadIdx.x == SelectConfig::threads - 1) end = before + within + own;
        __syncthreads();
        before = end;
    }
}

// Adds the chosen candidates to the masks.
__global__ void __launch_bounds__(SelectConfig::threads) fill_kernel(SelectSpace space, int64_t tiles) {
    const Search search = *space.search;
    const bool all_ties = search.inside == search.k;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Candidates found = candidates(space, tile, search.prefix);
        uint32_t take = found.above | found.equal;
        if (!all_ties) {
            int64_t left = search.k - space.ties[tile] - sum_before(__popc(found.equal));
            take = found.above;
            for (uint32_t equal = found.equal; equal && left > 0; equal &= equal - 1, --left)
                take |= equal & (0u - equal);
        }
        if (!take) continue;
        const Place place = place_of(space.tiles, tile);
        uint8_t* const byte = space.tiles.rows[place.row].mask + place.first / 8;
        write(byte, static_cast<uint8_t>(read(byte) | take));
    }
}

// ---- everything above a threshold -----------------------------------------------------------------------------------

__global__ void __launch_bounds__(SelectConfig::threads)
    above_kernel(TileSpace space, int64_t tiles, uint32_t threshold, uint32_t* status) {
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Place place = place_of(space, tile);
        const PackingRow& row = space.rows[place.row];
        Eight eight;
        eight.read(row, place.first, aligned16(row.x));
        if (!eight.count) continue;
        if (eight.nan()) report(status, kStatusNan, place.row);
        uint32_t above = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) above |= static_cast<uint32_t>(i < eight.count && eight.key[i] >= threshold) << i;
        write(row.mask + place.first / 8, static_cast<uint8_t>(above));
    }
}

}  // namespace

int64_t packing_workspace_select(int64_t rows, int64_t tiles) {
    return tile_space_bytes(rows, tiles) + padded(sizeof(Search)) + padded((kFirst + kSecond + kThird) * 8) +
           padded(tiles * 8) + tiles * kMaybeBytes;
}

int packing_select_cuda(const PackingCuda& call, int64_t k) {
    const SelectSpace space = select_space(call);
    int code = prepare(call, space.tiles, 0);
    if (code) return code;
    code = launch(&begin_kernel, 8, SelectConfig::threads, call.stream, space.search, k, space.histogram);
    if (code) return code;
    const int64_t blocks = select_blocks(call.tiles);
    constexpr int threads = SelectConfig::threads;
    if ((code = launch(&first_kernel, blocks, threads, call.stream, space, call.tiles, call.status))) return code;
    if ((code = launch(&second_kernel, blocks, threads, call.stream, space, call.tiles))) return code;
    if ((code = launch(&third_kernel, blocks, threads, call.stream, space, call.tiles))) return code;
    if ((code = launch(&ties_kernel, blocks, threads, call.stream, space, call.tiles))) return code;
    return launch(&fill_kernel, blocks, threads, call.stream, space, call.tiles);
}

int packing_above_cuda(const PackingCuda& call, uint32_t threshold) {
    const TileSpace space = tile_space(call);
    const int code = prepare(call, space, 0);
    if (code) return code;
    return launch(&above_kernel, select_blocks(2 * call.tiles), SelectConfig::threads, call.stream, space, call.tiles,
                  threshold, call.status);
}

}  // namespace edgeprune
