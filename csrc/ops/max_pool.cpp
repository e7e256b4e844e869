#include "ops/max_pool.h"

#include "base/error.h"
#include "base/isa.h"
#include "base/scratch.h"
#include "base/threads.h"
#include "kernels/max_pool/max_pool.h"

namespace edgeprune {
namespace {

#define EDGEPRUNE_ENTRY(isa) &max_pool_##isa,
const PoolKernels* const kVariants[] = {EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_ENTRY)};
#undef EDGEPRUNE_ENTRY

const char* const kOp = "max_pool";
constexpr int64_t kPiece = 16 * 1024;  // elements of x: a first-level cache holds them and their results

void check(const View& view, DType dtype, const char* name, const char* type) {
    if (view.dtype != dtype || view.device != Device::cpu || view.dims < 2 || !view.contiguous())
        fail("%s: %s must be a contiguous %s tensor (..., height, width) on the CPU", kOp, name, type);
}

void check_windows(const View& whole, const View& windows, const char* name, int64_t size) {
    bool fits = windows.dims == whole.dims;
    for (int d = 0; fits && d < whole.dims; ++d)
        fits = windows.shape[d] == whole.shape[d] - (d >= whole.dims - 2 ? size - 1 : 0);
    if (!fits)
        fail("%s: %s has shape %s, which is not that of the windows of %lld in %s", kOp, name,
             shape_text(windows).c_str(), static_cast<long long>(size), shape_text(whole).c_str());
}

void check_size(const View& whole, int64_t size) {
    const int64_t height = whole.shape[whole.dims - 2], width = whole.shape[whole.dims - 1];
    if (size < 1 || size > kPoolMaxSize || size > height || size > width)
        fail("%s: a window of %lld does not lie in %s; give 1 to %lld, and no more than height and width", kOp,
             static_cast<long long>(size), shape_text(whole).c_str(), static_cast<long long>(kPoolMaxSize));
}

// Calls work(first, last) for pieces of the planes of `whole`.
template <class Work>
void over_planes(const View& whole, int threads, Work work) {
    const int64_t plane = whole.shape[whole.dims - 2] * whole.shape[whole.dims - 1];
    const int64_t planes = plane ? whole.size() / plane : 0, each = plane < kPiece ? kPiece / (plane ? plane : 1) : 1;
    parallel_pieces(threads, (planes + each - 1) / each, [&](int64_t piece) {
        const int64_t first = piece * each;
        work(first, first + each < planes ? first + each : planes);
    });
}

}  // namespace

void max_pool(const PoolCall& call, int64_t size, const CpuOptions& options) {
    check(call.x, DType::f32, "x", "float32");
    check(call.out, DType::f32, "out", "float32");
    check(call.where, DType::u8, "where", "uint8");
    if (call.out.read_only || call.where.read_only) fail("%s: out or where is read-only", kOp);
    check_size(call.x, size);
    check_windows(call.x, call.out, "out", size);
    check_windows(call.x, call.where, "where", size);
    const PoolKernels& kernels = choose_variant(kOp, kVariants, options.variant);
    const PoolTask task{static_cast<const float*>(call.x.data), static_cast<float*>(call.out.data),
                        static_cast<uint8_t*>(call.where.data), call.x.shape[call.x.dims - 2],
                        call.x.shape[call.x.dims - 1],          size};
    over_planes(call.x, options.threads, [&](int64_t first, int64_t last) { kernels.forward(task, first, last); });
}

void max_pool_backward(const PoolBackwardCall& call, int64_t size, const CpuOptions& options) {
    check(call.grad, DType::f32, "grad", "float32");
    check(call.where, DType::u8, "where", "uint8");
    check(call.dx, DType::f32, "dx", "float32");
    if (call.dx.read_only) fail("%s: dx is read-only", kOp);
    check_size(call.dx, size);
    check_windows(call.dx, call.grad, "grad", size);
    check_windows(call.dx, call.where, "where", size);
    const PoolKernels& kernels = choose_variant(kOp, kVariants, options.variant);
    const int64_t height = call.dx.shape[call.dx.dims - 2], width = call.dx.shape[call.dx.dims - 1];
    const PoolBackwardTask task{static_cast<const float*>(call.grad.data),
                                static_cast<const uint8_t*>(call.where.data),
                                static_cast<float*>(call.dx.data),
                                height,
                                width,
                                size};
    const int64_t padded = (height - size + 1) * (width + size - 1);
    over_planes(call.dx, options.threads, [&](int64_t first, int64_t last) {
        float* memory = scratch(Slot::gradients, 2 * padded);
        kernels.backward(task, {memory, memory + padded}, first, last);
    });
}

}  // namespace edgeprune
