// The channels kernels, written once on base/simd.h and compiled by scalar.cpp, avx2.cpp, avx512.cpp and neon.cpp.
// Contracts: channels.h.
#pragma once

#include "base/simd.h"
#include "kernels/channels/channels.h"

namespace edgeprune {
namespace {

using simd::F32;
using simd::F64;

// ---- where a row starts -------------------------------------------------------------------------------------------

// Offset of row `row` given the strides of one tensor; rows are numbered row-major over all axes but the last two.
template <class Task, class Stride>
inline int64_t row_offset(const Task& task, int64_t row, bool indexed, Stride stride) {
    int64_t offset = 0;
    for (int a = task.axes - 3; a >= 0; --a) {
        const auto& axis = task.axis[a];
        const int64_t i = row % axis.size;
        row /= axis.size;
        offset += (indexed && axis.index ? axis.index[i] : i) * stride(axis);
    }
    return offset;
}

// ---- gather -------------------------------------------------------------------------------------------------------

// Copies `n` floats by vectors that overlap at the end: no loop for the remainder, no call for a 3x3 filter.
inline void copy_block(float* dst, const float* src, int64_t n) {
    constexpr int64_t v16 = 16, v8 = 8, v4 = 4;
    if (n >= v16) {
        int64_t i = 0;
        for (; i + v16 <= n; i += v16) std::memcpy(dst + i, src + i, v16 * sizeof(float));
        std::memcpy(dst + n - v16, src + n - v16, v16 * sizeof(float));
    } else if (n >= v8) {
        std::memcpy(dst, src, v8 * sizeof(float));
        std::memcpy(dst + n - v8, src + n - v8, v8 * sizeof(float));
    } else if (n >= v4) {
        std::memcpy(dst, src, v4 * sizeof(float));
        std::memcpy(dst + n - v4, src + n - v4, v4 * sizeof(float));
    } else {
        for (int64_t i = 0; i < n; ++i) dst[i] = src[i];
    }
}

inline void gather_items(const GatherTask& task, const float* src, float* dst, int64_t first, int64_t last) {
    const GatherAxis& items = task.axis[task.axes - 2];
    const int64_t block = task.axis[task.axes - 1].size;
    const int64_t* index = items.index;
    const int64_t stride = items.stride;
    if (block == 1 && index) {
        for (int64_t i = first; i < last; ++i) *dst++ = src[index[i] * stride];
    } else if (block == 1) {
        for (int64_t i = first; i < last; ++i) *dst++ = src[i * stride];
    } else if (block > 512) {  // the C library's copy is the best one for long runs
        for (int64_t i = first; i < last; ++i, dst += block)
            std::memcpy(dst, src + (index ? index[i] : i) * stride, static_cast<size_t>(block) * sizeof(float));
    } else {
        for (int64_t i = first; i < last; ++i, dst += block)
            copy_block(dst, src + (index ? index[i] : i) * stride, block);
    }
}

void gather(const GatherTask& task, int64_t first_unit, int64_t last_unit) {
    const int64_t items = task.axis[task.axes - 2].size;
    const int64_t block = task.axis[task.axes - 1].size;
    for (int64_t unit = first_unit; unit < last_unit;) {
        const int64_t row = unit / items, first = unit % items;
        const int64_t last = first + (last_unit - unit) < items ? first + (last_unit - unit) : items;
        const int64_t offset = row_offset(task, row, true, [](const GatherAxis& axis) { return axis.stride; });
        gather_items(task, task.src + offset, task.dst + unit * block, first, last);
        unit += last - first;
    }
}

// ---- scatter ------------------------------------------------------------------------------------------------------

inline void accumulate_block(float* total, float* count, const float* x, int64_t n, float weight) {
    const F32 w = F32::splat(weight);
    int64_t i = 0;
    for (; i + F32::lanes <= n; i += F32::lanes) {
        (F32::load(total + i) + w * F32::load(x + i)).store(total + i);
        (F32::load(count + i) + w).store(count + i);
    }
    if (i < n) {
        (F32::load_part(total + i, n - i) + w * F32::load_part(x + i, n - i)).store_part(total + i, n - i);
        (F32::load_part(count + i, n - i) + w).store_part(count + i, n - i);
    }
}

inline void scatter_items(const ScatterTask& task, float* total, float* count, const float* x, int64_t first,
                          int64_t last) {
    const ScatterAxis& items = task.axis[task.axes - 2];
    const int64_t block = task.axis[task.axes - 1].size;
    const float weight = task.weight;
    for (int64_t i = first; i < last; ++i) {
        const int64_t where = items.index ? items.index[i] : i;
        float* const t = total + where * items.total_stride;
        float* const c = count + where * items.count_stride;
        const float* const v = x + i * items.x_stride;
        if (block == 1) {
            *t += weight * *v;
            *c += weight;
        } else {
            accumulate_block(t, c, v, block, weight);
        }
    }
}

void scatter(const ScatterTask& task, int64_t first_unit, int64_t last_unit) {
    const int64_t items = task.axis[task.axes - 2].size;
    for (int64_t unit = first_unit; unit < last_unit;) {
        const int64_t row = unit / items, first = unit % items;
        const int64_t last = first + (last_unit - unit) < items ? first + (last_unit - unit) : items;
        float* const total =
            task.total + row_offset(task, row, true, [](const ScatterAxis& axis) { return axis.total_stride; });
        float* const count =
            task.count + row_offset(task, row, true, [](const ScatterAxis& axis) { return axis.count_stride; });
        const float* const x =
            task.x + row_offset(task, row, false, [](const ScatterAxis& axis) { return axis.x_stride; });
        scatter_items(task, total, count, x, first, last);
        unit += last - first;
    }
}

// ---- norms --------------------------------------------------------------------------------------------------------

constexpr int kSums = 16;  // partial sums of one channel, as channels.h promises
constexpr int kSumVectors = kSums / F64::lanes;
static_assert(kSums % F32::lanes == 0, "a block is cut into whole vectors at multiples of the partial sums");

template <int P>
inline void add_to(F64* sums, F32 x) {
    F64 wide[simd::kWide];
    simd::widen(x, wide);
    for (int k = 0; k < simd::kWide; ++k) sums[k] = sums[k] + (P == 1 ? wide[k].abs() : wide[k] * wide[k]);
}

template <int P>
inline void norms_of_blocks(const NormsTask& task, int64_t first, int64_t last) {
    const int64_t after = task.after;
    for (int64_t c = first; c < last; ++c) {
        F64 sums[kSumVectors];
        for (F64& sum : sums) sum = F64::zero();
        for (int64_t b = 0; b < task.before; ++b) {
            const float* const x = task.x + (b * task.channels + c) * after;
            int64_t j = 0;
            for (; j + kSums <= after; j += kSums)
                for (int k = 0; k < kSums; k += F32::lanes)
                    add_to<P>(sums + k / F64::lanes, F32::load(x + j + k));
            // Lanes beyond the end read as 0, and adding +0 changes no sum of squares or magnitudes.
            for (int k = 0; k < kSums && j + k < after; k += F32::lanes) {
                const int64_t left = after - j - k;
                add_to<P>(sums + k / F64::lanes,
                          left >= F32::lanes ? F32::load(x + j + k) : F32::load_part(x + j + k, left));
            }
        }
        double part[kSums];
        for (int k = 0; k < kSumVectors; ++k) sums[k].store(part + k * F64::lanes);
        for (int half = kSums / 2; half; half /= 2)
            for (int k = 0; k < half; ++k) part[k] += part[k + half];
        task.norm[c] = static_cast<float>(P == 1 ? part[0] : __builtin_sqrt(part[0]));
    }
}

// after == 1: the channels themselves lie side by side, so a vector holds as many channels.
template <int P>
inline void norms_side_by_side(const NormsTask& task, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c += F32::lanes) {
        const int64_t n = last - c < F32::lanes ? last - c : F32::lanes;
        F64 sums[simd::kWide];
        for (F64& sum : sums) sum = F64::zero();
        for (int64_t b = 0; b < task.before; ++b) {
            const float* const x = task.x + b * task.channels + c;
            add_to<P>(sums, n == F32::lanes ? F32::load(x) : F32::load_part(x, n));
        }
        double part[F32::lanes];
        for (int k = 0; k < simd::kWide; ++k) (P == 1 ? sums[k] : sums[k].sqrt()).store(part + k * F64::lanes);
        for (int64_t k = 0; k < n; ++k) task.norm[c + k] = static_cast<float>(part[k]);
    }
}

void norms(const NormsTask& task, int64_t first, int64_t last) {
    if (task.after == 1) {
        task.p == 1 ? norms_side_by_side<1>(task, first, last) : norms_side_by_side<2>(task, first, last);
    } else {
        task.p == 1 ? norms_of_blocks<1>(task, first, last) : norms_of_blocks<2>(task, first, last);
    }
}

// ---- finish -------------------------------------------------------------------------------------------------------

void finish(const FinishTask& task, int64_t first, int64_t last) {
    int64_t i = first;
    for (; i + F32::lanes <= last; i += F32::lanes) {
        const F32 count = F32::load(task.count + i);
        F32::select_positive(count, F32::load(task.total + i) / count, F32::load(task.base + i)).store(task.out + i);
    }
    if (i < last) {
        const int64_t n = last - i;
        const F32 count = F32::load_part(task.count + i, n);
        F32::select_positive(count, F32::load_part(task.total + i, n) / count, F32::load_part(task.base + i, n))
            .store_part(task.out + i, n);
    }
}

}  // namespace
}  // namespace edgeprune
