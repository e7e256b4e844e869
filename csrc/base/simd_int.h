// What simd.h lacks for kernels that work on the bits of floats: 32-bit integers, comparisons as bits, and conversion
// to narrower types. Include it after simd.h, in kernel files only.
//
//   I32   as many 32-bit lanes as F32: splat, & | ^ + - *, shl<n>, shr<n> (logical), max (signed), load, store
//   bits_of, float_of         reinterpret;  to_float, to_int: convert (to_int: only values that are whole)
//   above(a, b)               a bit for each lane: a > b; integers signed, floats false on NaN
//   sub, smaller, larger, round_down   of F32; smaller(NaN, b) is unspecified
//   store_16, store_8         the low 16 (8) bits of each lane; for store_16 the high ones are 0, for store_8 the lane
//   is
//                             in -128..127
//   load_16, load_8           zero-extended, sign-extended
//   store_half, load_half     IEEE float16, to nearest, ties to even; NaN keeps sign and top payload, and turns quiet
//   stream(x, p), fence()     a store around the caches where there is one; p aligned to the vector
#pragma once

#include "base/simd.h"

namespace edgeprune {
namespace {
namespace simd {

#if defined(EDGEPRUNE_SIMD_AVX512)

struct I32 {
    __m512i v;
    static I32 splat(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
    static I32 load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
    void store(uint32_t* p) const { _mm512_storeu_si512(p, v); }
    friend I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
    friend I32 operator|(I32 a, I32 b) { return {_mm512_or_si512(a.v, b.v)}; }
    friend I32 operator^(I32 a, I32 b) { return {_mm512_xor_si512(a.v, b.v)}; }
    friend I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
    friend I32 operator*(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
    template <int n>
    I32 shl() const {
        return {_mm512_slli_epi32(v, n)};
    }
    template <int n>
    I32 shr() const {
        return {_mm512_srli_epi32(v, n)};
    }
    static I32 max(I32 a, I32 b) { return {_mm512_max_epi32(a.v, b.v)}; }
};
inline I32 bits_of(F32 x) { return {_mm512_castps_si512(x.v)}; }
inline F32 float_of(I32 x) { return {_mm512_castsi512_ps(x.v)}; }
inline F32 to_float(I32 x) { return {_mm512_cvtepi32_ps(x.v)}; }
inline I32 to_int(F32 x) { return {_mm512_cvttps_epi32(x.v)}; }
inline unsigned above(I32 a, I32 b) { return _mm512_cmpgt_epi32_mask(a.v, b.v); }
inline unsigned above(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 smaller(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 larger(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 round_down(F32 x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
inline void store_16(I32 x, uint8_t* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x.v));
}
inline void store_8(I32 x, uint8_t* p) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v)); }
inline I32 load_16(const uint8_t* p) {
    return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline I32 load_8(const uint8_t* p) {
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline void store_half(F32 x, uint8_t* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
inline F32 load_half(const uint8_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void stream(F32 x, float* p) { _mm512_stream_ps(p, x.v); }
inline void fence() { _mm_sfence(); }

#elif defined(EDGEPRUNE_SIMD_AVX2)

struct I32 {
    __m256i v;
    static I32 splat(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
    static I32 load(const uint32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
    void store(uint32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
    friend I32 operator&(I32 a, I32 b) { return {_mm256_and_si256(a.v, b.v)}; }
    friend I32 operator|(I32 a, I32 b) { return {_mm256_or_si256(a.v, b.v)}; }
    friend I32 operator^(I32 a, I32 b) { return {_mm256_xor_si256(a.v, b.v)}; }
    friend I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
    friend I32 operator*(I32 a, I32 b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
    template <int n>
    I32 shl() const {
        return {_mm256_slli_epi32(v, n)};
    }
    template <int n>
    I32 shr() const {
        return {_mm256_srli_epi32(v, n)};
    }
    static I32 max(I32 a, I32 b) { return {_mm256_max_epi32(a.v, b.v)}; }
};
inline I32 bits_of(F32 x) { return {_mm256_castps_si256(x.v)}; }
inline F32 float_of(I32 x) { return {_mm256_castsi256_ps(x.v)}; }
inline F32 to_float(I32 x) { return {_mm256_cvtepi32_ps(x.v)}; }
inline I32 to_int(F32 x) { return {_mm256_cvttps_epi32(x.v)}; }
inline unsigned above(I32 a, I32 b) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.v, b.v))));
}
inline unsigned above(F32 a, F32 b) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)));
}
inline F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32 smaller(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32 larger(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32 round_down(F32 x) { return {_mm256_floor_ps(x.v)}; }
// Each half of eight lanes is packed by itself; the permutation brings the two together.
inline __m128i to_16(__m256i packed) { return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)); }
inline void store_16(I32 x, uint8_t* p) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_16(_mm256_packus_epi32(x.v, x.v)));
}
inline void store_8(I32 x, uint8_t* p) {
    const __m128i words = to_16(_mm256_packs_epi32(x.v, x.v));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline I32 load_16(const uint8_t* p) {
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I32 load_8(const uint8_t* p) {
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
inline void store_half(F32 x, uint8_t* p) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
inline F32 load_half(const uint8_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline void stream(F32 x, float* p) { _mm256_stream_ps(p, x.v); }
inline void fence() { _mm_sfence(); }

#elif defined(EDGEPRUNE_SIMD_NEON)

struct I32 {
    uint32x4_t v;
    static I32 splat(uint32_t x) { return {vdupq_n_u32(x)}; }
    static I32 load(const uint32_t* p) { return {vld1q_u32(p)}; }
    void store(uint32_t* p) const { vst1q_u32(p, v); }
    friend I32 operator&(I32 a, I32 b) { return {vandq_u32(a.v, b.v)}; }
    friend I32 operator|(I32 a, I32 b) { return {vorrq_u32(a.v, b.v)}; }
    friend I32 operator^(I32 a, I32 b) { return {veorq_u32(a.v, b.v)}; }
    friend I32 operator+(I32 a, I32 b) { return {vaddq_u32(a.v, b.v)}; }
    friend I32 operator*(I32 a, I32 b) { return {vmulq_u32(a.v, b.v)}; }
    template <int n>
    I32 shl() const {
        return {vshlq_n_u32(v, n)};
    }
    template <int n>
    I32 shr() const {
        return {vshrq_n_u32(v, n)};
    }
    static I32 max(I32 a, I32 b) {
        return {vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(a.v), vreinterpretq_s32_u32(b.v)))};
    }
};
inline I32 bits_of(F32 x) { return {vreinterpretq_u32_f32(x.v)}; }
inline F32 float_of(I32 x) { return {vreinterpretq_f32_u32(x.v)}; }
inline F32 to_float(I32 x) { return {vcvtq_f32_s32(vreinterpretq_s32_u32(x.v))}; }
inline I32 to_int(F32 x) { return {vreinterpretq_u32_s32(vcvtq_s32_f32(x.v))}; }
inline unsigned lane_bits(uint32x4_t set) {
    const uint32x4_t lane_bit = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(set, lane_bit));
}
inline unsigned above(I32 a, I32 b) {
    return lane_bits(vcgtq_s32(vreinterpretq_s32_u32(a.v), vreinterpretq_s32_u32(b.v)));
}
inline unsigned above(F32 a, F32 b) { return lane_bits(vcgtq_f32(a.v, b.v)); }
inline F32 sub(F32 a, F32 b) { return {vsubq_f32(a.v, b.v)}; }
inline F32 smaller(F32 a, F32 b) { return {vminq_f32(a.v, b.v)}; }
inline F32 larger(F32 a, F32 b) { return {vmaxq_f32(a.v, b.v)}; }
inline F32 round_down(F32 x) { return {vrndmq_f32(x.v)}; }
inline void store_16(I32 x, uint8_t* p) { vst1_u8(p, vreinterpret_u8_u16(vmovn_u32(x.v))); }
inline void store_8(I32 x, uint8_t* p) {
    const uint16x4_t words = vmovn_u32(x.v);
    const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
    std::memcpy(p, &four, sizeof four);
}
inline I32 load_16(const uint8_t* p) { return {vmovl_u16(vreinterpret_u16_u8(vld1_u8(p)))}; }
inline I32 load_8(const uint8_t* p) {
    uint32_t four;
    std::memcpy(&four, p, sizeof four);
    const int16x8_t words = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
    return {vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(words)))};
}
inline void store_half(F32 x, uint8_t* p) { vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(x.v))); }
inline F32 load_half(const uint8_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)))}; }
inline void stream(F32 x, float* p) { x.store(p); }
inline void fence() {}

