#define EDGEPRUNE_SIMD_AVX512
#include "kernels/accumulate_exact/accumulate_exact_simd.h"

namespace edgeprune {

const ExactKernels accumulate_exact_avx512 = {Isa::avx512, add};

}  // namespace edgeprune
