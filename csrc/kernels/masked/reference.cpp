#include "kernels/masked/masked.h"

namespace edgeprune {
namespace {

int64_t shift(const KeptRows& kept, int64_t k) {
    return kept.shift_of ? kept.shift_of[kept.columns[k]] : kept.columns[k] * kept.column_stride;
}

// Calls visit(row, kept weight).
template <class Rows, class Visit>
void for_each_kept(const Rows& kept, Visit visit) {
    for (int64_t r = 0; r < kept.rows; ++r)
        for (int64_t k = kept.begin[r]; k < kept.end[r]; ++k) visit(r, k);
}

// Where position q lies in packed memory.
int64_t at(const InterleaveTask& t, int64_t q) {
    return t.line ? (t.first + q) / t.line * t.line_step + (t.first + q) % t.line * t.packed_step : q * t.packed_step;
}

}  // namespace

void masked_accumulate_reference(const AccumulateTask& task, double* y) {
    const int64_t width = kChunk * task.kept.chunks;
    for (int64_t r = 0; r < task.kept.rows; ++r)
        for (int64_t i = 0; i < width; ++i)
            y[r * width + i] = !task.first ? task.y[r * task.y_stride + i] : task.bias ? task.bias[r] : 0.0;
    for_each_kept(task.kept, [&](int64_t r, int64_t k) {
        for (int64_t i = 0; i < width; ++i)
            y[r * width + i] += static_cast<double>(task.w[k]) *
                                task.kept.x[shift(task.kept, k) + task.kept.chunk[i / kChunk] + i % kChunk];
    });
}

void masked_dots_reference(const DotsTask& task, double* dw) {
    for_each_kept(task.kept, [&](int64_t r, int64_t k) {
        dw[k] = task.dw[k];
        for (int64_t i = 0; i < kChunk * task.kept.chunks; ++i)
            dw[k] += static_cast<double>(task.dy[r * task.dy_stride + i]) *
                     task.kept.x[shift(task.kept, k) + task.kept.chunk[i / kChunk] + i % kChunk];
    });
}

void masked_gather_rows_reference(const GatherRowsTask& task, double* y) {
    for (int64_t r = 0; r < task.rows; ++r) y[r] = task.bias ? task.bias[r] : 0.0;
    for_each_kept(task,
                  [&](int64_t r, int64_t k) { y[r] += static_cast<double>(task.w[k]) * task.x[task.columns[k]]; });
}

void masked_interleave_reference(const InterleaveTask& t) {
    for (int64_t q = 0; q < t.count; ++q)
        for (int64_t n = 0; n < t.width; ++n)
            t.packed[at(t, q) + n] = n < t.images ? t.plain[n * t.plain_image + q * t.plain_step] : 0.0f;
}

void masked_deinterleave_reference(const InterleaveTask& t) {
    for (int64_t q = 0; q < t.count; ++q)
        for (int64_t n = 0; n < t.images; ++n) t.plain[n * t.plain_image + q * t.plain_step] = t.packed[at(t, q) + n];
}

}  // namespace edgeprune
