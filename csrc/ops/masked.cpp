#include "ops/masked.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "base/scratch.h"
#include "base/threads.h"
#include "ops/masked_few.h"
#include "ops/masked_sweep.h"

namespace edgeprune {
namespace {

#define EDGEPRUNE_ENTRY(isa) &masked_##isa,
const MaskedKernels* const kVariants[] = {EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_ENTRY)};
#undef EDGEPRUNE_ENTRY

// ---- checks -------------------------------------------------------------------------------------------------------

long long number(int64_t n) { return static_cast<long long>(n); }

void check_floats(const char* op, const char* name, const View& view) {
    if (view.dtype != DType::f32 || view.device != Device::cpu) fail("%s: %s must be float32 on the CPU", op, name);
    if (!view.contiguous()) fail("%s: %s must be contiguous", op, name);
}

// Shapes agree and every number of the pattern stays inside; the pattern itself comes from compile_pattern.
void check(const char* op, const MaskedCall& call) {
    const FilterShape& f = call.pattern.filter;
    check_filter(op, f);
    check_floats(op, "x", call.x);
    check_floats(op, "y", call.y);
    check_floats(op, "weights", call.weights);
    if (call.x.dims != 4 || call.x.shape[1] != f.inputs)
        fail("%s: x has shape %s; the filter takes (N, %lld, H, W)", op, shape_text(call.x).c_str(), number(f.inputs));
    if (call.weights.dims != 1 || call.weights.shape[0] != call.pattern.kept)
        fail("%s: %s compact weights for a pattern that keeps %lld", op, shape_text(call.weights).c_str(),
             number(call.pattern.kept));
    if (call.bias.data) {
        check_floats(op, "bias", call.bias);
        if (call.bias.size() != f.outputs)
            fail("%s: bias has shape %s; the filter has %lld outputs", op, shape_text(call.bias).c_str(),
                 number(f.outputs));
    }
    int64_t out[2];
    for (int d = 0; d < 2; ++d) {
        if (call.padding[d] < 0) fail("%s: padding %lld; it must not be negative", op, number(call.padding[d]));
        const int64_t span = call.x.shape[2 + d] + 2 * call.padding[d] - (f.taps[d] - 1) * f.dilation[d] - 1;
        if (span < 0)
            fail("%s: x of shape %s is smaller than the filter, even with padding", op, shape_text(call.x).c_str());
        out[d] = span / f.stride[d] + 1;
    }
    if (call.y.dims != 4 || call.y.shape[0] != call.x.shape[0] || call.y.shape[1] != f.outputs ||
        call.y.shape[2] != out[0] || call.y.shape[3] != out[1])
        fail("%s: y has shape %s; x of shape %s gives (%lld, %lld, %lld, %lld)", op, shape_text(call.y).c_str(),
             shape_text(call.x).c_str(), number(call.x.shape[0]), number(f.outputs), number(out[0]), number(out[1]));
}

// ---- from views ---------------------------------------------------------------------------------------------------

// Whether each pixel can be taken for an image: one tap, nothing left out or padded, and enough of them side by side.
bool pointwise(const MaskedCall& call) {
    const FilterShape& f = call.pattern.filter;
    return f.all_taps() == 1 && !f.strided() && call.padding[0] == 0 && call.padding[1] == 0 &&
           call.x.shape[2] * call.x.shape[3] >= kChunk;
}

Images images_of(const View& view, bool pixels) {
    const auto* const data = static_cast<const float*>(view.data);
    const int64_t side = view.shape[2] * view.shape[3];
    if (pixels) return {data, view.shape[0] * side, view.shape[1], {1, 1}, side};
    return {data, view.shape[0], view.shape[1], {view.shape[2], view.shape[3]}, 1};
}

// Whether a call is a linear layer's, on at least so many samples and at most so many.
bool linear(const MaskedCall& call, int64_t least, int64_t most) {
    const bool pixel = call.x.shape[2] * call.x.shape[3] == 1 && call.padding[0] == 0 && call.padding[1] == 0;
    return call.pattern.filter.all_taps() == 1 && pixel && least <= call.x.shape[0] && call.x.shape[0] <= most;
}

// One sample through a linear layer needs no packing: its inputs lie in the first-level cache as they are.
bool one_sample(const MaskedCall& call) { return linear(call, 1, 1); }

bool few_samples(const MaskedCall& call) { return linear(call, 2, kFew); }

FewSamples few_of(const MaskedCall& call, const MaskedKernels& kernels) {
    FewSamples few{};
    few.kernels = &kernels;
    few.pattern = call.pattern;
    few.samples = call.x.shape[0];
    few.x = static_cast<float*>(call.x.data);
    few.w = static_cast<float*>(call.weights.data);
    few.bias = static_cast<const float*>(call.bias.data);
    few.y = static_cast<float*>(call.y.data);
    return few;
}

void gather_rows(const MaskedKernels& kernels, const int32_t* columns, const int32_t* starts, int64_t rows,
                 int64_t blocks, const float* w, const float* x, const float* bias, float* y, int64_t kept,
                 int threads) {
    const int64_t pieces = worth_waking(kept, threads);
    parallel_pieces(threads, pieces, [&](int64_t piece) {
        const int64_t r0 = rows * piece / pieces, r1 = rows * (piece + 1) / pieces;
        kernels.gather_rows(
            {columns, starts + r0, starts + blocks * rows + r0, r1 - r0, w, x, bias ? bias + r0 : nullptr, y + r0});
    });
}

// Compact weights in the order of the transposed pattern.
const float* transposed_weights(const MaskedCall& call, const float* w) {
    const int64_t kept = call.pattern.kept;
    const int32_t* const order = call.pattern.t_order;
    float* const ordered = scratch(Slot::weights, kept);
    for (int64_t k = 0; k < kept; ++k) ordered[k] = w[order[k]];
    return ordered;
}

}  // namespace

