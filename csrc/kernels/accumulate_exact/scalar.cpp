#define EDGEPRUNE_SIMD_SCALAR
#include "kernels/accumulate_exact/accumulate_exact_simd.h"

namespace edgeprune {

const ExactKernels accumulate_exact_scalar = {Isa::scalar, add};

}  // namespace edgeprune
