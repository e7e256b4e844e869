// The packing operators on a GPU: the calls of packing.h with views of one device, the same bits. Nothing waits and
// nothing is allocated: `workspace` (uint8, at least as long as packing_cuda_workspace says, 16-byte aligned) is used
// from the call on until the stream has done it.
//
// What only the device can see (NaN, masks that keep another number of elements than there are values, ...) is noted
// in `status`, int32 words that were zero: see PackingStatus in kernels/packing/packing_cuda.h. Whoever waits for the
// stream can read it, and packing_cuda_check turns it into a sentence. Outputs are then unspecified, but no memory
// outside the tensors was touched.
#pragma once

#include <string>
#include <vector>

#include "ops/packing.h"

namespace edgeprune {

struct CudaCall {
    View workspace, status;
    void* stream;
};

// Bytes for `what` = "select" (select_largest, select_above), "pack", or "rows" (all others), of tensors with `sizes`
// elements. For "pack" in i8 with a mask or a residual: `kept`, how many each keeps, else empty.
int64_t packing_cuda_workspace(const std::string& what, const std::vector<int64_t>& sizes,
                               const std::vector<int64_t>& kept);

// Throws, with the operator's name, when words of a status that was copied to the host say so.
void packing_cuda_check(const char* op, const std::vector<uint32_t>& status, Coding coding);

void select_largest_cuda(const std::vector<View>& xs, int64_t k, const std::vector<View>& masks, const CudaCall& how);
void select_above_cuda(const std::vector<View>& xs, uint32_t threshold, const std::vector<View>& masks,
                       const CudaCall& how);
// How many each call keeps is taken from the length of its values.
void pack_many_cuda(const std::vector<PackCall>& calls, Coding coding, bool stochastic, uint64_t seed,
                    const CudaCall& how);
void unpack_cuda(const View& values, const View& scales, const View& mask, Coding coding, const View& out,
                 const CudaCall& how);
void accumulate_cuda(const View& total, const View& weight_sum, const View& values, const View& scales,
                     const View& mask, Coding coding, float weight, const CudaCall& how);
// counts: int64, one for each mask of a tensor with that many elements.
void mask_counts_cuda(const std::vector<View>& masks, const std::vector<int64_t>& sizes, const View& counts,
                      const CudaCall& how);
void mask_to_indices_cuda(const View& mask, int64_t n, const View& out, const CudaCall& how);
// out: zeros; a mask with its length rounded up to a multiple of 4 bytes.
void mask_from_indices_cuda(const View& indices, int64_t n, const View& out, const CudaCall& how);

}  // namespace edgeprune
