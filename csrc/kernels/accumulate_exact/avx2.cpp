#define EDGEPRUNE_SIMD_AVX2
#include "kernels/accumulate_exact/accumulate_exact_simd.h"

namespace edgeprune {

const ExactKernels accumulate_exact_avx2 = {Isa::avx2, add};

}  // namespace edgeprune
