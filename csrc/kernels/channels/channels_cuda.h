// The channels kernels on a GPU: the tasks of channels.h with device pointers, many a launch, on the caller's stream,
// without waiting and without allocating. Descriptors travel as a launch's arguments, so calls can be captured in a
// graph. All functions return a cudaError_t, 0 for success.
//
// Same roundings as on the CPU, except for the order of the sums in norms, which depends on the shape alone: two runs
// give the same bits, and so do two GPUs.
#pragma once

#include "kernels/channels/channels.h"

namespace edgeprune {

// An index outside [0, limit[axis]) is never followed: gather writes NaN, scatter leaves the element out.
struct AxisLimits {
    int64_t of[kChannelsAxes];
};

int channels_gather_cuda(const GatherTask* tasks, const AxisLimits* limits, int count, void* stream);
int channels_scatter_cuda(const ScatterTask* tasks, const AxisLimits* limits, int count, void* stream);
int channels_finish_cuda(const FinishTask* tasks, const int64_t* sizes, int count, void* stream);

// workspace: on the device, as many bytes as the second function says, 8-byte aligned.
int channels_norms_cuda(const NormsTask* tasks, int count, void* workspace, void* stream);
int64_t channels_norms_workspace(const NormsTask* tasks, int count);

}  // namespace edgeprune
