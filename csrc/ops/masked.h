// The masked operators on views: shapes checked once, images packed, work split over threads, variant chosen.
// Contracts of the arithmetic: kernels/masked/masked.h. All throw Error with one sentence, before anything is written.
//
// Error bound: a sum of n products in any order, each step rounding once, is off by at most
// n * eps / (1 - n * eps) times the sum of the products' magnitudes; eps = 2^-24.
#pragma once

#include <string>

#include "base/view.h"
#include "ops/sparsity_pattern.h"

namespace edgeprune {

struct MaskedOptions {
    int threads = 1;
    std::string variant;  // empty: the best allowed one
};

// y = conv(x, w) + bias with the kept weights only. All f32, contiguous, on the CPU.
//   x (N, inputs, H, W), weights (kept,), bias (outputs,) or without data, y (N, outputs, OH, OW).
//   A linear layer: H = W = OH = OW = 1.
struct MaskedCall {
    SparsityPattern pattern;
    int64_t padding[2] = {0, 0};
    View x, weights, bias, y;
};

void masked_forward(const MaskedCall& call, const MaskedOptions& options);
// dx from dy (in `y`): `x` is written.
void masked_input_gradient(const MaskedCall& call, const MaskedOptions& options);
// dw at kept weights from x and dy: `weights` is written.
void masked_weight_gradient(const MaskedCall& call, const MaskedOptions& options);

// Multiply-adds that one thread of this machine can do in registers, in floating-point operations a second, measured
// for about `seconds`; what the share of a kernel in the peak is counted against.
double multiply_add_peak(double seconds, const std::string& variant);

}  // namespace edgeprune
