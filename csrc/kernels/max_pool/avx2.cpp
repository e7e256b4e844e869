#define EDGEPRUNE_SIMD_AVX2
#include "kernels/max_pool/max_pool_simd.h"

namespace edgeprune {

const PoolKernels max_pool_avx2 = {Isa::avx2, forward, backward};

}  // namespace edgeprune
