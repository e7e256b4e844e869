#include "kernels/gaps/gaps_loops.h"

namespace edgeprune {

const GapsKernels gaps_avx512 = {Isa::avx512, measure, measure_bytes, encode, decode};

}  // namespace edgeprune
