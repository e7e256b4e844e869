// The packing kernels on a GPU: many tensors a launch, the same bits as on the CPU (packing.h says which). Everything
// runs on the caller's stream, nothing waits and nothing is allocated: what a call needs besides its tensors lies in a
// workspace that the caller gives, and what only the device can see goes to status words that the caller reads when it
// waits anyway. All functions return a cudaError_t, 0 for success, and can be captured in a graph.
//
// Tensors are cut into tiles of kCudaTile elements. A launch of `prepare` writes the rows (one a tensor), the row of
// each tile and zeros into the workspace; the kernels behind it take a tile at a time.
#pragma once

#include <cstdint>

#include "kernels/packing/packing.h"

namespace edgeprune {

// 16 elements for each of 256 threads: enough loads in flight for the memory's latency, and an element's number within
// a tile is a thread's, a group's and a bit's by shifts.
constexpr int64_t kCudaTile = 4096;

// One tensor of a call. What an operator does not need is null or 0.
struct PackingRow {
    const float* x;
    float* residual;
    uint8_t* mask;        // read, or written by a selection; null: all kept
    uint8_t* values;      // read or written
    float* scales;        // read or written, i8
    float* out;           // unpack: out; accumulate: total
    float* weight_sum;    // accumulate
    int64_t n, kept;      // kept: as many as values has room for; none beyond is read or written
    int64_t first_tile;   // over all tensors of the call
    int64_t first_block;  // i8: the first block of 256 kept values, over all tensors of the call
    uint32_t key0, key1;  // of the random numbers
};

// Words of a status, each 0 or 0xFFFFFFFF minus the number of the first tensor it holds for.
enum PackingStatus { kStatusNan, kStatusNotFinite, kStatusKept, kStatusSpare, kStatusIndex, kStatusWords };

struct PackingCuda {
    const PackingRow* rows;  // on the host; first_tile and first_block filled in
    int count;
    int64_t tiles, blocks;  // over all rows; blocks: of i8
    void* workspace;        // on the device, 16-byte aligned
    uint32_t* status;       // on the device
    void* stream;
};

// Bytes of workspace.
int64_t packing_workspace_select(int64_t rows, int64_t tiles);
int64_t packing_workspace_rows(int64_t rows, int64_t tiles);                  // the other operators
int64_t packing_workspace_pack(int64_t rows, int64_t tiles, int64_t blocks);  // blocks: of i8 that are staged

int packing_select_cuda(const PackingCuda&, int64_t k);          // 1 <= k <= elements of all rows
int packing_above_cuda(const PackingCuda&, uint32_t threshold);  // magnitude bits >= threshold
int packing_pack_cuda(const PackingCuda&, Coding coding, bool stochastic);
int packing_unpack_cuda(const PackingCuda&, Coding coding);
int packing_accumulate_cuda(const PackingCuda&, Coding coding, float weight);
int packing_count_cuda(const PackingCuda&, int64_t* counts);     // counts: on the device, one a row
int packing_indices_cuda(const PackingCuda&, int64_t* indices);  // one row, indices: on the device, row.kept long
// mask: zeros, a multiple of 4 bytes long and aligned; one row of n elements, indices and their number.
int packing_from_indices_cuda(const PackingCuda&, const int64_t* indices, int64_t count, uint32_t* mask);

}  // namespace edgeprune
