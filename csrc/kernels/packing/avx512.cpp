#define EDGEPRUNE_SIMD_AVX512
#include "kernels/packing/packing_simd.h"

namespace edgeprune {

const PackingKernels packing_avx512 = {Isa::avx512, split, histogram, pack, unpack, accumulate, add, count_bits};

}  // namespace edgeprune
