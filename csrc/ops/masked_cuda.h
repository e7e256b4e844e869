// The masked operators on a GPU. Two steps that depend on shapes and the mask alone, kept by the caller: `arrange`
// chooses tiles for one call's shapes, `plan_entries` sorts the kept weights into them (on the host). The third,
// `run_*`, checks shapes and launches on the caller's stream, without waiting and without allocating.
#pragma once

#include <vector>

#include "base/view.h"
#include "kernels/masked/cuda.h"
#include "ops/sparsity_pattern.h"

namespace edgeprune {

enum class MaskedWork { forward, input_gradient, weight_gradient };

// What the choice of tiles goes by: multiprocessors, and shared memory of one of two blocks of threads on each.
struct CudaLimits {
    int multiprocessors = 0;
    int shared_bytes = 0;
};
CudaLimits cuda_limits(int device);

// One launch: everything but the pointers.
struct Arrangement {
    CudaGeometry geometry{};
    CudaTile tile{};
    int rows_per_thread = 0, positions_per_lane = 0, splits = 1;
    int channels_per_block = 0;  // 0: a patch does not fit into shared memory; take the dense product

    bool empty() const { return geometry.grid[0] < 1 || geometry.grid[1] < 1; }  // no pixel belongs to this phase
};

// For x (N, inputs, H, W). `phase` counts the stride's phases of the input gradient, 0 otherwise. `channels_per_block`
// 0 chooses it; a smaller one than was chosen before is for a plan whose fullest tile did not fit.
Arrangement arrange(const FilterShape& filter, const int64_t (&padding)[2], const int64_t (&x_shape)[4],
                    MaskedWork work, int phase, int64_t kept, const CudaLimits& limits, int channels_per_block);

// Launches that an input gradient takes: one for each phase of the stride.
int phases_of(const FilterShape& filter);

struct PlanEntries {
    int rows_per_tile = 0, channels_per_block = 0, longest = 0;
    std::vector<int32_t> order, column, tile_first, tile_block, tile_row, row_first;
    std::vector<int32_t> segments;
};
// From the compiled pattern on the host (columns and starts, or their transposed forms with t_order).
PlanEntries plan_entries(const SparsityPattern& pattern, MaskedWork work, int phase, int rows_per_tile,
                         int channels_per_block);

// Bytes of shared memory that a launch takes.
int64_t shared_bytes(const Arrangement& arrangement, MaskedWork work, int longest);

// Tensors of a call, all f32 contiguous on one GPU. forward: x, weights, bias, y; input_gradient: y is read, x written;
// weight_gradient: weights are written. `workspace`: pairs (8 bytes an entry), or partial sums (4 bytes an entry and
// split) when there is more than one split.
struct MaskedCudaCall {
    View x, weights, bias, y, workspace;
};
void run_masked_cuda(const Arrangement& arrangement, const CudaPlan& plan, const MaskedCudaCall& call, MaskedWork work,
                     void* stream);

// A linear layer on at most kFewSamples samples, on the pattern's own arrays (starts' first and last line).
struct FewCall {
    const int32_t *columns, *begin, *end, *order;
    View x, weights, bias, y;  // as the work reads and writes them: x (samples, inputs), y (samples, outputs)
};
void run_few_cuda(const FilterShape& filter, const FewCall& call, MaskedWork work, void* stream);

}  // namespace edgeprune
