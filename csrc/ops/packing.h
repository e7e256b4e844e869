// Packing on views: lengths checked once, work cut for threads, variant chosen. Words, codings and masks:
// kernels/packing/packing.h. Tensors are float32 on the CPU, contiguous, taken flat; masks and values are uint8.
// All throw Error with one sentence, before anything is written unless said otherwise. Results depend neither on the
// number of threads nor on the variant. The same on a GPU: packing_cuda.h.
#pragma once

#include <string>
#include <vector>

#include "base/view.h"
#include "kernels/packing/packing.h"

namespace edgeprune {

struct PackingOptions {
    int threads = 1;
    std::string variant;  // empty: the best allowed one
};

// ---- masks (packing_masks.cpp) --------------------------------------------------------------------------------------

// Number of set bits.
int64_t mask_count(const View& mask, const PackingOptions& options);
// The same for the mask of n elements (without data: n); throws for another length and for spare bits that are set.
int64_t mask_kept(const char* op, const View& mask, int64_t n, const PackingOptions& options);
// out: int64, as many as are kept.
void mask_to_indices(const View& mask, int64_t n, const View& out, const PackingOptions& options);
// indices: int64, in any order, each in 0 .. n - 1; out: a mask.
void mask_from_indices(const View& indices, int64_t n, const View& out);

// ---- selection (packing_select.cpp) ---------------------------------------------------------------------------------

// masks: the k elements of largest magnitude over all xs, ties to the lower (tensor, index). Throws, with masks partly
// written, when an element is NaN.
void select_largest(const std::vector<View>& xs, int64_t k, const std::vector<View>& masks,
                    const PackingOptions& options);
// The elements with magnitude bits >= `threshold` (the bits of a float that is not negative).
void select_above(const std::vector<View>& xs, uint32_t threshold, const std::vector<View>& masks,
                  const PackingOptions& options);

// ---- pack, unpack, accumulate (packing.cpp) -------------------------------------------------------------------------

Coding coding_named(const char* op, const std::string& name);

// Views without data stand for: no mask (all kept), no scales, no residual; x without data: the residual holds x plus
// residual already.
struct PackCall {
    View x, residual, mask, values, scales;
};
// Throws, with outputs partly written, when a value cannot be held. Tensor i rounds with seed + i.
void pack_many(const std::vector<PackCall>& calls, Coding coding, bool stochastic, uint64_t seed,
               const PackingOptions& options);

void unpack(const View& values, const View& scales, const View& mask, Coding coding, const View& out,
            const PackingOptions& options);

void accumulate(const View& total, const View& weight_sum, const View& values, const View& scales, const View& mask,
                Coding coding, float weight, const PackingOptions& options);

// sums[i] += xs[i].
void add_many(const std::vector<View>& xs, const std::vector<View>& sums, const PackingOptions& options);

}  // namespace edgeprune
