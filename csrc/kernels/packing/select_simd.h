// Elements by magnitude: one pass that writes two masks, and a histogram for inputs that no sample foretells.
#pragma once

#include "kernels/packing/words_simd.h"

namespace edgeprune {
namespace {

inline void write_word(uint8_t* mask, int64_t n, int64_t w, uint64_t word) {
    const int64_t left = (n + 7) / 8 - 8 * w;
    std::memcpy(mask + 8 * w, &word, static_cast<size_t>(left < 8 ? left : 8));
}

inline SplitCounts split(const SplitTask& task, int64_t first, int64_t last, float* keys, int64_t capacity) {
    const I32 magnitude = I32::splat(kMagnitude), high = I32::splat(static_cast<uint32_t>(task.high));
    // Signed comparison: magnitudes are not negative, and low - 1 may be -1.
    const I32 below = I32::splat(static_cast<uint32_t>(task.low - 1));
    I32 largest = I32::splat(0);
    SplitCounts counts = {};
    int64_t held = 0;
    alignas(64) float part[kWord];
    for (int64_t start = first; start < last; start += kWord) {
        const float* x = task.x + start;
        const int64_t size = last - start < kWord ? last - start : kWord;
        if (size < kWord) {
            std::memset(part, 0, sizeof part);
            std::memcpy(part, x, static_cast<size_t>(size) * sizeof(float));
            x = part;
        }
        uint64_t above = 0, maybe = 0;
        for (int v = 0; v < kWord / F32::lanes; ++v) {
            const I32 key = simd::bits_of(F32::load(x + v * F32::lanes)) & magnitude;
            largest = I32::max(largest, key);
            const uint64_t over = simd::above(key, high), held_or_over = simd::above(key, below);
            above |= over << (v * F32::lanes);
            maybe |= held_or_over << (v * F32::lanes);
        }
        if (size < kWord) {  // zeros that are not there
            above &= ~uint64_t{0} >> (kWord - size);
            maybe &= ~uint64_t{0} >> (kWord - size);
        }
        maybe &= ~above;
        write_word(task.above, task.n, start / kWord, above);
        if (task.maybe) write_word(task.maybe, task.n, start / kWord, maybe);
        counts.above += bits_in(above);
        const int set = bits_in(maybe);
        counts.maybe += set;
        if (held + set > capacity) capacity = -1;  // no more
        if (capacity < 0) continue;
        // Whether there is any cannot be foretold, more than two are rare: two are written always.
        constexpr uint64_t top = uint64_t{1} << 63;
        const uint64_t rest = maybe & (maybe - 1);
        keys[held] = x[lowest(maybe | top)];
        keys[held + 1] = x[lowest(rest | top)];
        if (set > 2) {
            uint64_t left = rest & (rest - 1);
            for (int i = 2; i < set; ++i, left &= left - 1) keys[held + i] = x[lowest(left)];
        }
        held += set;
    }
    alignas(64) uint32_t lanes[F32::lanes];
    largest.store(lanes);
    for (uint32_t lane : lanes) counts.nan = counts.nan || lane > kInfinity;
    return counts;
}

inline void histogram(const float* x, int64_t count, uint32_t low, uint32_t high, int shift, uint32_t* buckets) {
    const uint32_t span = high - low;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        const uint32_t at = (bits & kMagnitude) - low;
        if (at <= span) ++buckets[(i & 3) * kBuckets + static_cast<int64_t>(at >> shift)];
    }
}

}  // namespace
}  // namespace edgeprune
