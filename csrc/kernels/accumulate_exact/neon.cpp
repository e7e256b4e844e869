#define EDGEPRUNE_SIMD_NEON
#include "kernels/accumulate_exact/accumulate_exact_simd.h"

namespace edgeprune {

const ExactKernels accumulate_exact_neon = {Isa::neon, add};

}  // namespace edgeprune
