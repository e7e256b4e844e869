// Max pooling of stride 1 on views: checked once, split over threads, variant chosen. Arithmetic:
// kernels/max_pool/max_pool.h. Throws Error with one sentence; nothing is written before all is checked.
#pragma once

#include "base/view.h"
#include "ops/channels.h"

namespace edgeprune {

// All contiguous; x (..., height, width), the others with each of these two smaller by size - 1.
struct PoolCall {
    View x;      // f32
    View out;    // f32
    View where;  // u8
};

struct PoolBackwardCall {
    View grad;   // f32
    View where;  // u8, as forward wrote it: a place that is none gives its gradient to nobody
    View dx;     // f32, like x
};

constexpr int64_t kPoolMaxSize = 15;  // a place in a window fits a byte

void max_pool(const PoolCall& call, int64_t size, const CpuOptions& options);
void max_pool_backward(const PoolBackwardCall& call, int64_t size, const CpuOptions& options);

}  // namespace edgeprune
