// Kept blocks on the matrix units of a GPU, on views: shapes checked without looking at device memory, then launched on
// the caller's stream. Contracts: kernels/masked/cuda_blocks.h.
#pragma once

#include <array>

#include "base/view.h"
#include "kernels/masked/cuda_blocks.h"
#include "ops/sparsity_pattern.h"

namespace edgeprune {

// All of one GPU. Words (x, weights, y) are all f16 or all bf16, contiguous, pictures with channels last; bias f32 or
// without data; the plan int32: first, row, source, tap, at, step.
struct BlocksCall {
    FilterShape filter;
    int64_t padding[2];
    int64_t x_shape[4];  // (N, inputs, H, W)
    int block;
    std::array<View, 6> plan;
    View x, weights, bias, y, partial;
};
void run_masked_blocks(const BlocksCall& call, bool backward, void* stream);  // backward: x is written from y
// weights are written; `partial` f32 (splits, kept blocks, block, block).
void run_masked_block_dots(const BlocksCall& call, int splits, void* stream);

}  // namespace edgeprune
