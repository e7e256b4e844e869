#define EDGEPRUNE_SIMD_AVX2
#include "kernels/masked/masked_simd.h"

namespace edgeprune {

const MaskedKernels masked_avx2 = {Isa::avx2,  kDotsChunks, accumulate,   dots,         gather_rows,
                                   outer_rows, interleave,  deinterleave, multiply_adds};

}  // namespace edgeprune
