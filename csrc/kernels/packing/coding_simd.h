// Kept values to bytes and back, many at a time.
#pragma once

#include "kernels/packing/words_simd.h"

namespace edgeprune {
namespace {

// ---- random numbers: a function of (key, rank) alone ----------------------------------------------------------------

inline I32 mix(I32 x) {
    x = (x ^ x.shr<16>()) * I32::splat(0x7FEB352D);
    x = (x ^ x.shr<15>()) * I32::splat(0x846CA68B);
    return x ^ x.shr<16>();
}

// Numbers in [0, 1) for the ranks `rank` .. `rank` + lanes - 1, which share their upper 32 bits.
inline F32 uniform(const PackTask& task, int64_t rank) {
    alignas(64) static constexpr uint32_t kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const I32 low = I32::splat(static_cast<uint32_t>(rank)) + I32::load(kLane);
    const I32 high = I32::splat(static_cast<uint32_t>(rank >> 32) + task.key1);
    return simd::to_float(mix(mix(low ^ I32::splat(task.key0)) ^ high).shr<8>()) * F32::splat(0x1p-24f);
}

// ---- vectors --------------------------------------------------------------------------------------------------------

inline void store_bf16(F32 x, uint8_t* p) {
    const I32 bits = simd::bits_of(x), upper = bits.shr<16>();
    const I32 rounded = (bits + I32::splat(0x7FFF) + (upper & I32::splat(1))).shr<16>();
    const unsigned nan = simd::above(bits & I32::splat(kMagnitude), I32::splat(kInfinity));
    const I32 quiet = upper | I32::splat(0x40);
    simd::store_16(simd::bits_of(F32::select(nan, simd::float_of(quiet), simd::float_of(rounded))), p);
}

inline F32 load_coded(Coding coding, const uint8_t* p) {
    switch (coding) {
        case Coding::bf16:
            return simd::float_of(simd::load_16(p).shl<16>());
        case Coding::f16:
            return simd::load_half(p);
        default:
            return simd::to_float(simd::load_8(p));
    }
}

// ---- blocks of int8 -------------------------------------------------------------------------------------------------

// `count` <= kScaleBlock values with rank `rank` (a multiple of it) and following; v has kSlack floats more. False: a
// value is not finite.
inline bool encode_block(const PackTask& task, const float* v, int64_t count, int64_t rank) {
    const I32 magnitude = I32::splat(kMagnitude);
    I32 largest = I32::splat(0);
    int64_t i = 0;
    for (; i + F32::lanes <= count; i += F32::lanes)
        largest = I32::max(largest, simd::bits_of(F32::load(v + i)) & magnitude);
    if (i < count) largest = I32::max(largest, simd::bits_of(F32::load_part(v + i, count - i)) & magnitude);
    alignas(64) uint32_t lanes[F32::lanes];
    largest.store(lanes);
    uint32_t top = 0;
    for (uint32_t lane : lanes) top = lane > top ? lane : top;
    if (top >= kInfinity) return false;
    float largest_value;
    std::memcpy(&largest_value, &top, sizeof top);
    const float scale = largest_value / 127.0f;
    task.scales[rank / kScaleBlock] = scale;
    uint8_t* const out = task.values + rank;
    if (!(scale > 0.0f)) {
        std::memset(out, 0, static_cast<size_t>(count));
        return true;
    }
    const F32 step = F32::splat(scale), most = F32::splat(127.0f), least = F32::splat(-127.0f);
    const F32 magic = F32::splat(12582912.0f);  // 1.5 * 2^23: adding it leaves no room for a fraction
    for (i = 0; i < count; i += F32::lanes) {
        const bool whole = i + F32::lanes <= count;
        const F32 value = whole ? F32::load(v + i) : F32::load_part(v + i, count - i);
        const F32 t = simd::larger(simd::smaller(value / step, most), least);
        F32 q;
        if (task.stochastic) {
            q = simd::round_down(t);
            const unsigned up = simd::above(simd::sub(t, q), uniform(task, rank + i));
            q = F32::select(up, q + F32::splat(1.0f), q);
        } else {
            q = simd::sub(t + magic, magic);
        }
        if (whole) {
            simd::store_8(simd::to_int(q), out + i);
        } else {
            uint8_t rest[16];
            simd::store_8(simd::to_int(q), rest);
            std::memcpy(out + i, rest, static_cast<size_t>(count - i));
        }
    }
    return true;
}

// ---- any coding -----------------------------------------------------------------------------------------------------

// `count` values with rank `rank` and following. i8: rank is a multiple of kScaleBlock; f32 is copied.
inline bool encode(const PackTask& task, const float* v, int64_t count, int64_t rank) {
    if (count == 0) return true;  // nothing kept may mean no memory for it
    if (task.coding == Coding::i8) {
        for (int64_t i = 0; i < count; i += kScaleBlock)
            if (!encode_block(task, v + i, count - i < kScaleBlock ? count - i : kScaleBlock, rank + i)) return false;
        return true;
    }
    uint8_t* const out = task.values + rank * kItemBytes[static_cast<int>(task.coding)];
    if (task.coding == Coding::f32) {
        std::memcpy(out, v, static_cast<size_t>(count) * sizeof(float));
        return true;
    }
    const auto store = task.coding == Coding::bf16 ? store_bf16 : simd::store_half;
    int64_t i = 0;
    if (task.coding == Coding::bf16) {
        for (; i + F32::lanes <= count; i += F32::lanes) store_bf16(F32::load(v + i), out + 2 * i);
    } else {
        for (; i + F32::lanes <= count; i += F32::lanes) simd::store_half(F32::load(v + i), out + 2 * i);
    }
    if (i < count) {
        uint8_t rest[32];
        store(F32::load_part(v + i, count - i), rest);
        std::memcpy(out + 2 * i, rest, static_cast<size_t>(2 * (count - i)));
    }
    return true;
}

template <Coding coding>
void decode_run(const PackedValues& packed, int64_t rank, int64_t count, F32 scale, float* out) {
    constexpr int64_t item = kItemBytes[static_cast<int>(coding)];
    const uint8_t* const from = packed.values + rank * item;
    int64_t i = 0;
    for (; i + F32::lanes <= count; i += F32::lanes) {
        const F32 value = load_coded(coding, from + i * item);
        (coding == Coding::i8 ? value * scale : value).store(out + i);
    }
    if (i < count) {
        uint8_t rest[32] = {};
        std::memcpy(rest, from + i * item, static_cast<size_t>((count - i) * item));
        const F32 value = load_coded(coding, rest);
        (coding == Coding::i8 ? value * scale : value).store_part(out + i, count - i);
    }
}

// The values of `count` ranks from `rank` on.
inline void decode(const PackedValues& packed, int64_t rank, int64_t count, float* out) {
    if (count == 0) return;
    switch (packed.coding) {
        case Coding::f32:
            std::memcpy(out, packed.values + 4 * rank, static_cast<size_t>(count) * sizeof(float));
            return;
        case Coding::bf16:
            return decode_run<Coding::bf16>(packed, rank, count, F32::splat(1.0f), out);
        case Coding::f16:
            return decode_run<Coding::f16>(packed, rank, count, F32::splat(1.0f), out);
        case Coding::i8:
            while (count > 0) {
                const int64_t block = rank / kScaleBlock, left = (block + 1) * kScaleBlock - rank;
                const int64_t run = count < left ? count : left;
                decode_run<Coding::i8>(packed, rank, run, F32::splat(packed.scales[block]), out);
                rank += run;
                out += run;
                count -= run;
            }
    }
}

}  // namespace
}  // namespace edgeprune
