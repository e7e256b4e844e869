#include "ops/masked_few.h"

#include <algorithm>

#include "base/scratch.h"
#include "base/threads.h"
#include "ops/masked_sweep.h"

namespace edgeprune {
namespace {

constexpr int64_t kCachedColumns = 512;  // 16 KB of a first-level cache of 32

// (samples, channels) side by side.
float* packed(const FewSamples& few, const float* plain, int64_t channels, Slot slot) {
    float* const to = scratch(slot, channels * kFew);
    few.kernels->interleave({const_cast<float*>(plain), channels, 1, few.samples, to, kFew, kFew, channels});
    return to;
}

void unpack(const FewSamples& few, float* from, float* plain, int64_t channels) {
    few.kernels->deinterleave({plain, channels, 1, few.samples, from, kFew, kFew, channels});
}

// The pattern in one of its two directions.
struct Rows {
    const int32_t *columns, *order, *starts;
    int64_t rows, blocks;
};

// Calls run(task, first row) for ranges of rows, and in each for blocks of columns that stay cached.
template <class Run>
void walk(const FewSamples& few, const Rows& in, int threads, Run run) {
    const int64_t pieces = worth_waking(few.pattern.kept, threads);
    const int64_t step = std::max<int64_t>(1, kCachedColumns / block_channels(few.pattern.filter));
    const std::vector<int64_t> cuts = even_ranges(in.starts, in.rows, in.blocks, pieces);
    parallel_pieces(threads, static_cast<int64_t>(cuts.size()) - 1, [&](int64_t piece) {
        const int64_t first = cuts[static_cast<size_t>(piece)], last = cuts[static_cast<size_t>(piece) + 1];
        FewTask task{};
        task.columns = in.columns;
        task.order = in.order;
        task.rows = last - first;
        task.w = few.w;
        for (int64_t block = 0; block < in.blocks; block += step) {
            task.begin = in.starts + block * in.rows + first;
            task.end = in.starts + std::min(block + step, in.blocks) * in.rows + first;
            task.first = block == 0;
            run(task, first);
        }
    });
}

void products(const FewSamples& few, const Rows& in, const float* x, const float* bias, float* y, int threads) {
    float* const sums = scratch(Slot::outputs, in.rows * kFew);
    walk(few, in, threads, [&](FewTask& task, int64_t first) {
        task.x = x;
        task.y = sums + first * kFew;
        task.bias = bias ? bias + first : nullptr;
        few.kernels->few_products(task);
    });
    unpack(few, sums, y, in.rows);
}

Rows forward_rows(const SparsityPattern& pattern) {
    const FilterShape& f = pattern.filter;
    return {pattern.columns, nullptr, pattern.starts, f.outputs, blocks_of(f.inputs, f)};
}

}  // namespace

void few_forward(const FewSamples& few, int threads) {
    const float* const x = packed(few, few.x, few.pattern.filter.inputs, Slot::packed);
    products(few, forward_rows(few.pattern), x, few.bias, few.y, threads);
}

void few_input_gradient(const FewSamples& few, int threads) {
    const SparsityPattern& p = few.pattern;
    const FilterShape& f = p.filter;
    const float* const y = packed(few, few.y, f.outputs, Slot::packed);
    products(few, {p.t_columns, p.t_order, p.t_starts, f.inputs, blocks_of(f.outputs, f)}, y, nullptr, few.x, threads);
}

void few_weight_gradient(const FewSamples& few, int threads) {
    const FilterShape& f = few.pattern.filter;
    const float* const x = packed(few, few.x, f.inputs, Slot::packed);
    float* const y = packed(few, few.y, f.outputs, Slot::gradients);
    walk(few, forward_rows(few.pattern), threads, [&](FewTask& task, int64_t first) {
        task.x = x;
        task.y = y + first * kFew;
        few.kernels->few_dots(task);
    });
}

}  // namespace edgeprune
