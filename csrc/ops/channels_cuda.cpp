// The channels operators on a GPU: checks without looking at device memory, guard the device, launch.
#include "kernels/channels/channels_cuda.h"

#include "base/cuda.h"
#include "base/error.h"
#include "ops/build_info.h"
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
    std::vector<GatherTask> tasks;
    std::vector<AxisLimits> limits(calls.size());
    for (size_t i = 0; i < calls.size(); ++i) tasks.push_back(make_task(calls[i], false, limits[i].of));
    check_cuda("gather", channels_gather_cuda(tasks.data(), limits.data(), static_cast<int>(tasks.size()), stream));
}

void scatter_accumulate_many_cuda(const std::vector<ScatterCall>& calls, float weight, void* stream) {
    if (calls.empty()) return;
    for (size_t i = 0; i < calls.size(); ++i) check(calls[i], static_cast<int>(i), Device::cuda, false);
    for (const auto& call : calls) check_one_gpu("scatter_accumulate", calls[0].total, call.total);
    const CudaDeviceGuard guard("scatter_accumulate", calls[0].total.device_index);
    std::vector<ScatterTask> tasks;
    std::vector<AxisLimits> limits(calls.size());
    for (size_t i = 0; i < calls.size(); ++i) tasks.push_back(make_task(calls[i], weight, false, limits[i].of));
    check_cuda("scatter_accumulate",
               channels_scatter_cuda(tasks.data(), limits.data(), static_cast<int>(tasks.size()), stream));
}

int64_t channel_norms_workspace(const std::vector<NormsCall>& calls) {
    std::vector<NormsTask> tasks;
    for (const NormsCall& call : calls) tasks.push_back(make_task(call));
    return channels_norms_workspace(tasks.data(), static_cast<int>(tasks.size()));
}

void channel_norms_many_cuda(const std::vector<NormsCall>& calls, const View& workspace, void* stream) {
    const char* const op = "channel_norms";
    if (calls.empty()) return;
    for (const NormsCall& call : calls) check(call, Device::cuda);
    for (const NormsCall& call : calls) check_one_gpu(op, calls[0].x, call.x);
    if (workspace.dtype != DType::u8 || workspace.device != Device::cuda || !workspace.contiguous() ||
        workspace.size() < channel_norms_workspace(calls) || reinterpret_cast<uintptr_t>(workspace.data) % 8)
        fail("%s: the workspace must be contiguous uint8 on the GPU, as long as channel_norms_workspace says", op);
    check_one_gpu(op, calls[0].x, workspace);
    const CudaDeviceGuard guard(op, calls[0].x.device_index);
    std::vector<NormsTask> tasks;
    for (const NormsCall& call : calls) tasks.push_back(make_task(call));
    check_cuda(op, channels_norms_cuda(tasks.data(), static_cast<int>(tasks.size()), workspace.data, stream));
}

void merge_finish_many_cuda(const std::vector<FinishCall>& calls, void* stream) {
    if (calls.empty()) return;
    for (size_t i = 0; i < calls.size(); ++i) check(calls[i], static_cast<int>(i), Device::cuda);
    for (const auto& call : calls) check_one_gpu("merge_finish", calls[0].base, call.base);
    const CudaDeviceGuard guard("merge_finish", calls[0].base.device_index);
    std::vector<FinishTask> tasks;
    std::vector<int64_t> sizes;
    for (const FinishCall& call : calls) {
        tasks.push_back(make_task(call));
        sizes.push_back(call.base.size());
    }
    check_cuda("merge_finish",
               channels_finish_cuda(tasks.data(), sizes.data(), static_cast<int>(tasks.size()), stream));
}

#else

void gather_many_cuda(const std::vector<GatherCall>&, void*) { fail_no_cuda("gather"); }
void scatter_accumulate_many_cuda(const std::vector<ScatterCall>&, float, void*) { fail_no_cuda("scatter_accumulate"); }
int64_t channel_norms_workspace(const std::vector<NormsCall>&) { fail_no_cuda("channel_norms"); }
void channel_norms_many_cuda(const std::vector<NormsCall>&, const View&, void*) { fail_no_cuda("channel_norms"); }
void merge_finish_many_cuda(const std::vector<FinishCall>&, void*) { fail_no_cuda("merge_finish"); }

#endif

}  // namespace edgeprune
