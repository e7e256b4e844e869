// Whole channels of float32 tensors: norms, gather of kept indices, weighted scatter-accumulate, and the division that
// ends a merge. Plain structs, no checks, no allocation: ops/channels.cpp checks, splits and fills these in.
//
// Every variant gives the same bits: a product is rounded before it is added, and sums run in one fixed order that
// depends on the shape alone. Reference in double: reference.cpp.
#pragma once

#include <cstdint>

#include "base/isa.h"

namespace edgeprune {

constexpr int kChannelsAxes = 10;  // up to 8 of a tensor, and one each for items and block

// gather: dst[i0, i1, ...] = src[index0[i0] * stride0 + index1[i1] * stride1 + ...], dst dense and row-major.
//   The last axis is the block: no index, stride 1. The one before it counts items. All before these count rows.
//   dst must not overlap src. Elements of src that are not kept may be read when they lie between the first and the
//   last kept one of a row (a vector load), and are never used; nothing outside of that is read.
struct GatherAxis {
    int64_t size;          // of dst
    int64_t stride;        // of src, in elements
    const int64_t* index;  // `size` positions in src, or null for 0, 1, 2, ...
};
// Kept positions as bits, 16 to a word, the first one being bit 0 of the first word: lets a kernel move whole vectors.
// Only where blocks are single elements, items have stride 1 and a strictly increasing index.
struct KeepBits {
    const uint16_t* word;  // null: none
    int64_t span;          // positions from the first kept one to the last, both included
};
struct GatherTask {
    const float* src;
    float* dst;
    int axes;  // >= 2
    GatherAxis axis[kChannelsAxes];
    KeepBits keep;  // of the items
};

// scatter: total[where] += weight * x[i...] and count[where] += weight, with where = index0[i0], index1[i1], ...
//   Same axes as gather, the index being a position in total and count. Within one axis the index has no duplicates.
//   total, count and x must not overlap. Where nothing is held nothing changes, but what lies between the first and the
//   last held element of a row may be written back as it was.
struct ScatterAxis {
    int64_t size;  // of x
    int64_t total_stride, count_stride, x_stride;
    const int64_t* index;
};
struct ScatterTask {
    float* total;
    float* count;
    const float* x;
    float weight;
    int axes;  // >= 2
    ScatterAxis axis[kChannelsAxes];
    KeepBits keep;  // of the items
};

// norms: x dense (before, channels, after); norm[c] = sum |x[:, c, :]| for p = 1, sqrt(sum x[:, c, :]^2) for p = 2,
//   in double, rounded once at the end. Order of the sum: for after > 1 element j of a block goes to partial sum
//   j mod 16, blocks in order, and the 16 partial sums are added pairwise (i with i + 8, then + 4, + 2, + 1);
//   for after == 1 plainly from first to last.
struct NormsTask {
    const float* x;
    float* norm;
    int64_t before, channels, after;
    int p;
};

// finish: out[i] = count[i] > 0 ? total[i] / count[i] : base[i], the bits of base kept. out may be total or base.
struct FinishTask {
    const float* base;
    const float* total;
    const float* count;
    float* out;
};

// One instruction set's kernels. Ranges let threads share a task; a "unit" of gather and scatter is one item of one
// row, numbered row by row.
struct ChannelsKernels {
    Isa isa;
    void (*gather)(const GatherTask&, int64_t first_unit, int64_t last_unit);
    void (*scatter)(const ScatterTask&, int64_t first_unit, int64_t last_unit);
    void (*norms)(const NormsTask&, int64_t first_channel, int64_t last_channel);
    void (*finish)(const FinishTask&, int64_t first, int64_t last);
};

#define EDGEPRUNE_DECLARE(isa) extern const ChannelsKernels channels_##isa;
EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_DECLARE)
#undef EDGEPRUNE_DECLARE

// The reference: whole tasks, element by element. Results in double, before the rounding to float.
void channels_gather_reference(const GatherTask&);
void channels_scatter_reference(const ScatterTask&, double* total, double* count);  // shaped like total and count
void channels_norms_reference(const NormsTask&, double* norm);
double channels_finish_reference(const FinishTask&, int64_t i);

}  // namespace edgeprune
