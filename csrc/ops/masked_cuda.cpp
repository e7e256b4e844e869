// The masked operators on a GPU: checks without looking at device memory, guard the device, launch.
#include "ops/masked_cuda.h"

#include <algorithm>

#include "base/cuda.h"
#include "base/error.h"
#include "ops/build_info.h"

namespace edgeprune {

#ifdef EDGEPRUNE_CUDA

namespace {

constexpr int kReserved = 1024;  // bytes of shared memory that the system keeps of each block of threads

const char* name_of(MaskedWork work) {
    switch (work) {
        case MaskedWork::forward:
            return "masked_forward (cuda)";
        case MaskedWork::input_gradient:
            return "masked_input_gradient (cuda)";
        default:
            return "masked_weight_gradient (cuda)";
    }
}

void check_floats(const char* op, const char* name, const View& view, int64_t size, int device) {
    if (view.dtype != DType::f32 || view.device != Device::cuda || view.device_index != device || !view.contiguous())
        fail("%s: %s must be contiguous float32 on GPU %d", op, name, device);
    if (view.size() != size)
        fail("%s: %s has shape %s; %lld elements are due", op, name, shape_text(view).c_str(),
             static_cast<long long>(size));
}

}  // namespace

CudaLimits cuda_limits(int device) {
    const CudaProperties found = cuda_properties("masked", device);
    return {found.multiprocessors, std::min(found.shared_per_block, found.shared_per_multiprocessor / 2 - kReserved)};
}

void run_masked_cuda(const Arrangement& a, const CudaPlan& plan, const MaskedCudaCall& call, MaskedWork work,
                     void* stream) {
    const char* const op = name_of(work);
    const CudaGeometry& g = a.geometry;
    const bool dots = work == MaskedWork::weight_gradient, backward = work == MaskedWork::input_gradient;
    const int device = call.x.device_index;
    const int64_t in = int64_t{g.images} * g.channels * g.in_size[0] * g.in_size[1];
    const int64_t out = int64_t{g.images} * g.rows * g.out_size[0] * g.out_size[1];
    check_floats(op, "x", call.x, backward ? out : in, device);
    check_floats(op, "y", call.y, backward ? in : out, device);
    check_floats(op, "weights", call.weights, call.weights.size(), device);
    if (call.bias.data) check_floats(op, "bias", call.bias, g.rows, device);
    if (reinterpret_cast<uintptr_t>(backward ? call.x.data : call.y.data) % 16)
        fail("%s: the result must lie at a multiple of 16 bytes", op);
    const int64_t words = dots ? (a.splits > 1 ? int64_t{a.splits} * plan.entries : 0) : 2ll * plan.entries;
    if (words) check_floats(op, "workspace", call.workspace, words, device);
    const CudaDeviceGuard guard(op, device);
    if (dots) {
        DotsCuda task{g,
                      a.tile,
                      plan,
                      static_cast<const float*>(call.x.data),
                      static_cast<const float*>(call.y.data),
                      static_cast<float*>(call.weights.data),
                      static_cast<float*>(call.workspace.data),
                      a.splits};
        return check_cuda(op, masked_dots_cuda(task, a.rows_per_thread, stream));
    }
    CorrelateCuda task{g,
                       a.tile,
                       plan,
                       static_cast<const float*>(backward ? call.y.data : call.x.data),
                       static_cast<const float*>(call.weights.data),
                       static_cast<const float*>(call.bias.data),
                       static_cast<float*>(backward ? call.x.data : call.y.data),
                       static_cast<uint64_t*>(call.workspace.data)};
    check_cuda(op, masked_correlate_cuda(task, a.rows_per_thread, a.positions_per_lane, stream));
}

void run_few_cuda(const FilterShape& f, const FewCall& call, MaskedWork work, void* stream) {
    const char* const op = name_of(work);
    const int device = call.x.device_index;
    const auto inputs = static_cast<int>(f.inputs), outputs = static_cast<int>(f.outputs);
    const int64_t samples = call.x.size() / std::max<int64_t>(f.inputs, 1);
    check_floats(op, "x", call.x, samples * f.inputs, device);
    check_floats(op, "y", call.y, samples * f.outputs, device);
    check_floats(op, "weights", call.weights, call.weights.size(), device);
    if (call.bias.data) check_floats(op, "bias", call.bias, f.outputs, device);
    const CudaDeviceGuard guard(op, device);
    const auto n = static_cast<int>(samples);
    auto *const x = static_cast<float*>(call.x.data), *const y = static_cast<float*>(call.y.data);
    auto* const w = static_cast<float*>(call.weights.data);
    if (work == MaskedWork::weight_gradient)
        return check_cuda(
            op, masked_few_outer_cuda({call.columns, call.begin, call.end, outputs, inputs, n, y, x, w}, stream));
    if (samples > kFewSamples) fail("%s: %d samples at most on this way", op, kFewSamples);
    if (work == MaskedWork::forward)
        return check_cuda(op, masked_few_rows_cuda({call.columns, call.begin, call.end, nullptr, outputs, inputs, n, w,
                                                    x, static_cast<const float*>(call.bias.data), y},
                                                   stream));
    check_cuda(op, masked_few_rows_cuda(
                       {call.columns, call.begin, call.end, call.order, inputs, outputs, n, w, y, nullptr, x}, stream));
}

#else

CudaLimits cuda_limits(int) { fail_no_cuda("masked"); }
void run_masked_cuda(const Arrangement&, const CudaPlan&, const MaskedCudaCall&, MaskedWork, void*) {
    fail_no_cuda("masked");
}
void run_few_cuda(const FilterShape&, const FewCall&, MaskedWork, void*) { fail_no_cuda("masked"); }

#endif

}  // namespace edgeprune
