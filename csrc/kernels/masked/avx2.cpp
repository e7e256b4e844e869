#define EDGEPRUNE_SIMD_AVX2
#include "kernels/masked/masked_few_simd.h"
#include "kernels/masked/masked_simd.h"

namespace edgeprune {

const MaskedKernels masked_avx2 = {
    Isa::avx2,    kDotsChunks, accumulate, dots,         gather_rows, outer_rows,
    few_products, few_dots,    interleave, deinterleave, copy_rows,   multiply_adds,
};

}  // namespace edgeprune
