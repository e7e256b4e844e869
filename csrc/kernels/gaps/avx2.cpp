#include "kernels/gaps/gaps_loops.h"

namespace edgeprune {

const GapsKernels gaps_avx2 = {Isa::avx2, measure, measure_bytes, encode, decode};

}  // namespace edgeprune
