#define EDGEPRUNE_SIMD_SCALAR
#include "kernels/channels/channels_simd.h"

namespace edgeprune {

const ChannelsKernels channels_scalar = {Isa::scalar, gather, scatter, norms, finish};

}  // namespace edgeprune
