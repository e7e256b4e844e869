// The channels operators on a GPU: checks without looking at device memory, guard the device, launch.
#include "base/cuda.h"
#include "base/error.h"
#include "ops/channels_tasks.h"

namespace edgeprune {

#ifdef EDGEPRUNE_CUDA

namespace {

// One guard serves a whole call, so all of its tensors must be on one GPU.
void check_one_gpu(const char* op, const View& first, const View& other) {
    if (first.device_index != other.device_index)
        fail("%s: tensors on GPU %d and GPU %d in one call; make a call for each", op, first.device_index,
             other.device_index);
}

}  // namespace

void gather_many_cuda(const std::vector<GatherCall>& calls, void* stream) {
    if (calls.empty()) return;
    for (size_t i = 0; i < calls.size(); ++i) check(calls[i], static_cast<int>(i), Device::cuda, false);
    for (const auto& call : calls) check_one_gpu("gather", calls[0].x, call.x);
    const CudaDeviceGuard guard("gather", calls[0].x.device_index);
    for (const GatherCall& call : calls) {
        int64_t limit[kChannelsAxes] = {};
        const GatherTask task = make_task(call, false, limit);
        check_cuda("gather", channels_gather_cuda(task, limit, stream));
    }
}

void scatter_accumulate_many_cuda(const std::vector<ScatterCall>& calls, float weight, void* stream) {
    if (calls.empty()) return;
    for (size_t i = 0; i < calls.size(); ++i) check(calls[i], static_cast<int>(i), Device::cuda, false);
    for (const auto& call : calls) check_one_gpu("scatter_accumulate", calls[0].total, call.total);
    const CudaDeviceGuard guard("scatter_accumulate", calls[0].total.device_index);
    for (const ScatterCall& call : calls) {
        int64_t limit[kChannelsAxes] = {};
        const ScatterTask task = make_task(call, weight, false, limit);
        check_cuda("scatter_accumulate", channels_scatter_cuda(task, limit, stream));
    }
}

void channel_norms_cuda(const NormsCall& call, void* stream) {
    check(call, Device::cuda);
    const CudaDeviceGuard guard("channel_norms", call.x.device_index);
    check_cuda("channel_norms", channels_norms_cuda(make_task(call), stream));
}

void merge_finish_many_cuda(const std::vector<FinishCall>& calls, void* stream) {
    if (calls.empty()) return;
    for (size_t i = 0; i < calls.size(); ++i) check(calls[i], static_cast<int>(i), Device::cuda);
    for (const auto& call : calls) check_one_gpu("merge_finish", calls[0].base, call.base);
    const CudaDeviceGuard guard("merge_finish", calls[0].base.device_index);
    for (const FinishCall& call : calls)
        check_cuda("merge_finish", channels_finish_cuda(make_task(call), call.base.size(), stream));
}

#else

namespace {
[[noreturn]] void no_cuda(const char* op) {
    fail("%s: this build of edgeprune has no CUDA kernels (%s); move the tensors to the CPU or rebuild with nvcc", op,
         EDGEPRUNE_WHY_NO_CUDA);
}
}  // namespace

void gather_many_cuda(const std::vector<GatherCall>&, void*) { no_cuda("gather"); }
void scatter_accumulate_many_cuda(const std::vector<ScatterCall>&, float, void*) { no_cuda("scatter_accumulate"); }
void channel_norms_cuda(const NormsCall&, void*) { no_cuda("channel_norms"); }
void merge_finish_many_cuda(const std::vector<FinishCall>&, void*) { no_cuda("merge_finish"); }

#endif

}  // namespace edgeprune
