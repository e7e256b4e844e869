#define EDGEPRUNE_SIMD_AVX2
#include "kernels/channels/channels_simd.h"

namespace edgeprune {

const ChannelsKernels channels_avx2 = {Isa::avx2, gather, scatter, norms, finish};

}  // namespace edgeprune