void masked_forward(const MaskedCall& call, const MaskedOptions& options) {
    const char* const op = "masked_forward";
    check(op, call);
    const MaskedKernels& kernels = choose_variant(op, kVariants, options.variant);
    const SparsityPattern& pattern = call.pattern;
    const FilterShape& f = pattern.filter;
    const auto* const w = static_cast<const float*>(call.weights.data);
    const auto* const bias = static_cast<const float*>(call.bias.data);
    auto* const y = static_cast<float*>(call.y.data);
    if (call.y.size() == 0) return;
    const int64_t blocks = blocks_of(f.inputs, f);
    if (one_sample(call))
        return gather_rows(kernels, pattern.columns, pattern.starts, f.outputs, blocks, w,
                           static_cast<const float*>(call.x.data), bias, y, pattern.kept, options.threads);
    if (few_samples(call)) return few_forward(few_of(call, kernels), options.threads);
    Sweep sweep{};
    sweep.kernels = &kernels;
    sweep.filter = f;
    const Images in = images_of(call.x, pointwise(call)), out = images_of(call.y, pointwise(call));
    sweep.in = in;
    sweep.planes = forward_planes(f, call.padding, packed_width(in.count, in.size, out.size, kTileChunks), out.size);
    sweep.grid = make_grid(out.size, sweep.planes);
    sweep.columns = pattern.columns;
    sweep.starts = pattern.starts;
    sweep.rows = sweep.out_channels = f.outputs;
    sweep.blocks = blocks;
    sweep.w = w;
    sweep.bias = bias;
    sweep.out = y;
    for (int d = 0; d < 2; ++d) {
        sweep.out_size[d] = out.size[d];
        sweep.stride[d] = 1;
    }
    run_sweep(sweep, options.threads);
}

