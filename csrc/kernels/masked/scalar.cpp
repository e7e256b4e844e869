#define EDGEPRUNE_SIMD_SCALAR
#include "kernels/masked/masked_simd.h"

namespace edgeprune {

const MaskedKernels masked_scalar = {Isa::scalar, kDotsChunks, accumulate,   dots,         gather_rows,
                                     outer_rows,  interleave,  deinterleave, multiply_adds};

}  // namespace edgeprune
