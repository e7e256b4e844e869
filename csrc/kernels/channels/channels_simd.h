// The channels kernels, written once on base/simd.h and compiled by scalar.cpp, avx2.cpp, avx512.cpp and neon.cpp.
// Contracts: channels.h.
#pragma once

#include "base/simd.h"
#include "kernels/channels/channels.h"

namespace edgeprune {
namespace {

using simd::ask_for;
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

constexpr int kWord = 16;  // positions in a word of KeepBits
constexpr unsigned kLaneBits = (1u << F32::lanes) - 1;
static_assert(kWord % F32::lanes == 0, "a word is walked in whole vectors");

// Calls step(position in the row, element, bits, lanes) for each vector of the row that holds something: `element` kept
// ones lie before it, `lanes` of it lie inside the row.
template <class Step>
inline void for_each_kept_vector(const KeepBits& keep, Step step) {
    int64_t element = 0;
    for (int64_t position = 0; position < keep.span; position += kWord) {
        const unsigned word = keep.word[position / kWord];
        for (int lane = 0; lane < kWord; lane += F32::lanes) {
            const unsigned bits = word >> lane & kLaneBits;
            if (!bits) continue;
            const int64_t left = keep.span - position - lane;
            step(position + lane, element, bits, left < F32::lanes ? left : F32::lanes);
            element += __builtin_popcount(bits);
        }
    }
}

// A whole row of single elements: vectors are loaded, what is kept moves to their front, and the next store overwrites
// what is behind it.
inline void gather_row_by_bits(const GatherTask& task, const float* src, float* dst) {
    const int64_t items = task.axis[task.axes - 2].size;
    src += task.axis[task.axes - 2].index[0];
    for_each_kept_vector(task.keep, [=](int64_t position, int64_t element, unsigned bits, int64_t lanes) {
        const F32 x = lanes == F32::lanes ? F32::load(src + position) : F32::load_part(src + position, lanes);
        const F32 kept = F32::compress(x, bits);
        if (element + F32::lanes <= items) {
            kept.store(dst + element);
        } else {
            kept.store_part(dst + element, items - element);
        }
    });
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

// Short rows picked here and there leave the processor guessing what comes next (half of the rows of 2 KiB each: 1.5
// times slower than all of them, measured), so they are asked for a page ahead. Returns how many rows that is, or 0.
inline int64_t rows_ahead(const GatherTask& task) {
    constexpr int64_t kPage = 4096 / sizeof(float);
    if (task.axes < 3 || !task.axis[task.axes - 3].index) return 0;
    const int64_t row = task.axis[task.axes - 3].stride;
    return row > 0 && row <= kPage ? kPage / row : 0;
}

inline void ask_for_row(const float* row, int64_t n) {
    for (int64_t i = 0; i < n; i += 64 / sizeof(float)) ask_for(row + i);
}

void gather(const GatherTask& task, int64_t first_unit, int64_t last_unit) {
    const auto stride = [](const GatherAxis& axis) { return axis.stride; };
    const int64_t items = task.axis[task.axes - 2].size;
    const int64_t block = task.axis[task.axes - 1].size;
    const int64_t ahead = rows_ahead(task);
    for (int64_t unit = first_unit; unit < last_unit;) {
        const int64_t row = unit / items, first = unit % items;
        const int64_t last = first + (last_unit - unit) < items ? first + (last_unit - unit) : items;
        if (ahead && unit + ahead * items < last_unit)
            ask_for_row(task.src + row_offset(task, row + ahead, true, stride), task.axis[task.axes - 3].stride);
        const int64_t offset = row_offset(task, row, true, stride);
        if (task.keep.word && last - first == items) {
            gather_row_by_bits(task, task.src + offset, task.dst + unit * block);
        } else {
            gather_items(task, task.src + offset, task.dst + unit * block, first, last);
        }
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

inline void scatter_row_by_bits(const ScatterTask& task, float* total, float* count, const float* x) {
    const int64_t items = task.axis[task.axes - 2].size;
    const F32 w = F32::splat(task.weight);
    total += task.axis[task.axes - 2].index[0];
    count += task.axis[task.axes - 2].index[0];
    for_each_kept_vector(task.keep, [=](int64_t position, int64_t element, unsigned bits, int64_t lanes) {
        const F32 v =
            element + F32::lanes <= items ? F32::load(x + element) : F32::load_part(x + element, items - element);
        float* const t = total + position;
        float* const c = count + position;
        if (lanes == F32::lanes) {
            const F32 old_total = F32::load(t), old_count = F32::load(c);
            F32::select(bits, old_total + w * F32::expand(v, bits), old_total).store(t);
            F32::select(bits, old_count + w, old_count).store(c);
        } else {
            const F32 old_total = F32::load_part(t, lanes), old_count = F32::load_part(c, lanes);
            F32::select(bits, old_total + w * F32::expand(v, bits), old_total).store_part(t, lanes);
            F32::select(bits, old_count + w, old_count).store_part(c, lanes);
        }
    });
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
        if (task.keep.word && last - first == items) {
            scatter_row_by_bits(task, total, count, x);
        } else {
            scatter_items(task, total, count, x, first, last);
        }
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

// Adds one block of one channel to its partial sums. Lanes beyond its end read as 0, and adding +0 changes no sum of
// squares or magnitudes.
template <int P>
inline void add_block(F64* sums, const float* x, int64_t after) {
    int64_t j = 0;
    for (; j + kSums <= after; j += kSums)
        for (int k = 0; k < kSums; k += F32::lanes) add_to<P>(sums + k / F64::lanes, F32::load(x + j + k));
    for (int k = 0; k < kSums && j + k < after; k += F32::lanes) {
        const int64_t left = after - j - k;
        add_to<P>(sums + k / F64::lanes, left >= F32::lanes ? F32::load(x + j + k) : F32::load_part(x + j + k, left));
    }
}

template <int P>
inline void norms_of_blocks(const NormsTask& task, int64_t first, int64_t last) {
    constexpr int64_t kTile = 16;  // channels at a time: memory is read in longer runs, their sums (2 KiB) stay close
    F64 sums[kTile][kSumVectors];
    for (int64_t c = first; c < last; c += kTile) {
        const int64_t tile = last - c < kTile ? last - c : kTile;
        for (int64_t t = 0; t < tile; ++t)
            for (F64& sum : sums[t]) sum = F64::zero();
        for (int64_t b = 0; b < task.before; ++b) {
            const float* const x = task.x + (b * task.channels + c) * task.after;
            for (int64_t t = 0; t < tile; ++t) add_block<P>(sums[t], x + t * task.after, task.after);
        }
        for (int64_t t = 0; t < tile; ++t) {
            double part[kSums];
            for (int k = 0; k < kSumVectors; ++k) sums[t][k].store(part + k * F64::lanes);
            for (int half = kSums / 2; half; half /= 2)
                for (int k = 0; k < half; ++k) part[k] += part[k + half];
            task.norm[c + t] = static_cast<float>(P == 1 ? part[0] : __builtin_sqrt(part[0]));
        }
    }
}

// after == 1: the channels themselves lie side by side, so a vector holds as many channels, and a few vectors make
// whole cache lines of every row.
template <int P>
inline void norms_side_by_side(const NormsTask& task, int64_t first, int64_t last) {
    constexpr int kVectors = 32 / F32::lanes;
    constexpr int64_t kTile = kVectors * F32::lanes;
    for (int64_t c = first; c < last; c += kTile) {
        const int64_t tile = last - c < kTile ? last - c : kTile;
        F64 sums[kVectors * simd::kWide];
        for (F64& sum : sums) sum = F64::zero();
        for (int64_t b = 0; b < task.before; ++b) {
            const float* const x = task.x + b * task.channels + c;
            for (int v = 0; v < kVectors; ++v) {
                const int64_t left = tile - v * F32::lanes;
                if (left <= 0) break;
                add_to<P>(sums + v * simd::kWide, left >= F32::lanes ? F32::load(x + v * F32::lanes)
                                                                     : F32::load_part(x + v * F32::lanes, left));
            }
        }
        double part[kTile];
        for (int k = 0; k < kVectors * simd::kWide; ++k)
            (P == 1 ? sums[k] : sums[k].sqrt()).store(part + k * F64::lanes);
        for (int64_t k = 0; k < tile; ++k) task.norm[c + k] = static_cast<float>(part[k]);
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
