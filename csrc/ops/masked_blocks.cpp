#include "ops/masked_blocks.h"

#include "base/cuda.h"
#include "base/error.h"
#include "ops/build_info.h"

namespace edgeprune {

#ifdef EDGEPRUNE_CUDA

namespace {

const char* const kOp = "masked_blocks (cuda)";

const uint16_t* words(const BlocksCall& call, const char* name, const View& view, int64_t size) {
    if (view.dtype != call.x.dtype || view.device != Device::cuda || view.device_index != call.x.device_index)
        fail("%s: %s must be of the type and on the GPU of x", kOp, name);
    if (!view.contiguous()) fail("%s: %s must be contiguous, pictures with channels last", kOp, name);
    if (view.size() != size)
        fail("%s: %s has shape %s; %lld elements are due", kOp, name, shape_text(view).c_str(),
             static_cast<long long>(size));
    if (reinterpret_cast<uintptr_t>(view.data) % 16)
        fail("%s: %s must lie at a multiple of 16 bytes; clone it", kOp, name);
    return static_cast<const uint16_t*>(view.data);
}

const int32_t* int32s(const BlocksCall& call, int part, int64_t size) {
    const View& view = call.plan[static_cast<size_t>(part)];
    if (view.dtype != DType::i32 || view.device != Device::cuda || view.device_index != call.x.device_index ||
        !view.contiguous() || view.size() != size)
        fail("%s: part %d of the plan must be %lld contiguous int32 on the GPU of x", kOp, part,
             static_cast<long long>(size));
    return static_cast<const int32_t*>(view.data);
}

BlocksPlan plan_of(const BlocksCall& call, int64_t rows) {
    if (call.block != 32 && call.block != 64) fail("%s: blocks of %d; 32 and 64 are known", kOp, call.block);
    if (call.filter.groups != 1 || call.filter.outputs % call.block || call.filter.inputs % call.block)
        fail("%s: blocks of %d ask for one group and channels in multiples of it", kOp, call.block);
    BlocksPlan plan{};
    plan.block = call.block;
    plan.block_rows = static_cast<int>(rows / call.block);
    plan.kept = static_cast<int>(call.plan[1].size());
    plan.first = int32s(call, 0, plan.block_rows + 1);
    plan.row = int32s(call, 1, plan.kept);
    plan.source = int32s(call, 2, plan.kept);
    plan.tap = int32s(call, 3, plan.kept);
    plan.at = int32s(call, 4, plan.kept);
    plan.step = int32s(call, 5, plan.kept);
    return plan;
}

struct Sizes {
    BlocksGeometry geometry;
    int64_t x, y;  // elements
};

Sizes sizes_of(const BlocksCall& call, bool backward) {
    const FilterShape& f = call.filter;
    check_filter(kOp, f);
    if (call.x.dtype != DType::f16 && call.x.dtype != DType::bf16) fail("%s: x must be float16 or bfloat16", kOp);
    Sizes sizes{};
    BlocksGeometry& g = sizes.geometry;
    g.images = static_cast<int>(call.x_shape[0]);
    g.channels = static_cast<int>(backward ? f.outputs : f.inputs);
    g.rows = static_cast<int>(backward ? f.inputs : f.outputs);
    g.taps_w = static_cast<int>(f.taps[1]);
    g.backward = backward;
    sizes.x = call.x_shape[0] * f.inputs, sizes.y = call.x_shape[0] * f.outputs;
    for (int d = 0; d < 2; ++d) {
        const int64_t x_size = call.x_shape[2 + d];
        const int64_t span = x_size + 2 * call.padding[d] - (f.taps[d] - 1) * f.dilation[d] - 1;
        if (span < 0 || call.padding[d] < 0) fail("%s: the pictures are smaller than the filter", kOp);
        const int64_t y_size = span / f.stride[d] + 1;
        sizes.x *= x_size, sizes.y *= y_size;
        g.in_size[d] = static_cast<int>(backward ? y_size : x_size);
        g.out_size[d] = static_cast<int>(backward ? x_size : y_size);
        g.stride[d] = static_cast<int>(f.stride[d]);
        g.padding[d] = static_cast<int>(call.padding[d]);
        g.dilation[d] = static_cast<int>(f.dilation[d]);
    }
    if (sizes.x > INT32_MAX || sizes.y > INT32_MAX) fail("%s: a batch of more than 2^31 elements; split it", kOp);
    return sizes;
}

}  // namespace

void run_masked_blocks(const BlocksCall& call, bool backward, void* stream) {
    const Sizes sizes = sizes_of(call, backward);
    const BlocksPlan plan = plan_of(call, sizes.geometry.rows);
    const uint16_t *const x = words(call, "x", call.x, sizes.x), *const y = words(call, "y", call.y, sizes.y);
    const uint16_t* const w = words(call, "weights", call.weights, int64_t{plan.kept} * plan.block * plan.block);
    const View& bias = call.bias;
    if (bias.data && (bias.dtype != DType::f32 || bias.device != Device::cuda || !bias.contiguous() ||
                      bias.size() != call.filter.outputs))
        fail("%s: bias must be %lld contiguous float32 on the GPU", kOp, static_cast<long long>(call.filter.outputs));
    const CudaDeviceGuard guard(kOp, call.x.device_index);
    check_cuda(kOp, masked_blocks_cuda({sizes.geometry, plan, backward ? y : x, w,
                                        backward ? nullptr : static_cast<const float*>(bias.data),
                                        const_cast<uint16_t*>(backward ? x : y), call.x.dtype == DType::bf16},
                                       stream));
}

void run_masked_block_dots(const BlocksCall& call, int splits, void* stream) {
    const Sizes sizes = sizes_of(call, false);
    const BlocksPlan plan = plan_of(call, sizes.geometry.rows);
    const int64_t kept = int64_t{plan.kept} * plan.block * plan.block;
    const uint16_t *const x = words(call, "x", call.x, sizes.x), *const y = words(call, "y", call.y, sizes.y);
    const uint16_t* const dw = words(call, "weights", call.weights, kept);
    if (splits < 1 || splits > 65535 || call.partial.dtype != DType::f32 || call.partial.device != Device::cuda ||
        call.partial.size() != splits * kept)
        fail("%s: the workspace must be float32, one number for each split and kept weight", kOp);
    const CudaDeviceGuard guard(kOp, call.x.device_index);
    check_cuda(kOp,
               masked_block_dots_cuda({sizes.geometry, plan, x, y, const_cast<uint16_t*>(dw),
                                       static_cast<float*>(call.partial.data), splits, call.x.dtype == DType::bf16},
                                      stream));
}

#else

void run_masked_blocks(const BlocksCall&, bool, void*) { fail_no_cuda("masked_blocks"); }
void run_masked_block_dots(const BlocksCall&, int, void*) { fail_no_cuda("masked_blocks"); }

#endif

}  // namespace edgeprune