void masked_input_gradient(const MaskedCall& call, const MaskedOptions& options) {
    const char* const op = "masked_input_gradient";
    check(op, call);
    const MaskedKernels& kernels = choose_variant(op, kVariants, options.variant);
    const SparsityPattern& pattern = call.pattern;
    const FilterShape& f = pattern.filter;
    auto* const dx = static_cast<float*>(call.x.data);
    if (call.x.size() == 0) return;
    if (few_samples(call) && !f.strided()) return few_input_gradient(few_of(call, kernels), options.threads);
    const auto* const given = static_cast<const float*>(call.weights.data);
    // Where each weight is read once, bringing them into order first would be one pass more.
    const bool once = linear(call, 2, kTileChunks * kChunk);
    const float* const w = once ? given : transposed_weights(call, given);
    const int64_t blocks = blocks_of(f.outputs, f);
    if (one_sample(call) && !f.strided())
        return gather_rows(kernels, pattern.t_columns, pattern.t_starts, f.inputs, blocks, w,
                           static_cast<const float*>(call.y.data), nullptr, dx, pattern.kept, options.threads);
    Sweep sweep{};
    sweep.kernels = &kernels;
    sweep.filter = f;
    const Images in = images_of(call.y, pointwise(call)), out = images_of(call.x, pointwise(call));
    sweep.in = in;
    sweep.planes = backward_planes(f, call.padding, packed_width(in.count, out.size, in.size, kTileChunks), out.size,
                                   sweep.grid, sweep.first);
    sweep.columns = pattern.t_columns;
    sweep.starts = pattern.t_starts;
    sweep.rows = transposed_rows(f);
    sweep.out_channels = f.inputs;
    sweep.blocks = blocks;
    sweep.w = w;
    sweep.order = once ? pattern.t_order : nullptr;
    sweep.out = dx;
    for (int d = 0; d < 2; ++d) {
        sweep.out_size[d] = out.size[d];
        sweep.stride[d] = f.stride[d];
        sweep.padding[d] = call.padding[d];
    }
    run_sweep(sweep, options.threads);
}

void masked_weight_gradient(const MaskedCall& call, const MaskedOptions& options) {
    const char* const op = "masked_weight_gradient";
    check(op, call);
    const MaskedKernels& kernels = choose_variant(op, kVariants, options.variant);
    const SparsityPattern& pattern = call.pattern;
    const FilterShape& f = pattern.filter;
    if (one_sample(call))
        return kernels.outer_rows({pattern.columns, pattern.starts, pattern.starts + blocks_of(f.inputs, f) * f.outputs,
                                   f.outputs, static_cast<const float*>(call.y.data),
                                   static_cast<const float*>(call.x.data), static_cast<float*>(call.weights.data)});
    if (few_samples(call)) return few_weight_gradient(few_of(call, kernels), options.threads);
    Dots dots{};
    dots.kernels = &kernels;
    dots.filter = f;
    const Images x = images_of(call.x, pointwise(call)), dy = images_of(call.y, pointwise(call));
    dots.x = x;
    dots.dy = dy;
    dots.planes = forward_planes(f, call.padding, packed_width(x.count, x.size, dy.size, kernels.dots_chunks), dy.size);
    dots.grid = make_grid(dy.size, dots.planes);
    dots.columns = pattern.columns;
    dots.starts = pattern.starts;
    dots.blocks = blocks_of(f.inputs, f);
    dots.kept = pattern.kept;
    dots.dw = static_cast<float*>(call.weights.data);
    run_dots(dots, options.threads);
}

double multiply_add_peak(double seconds, const std::string& variant) {
    const MaskedKernels& kernels = choose_variant("multiply_add_peak", kVariants, variant);
    using Clock = std::chrono::steady_clock;
    const Clock::time_point begin = Clock::now();
    double best = 0.0;
    for (Clock::time_point from = begin; from - begin < std::chrono::duration<double>(seconds);) {
        const int64_t done = kernels.multiply_adds(200000);
        const Clock::time_point now = Clock::now();
        best = std::max(best, static_cast<double>(done) / std::chrono::duration<double>(now - from).count());
        from = now;
    }
    return best;
}

}  // namespace edgeprune
