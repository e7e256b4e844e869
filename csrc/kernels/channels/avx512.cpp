#define EDGEPRUNE_SIMD_AVX512
#include "kernels/channels/channels_simd.h"

namespace edgeprune {

const ChannelsKernels channels_avx512 = {Isa::avx512, gather, scatter, norms, finish};

}  // namespace edgeprune
