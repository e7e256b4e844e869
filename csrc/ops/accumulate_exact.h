// Exact weighted sums on views: checked once, split over threads, variant chosen. Arithmetic:
// kernels/accumulate_exact/accumulate_exact.h. Throws Error with one sentence; nothing is written before all is
// checked.
#pragma once

#include "base/view.h"
#include "ops/channels.h"

namespace edgeprune {

struct ExactCall {
    View words;   // i64 (n,), contiguous
    View mask;    // u8 (ceil(n / 8),), contiguous, spare bits zero; data == null: all are kept
    View values;  // f32 (kept,), contiguous
};

constexpr int kExactMaxBits = 24;

void accumulate_exact(const ExactCall& call, double factor, int64_t weight, int bits, const CpuOptions& options);

}  // namespace edgeprune
