// The kernels, once for all instruction sets.
#pragma once

#include "kernels/packing/coding_simd.h"
#include "kernels/packing/select_simd.h"

namespace edgeprune {
namespace {

// ---- pack -----------------------------------------------------------------------------------------------------------

// What was just sent is taken off the residual, value by value; false when a receiver would read infinity or NaN.
inline bool take_off(const PackTask& task, const float* v, int64_t count, int64_t rank, const uint32_t* where,
                     float* residual) {
    alignas(64) float sent[kScaleBlock + kChunk + kSlack];  // as many as pack and pack_few hold
    static_assert(kFew <= kScaleBlock + kChunk, "pack_few holds no more than pack");
    decode({task.values, task.scales, nullptr, task.n, task.kept, task.coding}, rank, count, sent);
    bool finite = true;
    for (int64_t i = 0; i < count; ++i) {
        finite = finite && sent[i] - sent[i] == 0.0f;
        residual[where[i]] = v[i] - sent[i];
    }
    return finite;
}

inline void list_kept(const Words& words, int64_t first, uint32_t* where) {
    for (int64_t i = 0; i < words.count; ++i)
        for (uint64_t word = words.word[i]; word; word &= word - 1)
            *where++ = static_cast<uint32_t>(words.element(i) + lowest(word) - first);
}

// Everything is packed from the residual where there is one, which then holds v.
inline const float* source_of(const PackTask& task) { return task.residual ? task.residual : task.x; }

inline bool pack_few(const PackTask& task, int64_t first, int64_t last, int64_t rank, int64_t count) {
    uint32_t where[kFew + 2];
    alignas(64) float held[kFew + kSlack];
    if (task.residual && task.x) add(task.x + first, task.residual + first, last - first);
    const float* const x = source_of(task) + first;
    visit_few(
        task.mask, task.n, first, last, where, [&](int64_t i) { ask_for(x + where[i]); },
        [&](int64_t i) { held[i] = x[where[i]]; });
    if (!encode(task, held, count, rank)) return false;
    return !task.residual || take_off(task, held, count, rank, where, task.residual + first);
}

// Values gather in `held` until they fill blocks of int8; other codings leave with each chunk.
inline bool pack(const PackTask& task, int64_t first, int64_t last, int64_t rank, int64_t last_rank) {
    if (task.mask && few(last_rank - rank, last - first)) return pack_few(task, first, last, rank, last_rank - rank);
    alignas(64) float held[kScaleBlock + kChunk + kSlack];
    uint32_t where[kScaleBlock + kChunk];  // of the values held, counted from `first`
    const float* const x = source_of(task);
    const bool straight =
        task.coding == Coding::f32 && !task.residual && reinterpret_cast<uintptr_t>(task.values) % alignof(float) == 0;
    int64_t count = 0;
    Words words;
    for (int64_t at = first; at < last; at = words.last) {
        words.read(task.mask, task.n, at, last);
        if (task.residual && task.x) add(task.x + at, task.residual + at, words.last - at);
        if (straight && rank + words.kept + kSlack <= last_rank) {
            rank += compress_words(words, x, reinterpret_cast<float*>(task.values) + rank);
            continue;
        }
        if (!task.mask && !task.residual) {
            if (!encode(task, x + at, words.kept, rank)) return false;
            rank += words.kept;
            continue;
        }
        if (task.residual) list_kept(words, first, where + count);
        count += compress_words(words, x, held + count);
        const int64_t ready =
            task.coding == Coding::i8 && words.last < last ? count / kScaleBlock * kScaleBlock : count;
        if (!encode(task, held, ready, rank)) return false;
        if (task.residual && !take_off(task, held, ready, rank, where, task.residual + first)) return false;
        rank += ready;
        count -= ready;
        std::memmove(held, held + ready, static_cast<size_t>(count) * sizeof held[0]);
        std::memmove(where, where + ready, task.residual ? static_cast<size_t>(count) * sizeof where[0] : 0);
    }
    return true;
}

// ---- unpack and accumulate ------------------------------------------------------------------------------------------

// The values of a chunk's kept elements, readable kSlack floats beyond the last one.
inline const float* values_of(const PackedValues& packed, int64_t rank, int64_t count, float* buffer) {
    if (packed.coding == Coding::f32 && rank + count + kSlack <= packed.kept &&
        reinterpret_cast<uintptr_t>(packed.values) % alignof(float) == 0)
        return reinterpret_cast<const float*>(packed.values) + rank;
    decode(packed, rank, count, buffer);
    return buffer;
}

inline void unpack(const UnpackTask& task, int64_t first, int64_t last, int64_t rank) {
    alignas(64) float buffer[kChunk + kSlack];
    const F32 zero = F32::splat(0.0f);
    Words words;
    for (int64_t at = first; at < last; at = words.last) {
        words.read(task.packed.mask, task.packed.n, at, last);
        const float* from = values_of(task.packed, rank, words.kept, buffer);
        rank += words.kept;
        for (int64_t i = 0; i < words.count; ++i) {
            uint64_t word = words.word[i];
            float* const to = task.out + words.element(i);
            if (!words.whole(i) || F32::lanes == 1) {
                for (int64_t j = words.element(i); j < words.last && j < words.element(i) + kWord; ++j, word >>= 1)
                    task.out[j] = word & 1 ? *from++ : 0.0f;
                continue;
            }
            for (int v = 0; v < kWord / F32::lanes; ++v) {
                const unsigned bits = static_cast<unsigned>(word >> (v * F32::lanes)) & ((1u << F32::lanes) - 1);
                const F32 value = F32::select(bits, F32::expand(F32::load(from), bits), zero);
                if (task.around_caches) {
                    simd::stream(value, to + v * F32::lanes);
                } else {
                    value.store(to + v * F32::lanes);
                }
                from += __builtin_popcount(bits);
            }
        }
    }
    if (task.around_caches) simd::fence();
}

inline void accumulate_few(const AccumulateTask& task, int64_t first, int64_t last, int64_t rank, int64_t count) {
    uint32_t where[kFew + 2];
    alignas(64) float buffer[kFew + kSlack];
    const float* const from = values_of(task.packed, rank, count, buffer);
    float *const total = task.total + first, *const weight_sum = task.weight_sum + first;
    const auto ask = [&](int64_t i) {
        ask_for(total + where[i]);
        ask_for(weight_sum + where[i]);
    };
    visit_few(task.packed.mask, task.packed.n, first, last, where, ask, [&](int64_t i) {
        const float product = task.weight * from[i];
        total[where[i]] += product;
        weight_sum[where[i]] += task.weight;
    });
}

inline void accumulate(const AccumulateTask& task, int64_t first, int64_t last, int64_t rank, int64_t last_rank) {
    if (task.packed.mask && few(last_rank - rank, last - first))
        return accumulate_few(task, first, last, rank, last_rank - rank);
    alignas(64) float buffer[kChunk + kSlack];
    const F32 weight = F32::splat(task.weight);
    Words words;
    for (int64_t at = first; at < last; at = words.last) {
        words.read(task.packed.mask, task.packed.n, at, last);
        const float* from = values_of(task.packed, rank, words.kept, buffer);
        rank += words.kept;
        for (int64_t i = 0; i < words.count; ++i) {
            uint64_t word = words.word[i];
            float* const total = task.total + words.element(i);
            float* const weight_sum = task.weight_sum + words.element(i);
            if (F32::lanes == 1 || !words.whole(i)) {
                for (; word; word &= word - 1) {
                    const float product = task.weight * *from++;
                    total[lowest(word)] += product;
                    weight_sum[lowest(word)] += task.weight;
                }
                continue;
            }
            for (int v = 0; v < kWord / F32::lanes; ++v) {
                const unsigned bits = static_cast<unsigned>(word >> (v * F32::lanes)) & ((1u << F32::lanes) - 1);
                const F32 value = F32::expand(F32::load(from), bits);
                const F32 sum = F32::load(total + v * F32::lanes), held = F32::load(weight_sum + v * F32::lanes);
                F32::select(bits, sum + weight * value, sum).store(total + v * F32::lanes);
                F32::select(bits, held + weight, held).store(weight_sum + v * F32::lanes);
                from += __builtin_popcount(bits);
            }
        }
    }
}

}  // namespace
}  // namespace edgeprune
