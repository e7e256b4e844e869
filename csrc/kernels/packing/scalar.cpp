#define EDGEPRUNE_SIMD_SCALAR
#include "kernels/packing/packing_simd.h"

namespace edgeprune {

const PackingKernels packing_scalar = {Isa::scalar, split, histogram, pack, unpack, accumulate, add, count_bits};

}  // namespace edgeprune
