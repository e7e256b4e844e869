#define EDGEPRUNE_SIMD_AVX512
#include "kernels/masked/masked_simd.h"

namespace edgeprune {

const MaskedKernels masked_avx512 = {Isa::avx512, kDotsChunks, accumulate,   dots,         gather_rows,
                                     outer_rows,  interleave,  deinterleave, multiply_adds};

}  // namespace edgeprune
