#define EDGEPRUNE_SIMD_NEON
#include "kernels/packing/packing_simd.h"

namespace edgeprune {

const PackingKernels packing_neon = {Isa::neon, split, histogram, pack, unpack, accumulate, add, count_bits};

}  // namespace edgeprune
