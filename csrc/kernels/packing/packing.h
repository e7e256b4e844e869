// Kept values of float32 tensors: selection by magnitude, packing under a bit mask with conversion, unpacking, weighted
// accumulation straight from packed bytes, error feedback. Plain structs, no checks, no allocation: ops/packing*.cpp
// checks, splits and fills these in.
//
// A mask of n elements is ceil(n / 8) bytes, bit i % 8 of byte i / 8 is element i, spare bits zero; null keeps all.
// The rank of a kept element is the number of kept ones before it. Every variant gives the same bits: a product is
// rounded before it is added. Plain reference, element by element: reference.cpp.
#pragma once

#include <cstdint>

#include "base/isa.h"

namespace edgeprune {

// How a kept value travels, little-endian.
//   bf16, f16   to nearest, ties to even; NaN keeps its sign and the top of its payload, and turns quiet
//   i8          q = v / scale, clamped to -127..127, with scale = max|v| / 127 over each 256 kept values (rank / 256),
//               q = 0 where that is 0. To nearest, ties to even; or, stochastic, floor(t) + (u < t - floor(t)) with u
//               from the rank (`uniform` in reference.cpp). It is read as q * scale. Only finite values.
enum class Coding { f32, bf16, f16, i8 };
constexpr int64_t kItemBytes[] = {4, 2, 2, 1};
constexpr int64_t kScaleBlock = 256;

// Few kept elements: lines of memory without any are not read, which wins where at most one element in so many is kept.
// Either way a longer range begins and ends less often: the caller joins ranges that are alike.
constexpr int64_t kSparse = 40;
inline bool few(int64_t kept, int64_t elements) { return kept * kSparse <= elements; }

constexpr uint32_t kMagnitude = 0x7FFFFFFF;  // a float's bits without the sign: larger magnitude, larger number
constexpr uint32_t kInfinity = 0x7F800000;   // above it: NaN

// split: above gets the elements whose magnitude bits are > high, maybe those in low..high; low <= high <= kInfinity.
//   `keys` gets the values in `maybe` in order, up to the first 64 elements whose share does not fit into `capacity`
//   (-1: none); kKeysSlack floats behind them may be written.
//   Ranges start at a multiple of 64 elements, and end at one or at n.
constexpr int64_t kKeysSlack = 2;
struct SplitTask {
    const float* x;
    int64_t n;
    uint8_t* above;
    uint8_t* maybe;     // null: not wanted
    int32_t low, high;  // high = -1: everything is above
};
struct SplitCounts {
    int64_t above, maybe;
    bool nan;
};
// histogram: bucket[(magnitude bits - low) >> shift] += 1 for those in low..high. 4 * kBuckets numbers: four tables, to
//   be added up by the caller (neighbouring elements are often alike, and one would wait for the other).
constexpr int kBuckets = 2048;

// pack: the kept values of a range in order, into values at byte rank * kItemBytes and scales at rank / 256.
//   With a residual: v = x + residual is what is packed, and residual becomes v where dropped, and v minus what the
//   receiver will read where kept. Returns false when i8 met a value that is not finite, or what the receiver will read
//   is not finite and a residual is asked for; outputs are then unspecified.
//   Ranges are shorter than 2^31; in i8 ranks at their ends are multiples of 256, or `kept`.
struct PackTask {
    const float* x;   // null: the residual holds v already
    float* residual;  // null: none
    const uint8_t* mask;
    int64_t n;
    Coding coding;
    uint8_t* values;
    float* scales;  // i8
    int64_t kept;
    bool stochastic;
    uint32_t key0, key1;  // of the random numbers
};

// unpack: out[i] = value where kept, else 0. `around_caches`: out is far larger than they are, and 64-byte aligned.
// accumulate: total[i] += weight * value and weight_sum[i] += weight where kept; elsewhere nothing changes, but
// elements
//   may be written back as they were.
// Ranges of both start at a multiple of 64 elements, and end at one or at n.
struct PackedValues {
    const uint8_t* values;
    const float* scales;
    const uint8_t* mask;
    int64_t n, kept;
    Coding coding;
};
struct UnpackTask {
    PackedValues packed;
    float* out;
    bool around_caches;
};
struct AccumulateTask {
    PackedValues packed;
    float* total;
    float* weight_sum;
    float weight;
};

// One instruction set's kernels; [first, last) lets threads share a task, `rank` is that of the first element and
// `last_rank` the one behind the last.
struct PackingKernels {
    Isa isa;
    SplitCounts (*split)(const SplitTask&, int64_t first, int64_t last, float* keys, int64_t capacity);
    void (*histogram)(const float* x, int64_t count, uint32_t low, uint32_t high, int shift, uint32_t* buckets);
    bool (*pack)(const PackTask&, int64_t first, int64_t last, int64_t rank, int64_t last_rank);
    void (*unpack)(const UnpackTask&, int64_t first, int64_t last, int64_t rank);
    void (*accumulate)(const AccumulateTask&, int64_t first, int64_t last, int64_t rank, int64_t last_rank);
    void (*add)(const float* x, float* sum, int64_t count);  // sum += x
    int64_t (*count_bits)(const uint8_t* bytes, int64_t count);
};

#define EDGEPRUNE_DECLARE(isa) extern const PackingKernels packing_##isa;
EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_DECLARE)
#undef EDGEPRUNE_DECLARE

// The reference. The value that a receiver reads is packing_decode_reference of what pack wrote.
bool packing_kept_reference(const uint8_t* mask, int64_t i);
bool packing_pack_reference(const PackTask&);  // a whole tensor
float packing_decode_reference(const PackedValues&, int64_t rank);
double packing_accumulate_reference(double total, float weight, float value);

}  // namespace edgeprune