#else  // scalar

struct I32 {
    uint32_t v;
    static I32 splat(uint32_t x) { return {x}; }
    static I32 load(const uint32_t* p) { return {*p}; }
    void store(uint32_t* p) const { *p = v; }
    friend I32 operator&(I32 a, I32 b) { return {a.v & b.v}; }
    friend I32 operator|(I32 a, I32 b) { return {a.v | b.v}; }
    friend I32 operator^(I32 a, I32 b) { return {a.v ^ b.v}; }
    friend I32 operator+(I32 a, I32 b) { return {a.v + b.v}; }
    friend I32 operator*(I32 a, I32 b) { return {a.v * b.v}; }
    template <int n>
    I32 shl() const {
        return {v << n};
    }
    template <int n>
    I32 shr() const {
        return {v >> n};
    }
    static I32 max(I32 a, I32 b) { return static_cast<int32_t>(a.v) > static_cast<int32_t>(b.v) ? a : b; }
};
inline I32 bits_of(F32 x) {
    I32 bits;
    std::memcpy(&bits.v, &x.v, sizeof bits.v);
    return bits;
}
inline F32 float_of(I32 x) {
    F32 value;
    std::memcpy(&value.v, &x.v, sizeof value.v);
    return value;
}
inline F32 to_float(I32 x) { return {static_cast<float>(static_cast<int32_t>(x.v))}; }
inline I32 to_int(F32 x) { return {static_cast<uint32_t>(static_cast<int32_t>(x.v))}; }
inline unsigned above(I32 a, I32 b) { return static_cast<int32_t>(a.v) > static_cast<int32_t>(b.v); }
inline unsigned above(F32 a, F32 b) { return a.v > b.v; }
inline F32 sub(F32 a, F32 b) { return {a.v - b.v}; }
inline F32 smaller(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }
inline F32 larger(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
inline F32 round_down(F32 x) { return {__builtin_floorf(x.v)}; }
inline void store_16(I32 x, uint8_t* p) {
    const uint16_t low = static_cast<uint16_t>(x.v);
    std::memcpy(p, &low, sizeof low);
}
inline void store_8(I32 x, uint8_t* p) { *p = static_cast<uint8_t>(x.v); }
inline I32 load_16(const uint8_t* p) {
    uint16_t low;
    std::memcpy(&low, p, sizeof low);
    return {low};
}
inline I32 load_8(const uint8_t* p) { return {static_cast<uint32_t>(static_cast<int32_t>(static_cast<int8_t>(*p)))}; }
inline void store_half(F32 x, uint8_t* p) {
    const uint32_t bits = bits_of(x).v, sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    uint32_t half;
    if (magnitude > 0x7F800000) {
        half = 0x7E00 | (magnitude >> 13 & 0x3FF);
    } else if (magnitude >= 0x477FF000) {
        half = 0x7C00;  // 65520 and above round to infinity
    } else if (magnitude >= 0x38800000) {
        half = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13;
    } else {
        // Adding 0.5 leaves the multiple of 2^-24, rounded by the processor, in the low bits.
        const F32 shifted = {float_of(I32{magnitude}).v + 0.5f};
        half = bits_of(shifted).v - 0x3F000000;
    }
    store_16(I32{sign | half}, p);
}
inline F32 load_half(const uint8_t* p) {
    const uint32_t half = load_16(p).v, sign = (half & 0x8000) << 16, magnitude = half & 0x7FFF;
    if (magnitude > 0x7C00) return float_of(I32{sign | 0x7FC00000 | magnitude << 13});
    if (magnitude == 0x7C00) return float_of(I32{sign | 0x7F800000});
    if (magnitude >= 0x400) return float_of(I32{sign | ((magnitude << 13) + 0x38000000)});
    const F32 value = {static_cast<float>(magnitude) * 0x1p-24f};
    return float_of(I32{sign | bits_of(value).v});
}
inline void stream(F32 x, float* p) { x.store(p); }
inline void fence() {}

#endif

}  // namespace simd
}  // namespace
}  // namespace edgeprune
