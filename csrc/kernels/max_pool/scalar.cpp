#define EDGEPRUNE_SIMD_SCALAR
#include "kernels/max_pool/max_pool_simd.h"

namespace edgeprune {

const PoolKernels max_pool_scalar = {Isa::scalar, forward, backward};

}  // namespace edgeprune
