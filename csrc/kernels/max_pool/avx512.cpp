#define EDGEPRUNE_SIMD_AVX512
#include "kernels/max_pool/max_pool_simd.h"

namespace edgeprune {

const PoolKernels max_pool_avx512 = {Isa::avx512, forward, backward};

}  // namespace edgeprune
