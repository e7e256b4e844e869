#define EDGEPRUNE_SIMD_AVX2
#include "kernels/packing/packing_simd.h"

namespace edgeprune {

const PackingKernels packing_avx2 = {Isa::avx2, split, histogram, pack, unpack, accumulate, add, count_bits};

}  // namespace edgeprune
