// A linear layer on two to eight samples: packed, walked in blocks of inputs that stay in the first-level cache, and
// unpacked. Used by ops/masked.cpp.
#pragma once

#include "ops/masked_layout.h"

namespace edgeprune {

struct FewSamples {
    const MaskedKernels* kernels;
    SparsityPattern pattern;
    int64_t samples;
    // (samples, inputs), (kept,), (outputs,) or null, (samples, outputs); what a call does not compute is not written
    float* x;
    float* w;
    const float* bias;
    float* y;
};

void few_forward(const FewSamples& few, int threads);
void few_input_gradient(const FewSamples& few, int threads);
void few_weight_gradient(const FewSamples& few, int threads);

}  // namespace edgeprune
