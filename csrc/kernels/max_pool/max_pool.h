// Max pooling of stride 1 over float32 pictures, and its gradient: overlapping windows, which torch walks one element
// at a time on a CPU. Plain structs, no checks, no allocation: ops/max_pool.cpp checks, splits and fills these in.
#pragma once

#include <cstdint>

#include "base/isa.h"

namespace edgeprune {

constexpr int32_t kPoolNowhere = 255;  // no place in a window: size is at most 15

// x (planes, height, width), row-major, to windows of size x size: out and where (planes, height - size + 1,
// width - size + 1). where = row * size + column, in the window, of its largest element: of equal ones the first, and
// of NaNs, which are the largest, the last.
struct PoolTask {
    const float* x;
    float* out;
    uint8_t* where;
    int64_t height, width, size;
};

// dx[i] = the sum of grad over the windows whose largest element is i, added from the first window to the last.
struct PoolBackwardTask {
    const float* grad;
    const uint8_t* where;
    float* dx;
    int64_t height, width, size;  // of x
};

// What a backward task of one plane may scribble on: each (height - size + 1) * (width + size - 1) floats or int32_t.
struct PoolScratch {
    float* grad;
    void* where;
};

// One instruction set's kernels; both do one plane after the other. Every set gives the same bits.
struct PoolKernels {
    Isa isa;
    void (*forward)(const PoolTask&, int64_t first_plane, int64_t last_plane);
    void (*backward)(const PoolBackwardTask&, const PoolScratch&, int64_t first_plane, int64_t last_plane);
};

#define EDGEPRUNE_DECLARE(isa) extern const PoolKernels max_pool_##isa;
EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_DECLARE)
#undef EDGEPRUNE_DECLARE

// The reference: element by element; gradients in double, dx being (planes, height, width).
void max_pool_reference(const PoolTask&, int64_t planes);
void max_pool_backward_reference(const PoolBackwardTask&, int64_t planes, double* dx);

}  // namespace edgeprune
