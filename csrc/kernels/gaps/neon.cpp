#include "kernels/gaps/gaps_loops.h"

namespace edgeprune {

const GapsKernels gaps_neon = {Isa::neon, measure, measure_bytes, encode, decode};

}  // namespace edgeprune
