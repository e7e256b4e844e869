#include "kernels/gaps/gaps_loops.h"

namespace edgeprune {

const GapsKernels gaps_scalar = {Isa::scalar, measure, measure_bytes, encode, decode};

}  // namespace edgeprune
