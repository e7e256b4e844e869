#define EDGEPRUNE_SIMD_NEON
#include "kernels/channels/channels_simd.h"

namespace edgeprune {

const ChannelsKernels channels_neon = {Isa::neon, gather, scatter, norms, finish};

}  // namespace edgeprune
