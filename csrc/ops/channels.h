// The channels operators on views: shapes checked once, work split over threads, variant chosen. Contracts of the
// arithmetic: kernels/channels/channels.h. All throw Error with one sentence; nothing is written before all is checked.
#pragma once

#include <string>
#include <vector>

#include "base/view.h"

namespace edgeprune {

// Kept positions of one dimension; data == null keeps all of it.
struct Index {
    const int64_t* data = nullptr;
    int64_t size = 0;
};

struct GatherCall {
    View x;                    // f32, any strides
    std::vector<Index> index;  // one for each dimension of x; any order, repeats allowed
    View out;                  // f32, contiguous, shape as the index says
};

struct ScatterCall {
    View total, count;         // f32, same shape, any strides without overlap
    View x;                    // f32, shape as the index says
    std::vector<Index> index;  // one for each dimension of total; strictly increasing
};

struct NormsCall {
    View x;  // f32, contiguous
    int dim = 0;
    int p = 2;
    View out;  // f32 (x.shape[dim],), contiguous
};

struct FinishCall {
    View base, total, count, out;  // f32, same shape, contiguous
};

struct CpuOptions {
    int threads = 1;
    std::string variant;  // empty: the best allowed one
};

void gather_many(const std::vector<GatherCall>& calls, const CpuOptions& options);
void scatter_accumulate_many(const std::vector<ScatterCall>& calls, float weight, const CpuOptions& options);
void channel_norms_many(const std::vector<NormsCall>& calls, const CpuOptions& options);
void merge_finish_many(const std::vector<FinishCall>& calls, const CpuOptions& options);

// The same on a GPU: all views and index data are of one device, `stream` is the caller's. The index values cannot be
// checked without waiting for the device; whoever has them on the host checks them there with check_index.
void gather_many_cuda(const std::vector<GatherCall>& calls, void* stream);
void scatter_accumulate_many_cuda(const std::vector<ScatterCall>& calls, float weight, void* stream);
// workspace: uint8, as many bytes as channel_norms_workspace says, in use until the stream has done the call.
void channel_norms_many_cuda(const std::vector<NormsCall>& calls, const View& workspace, void* stream);
int64_t channel_norms_workspace(const std::vector<NormsCall>& calls);
void merge_finish_many_cuda(const std::vector<FinishCall>& calls, void* stream);

// Throws unless all positions lie in 0..limit-1 and, when asked for, are strictly increasing.
void check_index(const char* op, int tensor, int dim, const Index& index, int64_t limit, bool increasing);

}  // namespace edgeprune
