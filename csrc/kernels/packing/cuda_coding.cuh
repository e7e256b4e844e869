// Kept values to bytes and back on the device, one at a time, by integers where the CPU's kernels go by integers, so
// that every bit is the same (coding_simd.h and base/simd_int.h hold the formulas).
#pragma once

#include "kernels/packing/cuda_tiles.cuh"

namespace edgeprune {
namespace {

// ---- 16 bits --------------------------------------------------------------------------------------------------------

__device__ inline uint16_t to_bf16(float v) {
    const uint32_t bits = __float_as_uint(v), upper = bits >> 16;
    const uint32_t rounded = (bits + 0x7FFFu + (upper & 1u)) >> 16;
    return static_cast<uint16_t>((bits & kMagnitude) > kInfinity ? upper | 0x40u : rounded);
}

__device__ inline float from_bf16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

// Without branches: every case is worked out and one is taken.
__device__ inline uint16_t to_f16(float v) {
    const uint32_t bits = __float_as_uint(v), sign = bits >> 16 & 0x8000u, magnitude = bits & kMagnitude;
    const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
    // Adding 0.5 leaves the multiple of 2^-24, rounded by the processor, in the low bits.
    const uint32_t small = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 0.5f)) - 0x3F000000u;
    uint32_t half = magnitude < 0x38800000u ? small : normal;
    half = magnitude >= 0x477FF000u ? 0x7C00u : half;  // 65520 and above round to infinity
    half = magnitude > kInfinity ? 0x7E00u | (magnitude >> 13 & 0x3FFu) : half;
    return static_cast<uint16_t>(sign | half);
}

__device__ inline float from_f16(uint16_t bits) {
    const uint32_t half = bits, sign = (half & 0x8000u) << 16, magnitude = half & 0x7FFFu;
    // As the bits of a float the magnitude is 2^112 times too small; the product is exact, for denormals too.
    const uint32_t number = __float_as_uint(__fmul_rn(__uint_as_float(magnitude << 13), 0x1p112f));
    const uint32_t quiet = magnitude > 0x7C00u ? 0x400000u : 0u;
    return __uint_as_float(sign | (magnitude >= 0x7C00u ? kInfinity | quiet | magnitude << 13 : number));
}

// ---- int8 -----------------------------------------------------------------------------------------------------------

__device__ inline uint32_t mixed(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

// A number in [0, 1) for a rank.
__device__ inline float uniform(const PackingRow& row, int64_t rank) {
    const uint32_t low = mixed(static_cast<uint32_t>(rank) ^ row.key0);
    const uint32_t high = static_cast<uint32_t>(rank >> 32) + row.key1;
    return __fmul_rn(static_cast<float>(mixed(low ^ high) >> 8), 0x1p-24f);
}

__device__ inline int to_i8(float v, float scale, bool stochastic, const PackingRow& row, int64_t rank) {
    if (!(scale > 0.0f)) return 0;
    const float t = fmaxf(fminf(__fdiv_rn(v, scale), 127.0f), -127.0f);
    if (!stochastic) return static_cast<int>(rintf(t));
    const float down = floorf(t);
    return static_cast<int>(down) + (uniform(row, rank) < t - down ? 1 : 0);
}

__device__ inline float from_i8(uint8_t byte, float scale) {
    return __fmul_rn(static_cast<float>(static_cast<int8_t>(byte)), scale);
}

// ---- one value in values --------------------------------------------------------------------------------------------

__device__ inline bool finite(float v) { return (__float_as_uint(v) & kMagnitude) < kInfinity; }

// Values may start at any byte: those of 2 and 4 bytes go one byte at a time where they are not aligned (`whole`).
template <class Word>
__device__ inline Word load_word(const uint8_t* p, bool whole) {
    if (whole) return constant(reinterpret_cast<const Word*>(p));
    Word word = 0;
    for (int i = 0; i < static_cast<int>(sizeof(Word)); ++i)
        word |= static_cast<Word>(static_cast<Word>(constant(p + i)) << (8 * i));
    return word;
}

template <class Word>
__device__ inline void store_word(uint8_t* p, Word word, bool whole) {
    if (whole) {
        write(reinterpret_cast<Word*>(p), word);
    } else {
        for (int i = 0; i < static_cast<int>(sizeof(Word)); ++i) write(p + i, static_cast<uint8_t>(word >> (8 * i)));
    }
}

template <Coding coding>
__device__ inline bool whole_items(const PackingRow& row) {
    constexpr int64_t item = kItemBytes[static_cast<int>(coding)];
    return reinterpret_cast<uintptr_t>(row.values) % item == 0;
}

// Writes v at a rank, not in i8; returns what the receiver will read.
template <Coding coding>
__device__ inline float encode(const PackingRow& row, int64_t rank, float v, bool whole) {
    static_assert(coding != Coding::i8, "int8 goes by blocks");
    if (coding == Coding::f32) {
        store_word<uint32_t>(row.values + 4 * rank, __float_as_uint(v), whole);
        return v;
    }
    const uint16_t half = coding == Coding::bf16 ? to_bf16(v) : to_f16(v);
    store_word<uint16_t>(row.values + 2 * rank, half, whole);
    return coding == Coding::bf16 ? from_bf16(half) : from_f16(half);
}

template <Coding coding>
__device__ inline float decode(const PackingRow& row, int64_t rank, bool whole) {
    if (coding == Coding::i8) return from_i8(constant(row.values + rank), constant(row.scales + rank / kScaleBlock));
    if (coding == Coding::f32) return __uint_as_float(load_word<uint32_t>(row.values + 4 * rank, whole));
    const uint16_t half = load_word<uint16_t>(row.values + 2 * rank, whole);
    return coding == Coding::bf16 ? from_bf16(half) : from_f16(half);
}

}  // namespace
}  // namespace edgeprune
