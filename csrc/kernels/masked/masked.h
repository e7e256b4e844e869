// Products with kept weights only: y += W x, and the gradient of the kept weights, for linear layers and convolutions
// alike. Plain structs, no checks, no allocation: ops/masked_*.cpp checks, packs and fills these in.
//
// Inputs are packed so that what one kept weight multiplies is contiguous: a plane holds, for each pixel, `width`
// images side by side (1 for one image at a time). One kept weight w, whose place in the filter is a shift of the
// plane, then adds w times a run of floats to a run of outputs. A chunk is 16 such floats, a tile a few chunks whose
// sums stay in registers while all kept weights of an output row pass by. A linear layer is a plane of one pixel.
//
// Dropped weights do not exist here: nothing of them is stored or read. A fused multiply-add rounds once, so
// instruction sets agree within the bound that ops/masked.h derives, not bit for bit; one set always gives the same
// bits, whatever the number of threads.
#pragma once

#include <cstdint>

#include "base/isa.h"

namespace edgeprune {

constexpr int kChunk = 16;         // floats
constexpr int kTileChunks = 4;     // of accumulate: 4 sums of AVX-512 twice over, 8 of AVX2, 16 of NEON
constexpr int kMaxTileChunks = 8;  // of dots

// The kept weights of rows [0, rows), or those of them that lie in one block of input planes: weight k of row r, with
// begin[r] <= k < end[r], multiplies x[shift(k) + chunk[c] + 0..15] for each chunk c, where
// shift(k) = shift_of[columns[k]], or columns[k] * column_stride when shift_of is null. All in floats.
struct KeptRows {
    const int32_t* columns;
    const int32_t* shift_of;
    int64_t column_stride;
    const int32_t* begin;
    const int32_t* end;
    int64_t rows;
    const float* x;
    int64_t chunk[kMaxTileChunks];
    int chunks;
};

// accumulate: y[r * y_stride + 16 c + l] += sum_k w[k] * x[shift(k) + chunk[c] + l];  1 <= chunks <= kTileChunks.
//   y does not overlap x or w. With `first`, y is not read: sums start at bias[r], or at 0 when bias is null.
//   With `order` the weight is w[order[k]]; then kept.shift_of is null.
struct AccumulateTask {
    KeptRows kept;
    const float* w;
    const int32_t* order;
    float* y;
    int64_t y_stride;
    bool first;
    const float* bias;
};

// dots: dw[k] += sum over c, l of dy[r * dy_stride + 16 c + l] * x[shift(k) + chunk[c] + l];
//   1 <= chunks <= the variant's dots_chunks.
struct DotsTask {
    KeptRows kept;
    const float* dy;
    int64_t dy_stride;
    float* dw;
};

// gather_rows: y[r] = bias[r] (0 when null) + sum_k w[k] * x[columns[k]]: a linear layer on one sample.
struct GatherRowsTask {
    const int32_t* columns;
    const int32_t* begin;
    const int32_t* end;
    int64_t rows;
    const float* w;
    const float* x;
    const float* bias;
    float* y;
};

// outer_rows: dw[k] = dy[r] * x[columns[k]]: its weight gradient.
struct OuterRowsTask {
    const int32_t* columns;
    const int32_t* begin;
    const int32_t* end;
    int64_t rows;
    const float* dy;
    const float* x;
    float* dw;
};

// A linear layer on up to kFew samples, which lie side by side: x has kFew floats for each column, y for each row,
// those of samples that are not there being 0. Weight k of row r, with begin[r] <= k < end[r], belongs to columns[k].
//   few_products   y[r] (+)= sum_k w[k] * x[columns[k]], starting from bias[r] (0 when null) with `first`;
//                  with `order` the weight is w[order[k]]
//   few_dots       w[k] = the dot product of y[r] and x[columns[k]]
struct FewTask {
    const int32_t* columns;
    const int32_t* order;
    const int32_t* begin;
    const int32_t* end;
    int64_t rows;
    float* w;  // few_products only reads it
    const float* x;
    float* y;  // few_dots only reads it
    bool first;
    const float* bias;
};
constexpr int64_t kFew = 8;

// interleave: packed[at(q) + n] = plain[n * plain_image + q * plain_step] for n < images, 0 for images <= n < width;
//   q < count. deinterleave goes the other way (lanes from `images` on are not read). at(q) = q * packed_step, or,
//   where positions lie in lines of `line`, the first of them at `first` of its line,
//   (first + q) / line * line_step + (first + q) % line * packed_step.
struct InterleaveTask {
    float* plain;  // interleave does not write it
    int64_t plain_image, plain_step, images;
    float* packed;  // deinterleave does not write it
    int64_t packed_step, width;
    int64_t count;
    int64_t line = 0, line_step = 0, first = 0;
};

// copy_rows: to[r * to_step + i] = from[r * from_step + i] for r < rows, i < count.
struct CopyRowsTask {
    const float* from;
    int64_t from_step;
    float* to;
    int64_t to_step, rows, count;
};

struct MaskedKernels {
    Isa isa;
    int dots_chunks;
    void (*accumulate)(const AccumulateTask&);
    void (*dots)(const DotsTask&);
    void (*gather_rows)(const GatherRowsTask&);
    void (*outer_rows)(const OuterRowsTask&);
    void (*few_products)(const FewTask&);
    void (*few_dots)(const FewTask&);
    void (*interleave)(const InterleaveTask&);
    void (*deinterleave)(const InterleaveTask&);
    void (*copy_rows)(const CopyRowsTask&);
    // `rounds` rounds of independent multiply-adds in registers: what the core can do at most. Returns their number,
    // multiplication and addition counted as two.
    int64_t (*multiply_adds)(int64_t rounds);
};

#define EDGEPRUNE_DECLARE(isa) extern const MaskedKernels masked_##isa;
EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_DECLARE)
#undef EDGEPRUNE_DECLARE

// The reference, in double: y shaped rows x (16 * chunks), dw by k; both are set, not added to.
void masked_accumulate_reference(const AccumulateTask&, double* y);
void masked_dots_reference(const DotsTask&, double* dw);
void masked_gather_rows_reference(const GatherRowsTask&, double* y);
void masked_interleave_reference(const InterleaveTask&);
void masked_deinterleave_reference(const InterleaveTask&);

}  // namespace edgeprune
