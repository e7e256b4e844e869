// Gap codes on views (kernels/gaps/gaps.h): the best parameter chosen, lengths checked, hostile data refused. All throw
// Error with one sentence.
#pragma once

#include "ops/packing.h"

namespace edgeprune {

struct GapPlan {
    int64_t kept;
    int parameter;
    int64_t bytes;
};
// The parameter with the shortest code, the lowest of several. `mask` of n elements; nothing kept: no bytes, parameter
// 0.
GapPlan plan_gaps(const View& mask, int64_t n, const PackingOptions& options);
// out: uint8, of the length that the plan says.
void encode_gaps(const View& mask, int64_t n, const GapPlan& plan, const View& out, const PackingOptions& options);
// mask: zeros before, ceil(n / 8) bytes. Allocates nothing. On an error the mask is partly written.
void decode_gaps(const View& data, int64_t count, int64_t n, int64_t parameter, const View& mask,
                 const PackingOptions& options);

}  // namespace edgeprune
