// Images on their way into planes and back. Used by ops/masked_sweep.cpp and ops/masked_dots.cpp.
#pragma once

#include "ops/masked_layout.h"

namespace edgeprune {

// Packs channels [first, last) of image group `group`; zeroes what no pixel fills (and the slack with the last
// channel).
void pack_images(const Images& images, int64_t group, const Planes& planes, int64_t first, int64_t last,
                 const MaskedKernels& kernels, float* packed);

// pack_images for several groups, all channels, into one place after another.
void pack_groups(const Images& images, const Planes& planes, int64_t group, int64_t groups,
                 const MaskedKernels& kernels, int threads, float* packed);

// The two ways between `count` samples from sample `first` on that lie side by side (images.side > 1), channels
// [c0, c1), and as many rows of `step` floats, one for each channel. Packing zeroes what follows up to `width`.
void pack_side(const Images& images, int64_t first, int64_t count, int64_t c0, int64_t c1, const MaskedKernels& kernels,
               float* packed, int64_t step, int64_t width);
void unpack_side(const Images& images, int64_t first, int64_t count, int64_t c0, int64_t c1,
                 const MaskedKernels& kernels, const float* packed, int64_t step);

}  // namespace edgeprune
