#define EDGEPRUNE_SIMD_NEON
#include "kernels/max_pool/max_pool_simd.h"

namespace edgeprune {

const PoolKernels max_pool_neon = {Isa::neon, forward, backward};

}  // namespace edgeprune
