// One small vector wrapper with the same face on every instruction set: kernels are written once and compiled once per
// set. Include it only in a kernel file, after EDGEPRUNE_SIMD_<SET> is defined and inside nothing: everything here is
// in an anonymous namespace, because an inline function compiled with AVX flags may be the copy the linker keeps.
//
//   F32   `lanes` floats:   load, store, load_part, store_part (first n lanes; the rest is neither read nor written,
//         and reads as 0), splat, + * /, select_positive(c, a, b) = c > 0 ? a : b lane by lane, bits kept
//   F64   `lanes` doubles:  zero, load, store, +, *, abs, sqrt
//   widen(v, out)           F32::lanes floats to F32::lanes / F64::lanes vectors of doubles, exact
//   compress(x, bits)       the lanes whose bit is set, moved to the front in order; the rest is unspecified
//   expand(x, bits)         lanes whose bit is set take x's front lanes in order; the rest is unspecified
//   select(bits, a, b)      a where the bit is set, else b
//
//   fma(a, b, c)            a * b + c with one rounding (scalar: two). Not for kernels that promise equal bits: there a
//         product rounds before it is added, as in scalar code, so every set gives the same bits
//   sum4(a, b, c, d, out)   out[0] += all lanes of a, out[1] += all of b, ...
//   ask_for(p)              the line of memory that holds *p is wanted soon, in the second-level cache
#pragma once

#include <cstdint>
#include <cstring>

#if defined(EDGEPRUNE_SIMD_AVX2) || defined(EDGEPRUNE_SIMD_AVX512)
#include <immintrin.h>
#elif defined(EDGEPRUNE_SIMD_NEON)
#include <arm_neon.h>
#elif !defined(EDGEPRUNE_SIMD_SCALAR)
#error "define EDGEPRUNE_SIMD_SCALAR, _AVX2, _AVX512 or _NEON before including simd.h"
#endif

namespace edgeprune {
namespace {
namespace simd {

// Without the empty statement gcc 12 takes a function that does nothing but ask for one without an effect, and drops
// the calls that it has not inlined by then (accumulate lost all of its own in that way, and half its pace).
inline void ask_for(const void* p) {
    __builtin_prefetch(p, 0, 2);
    asm volatile("");
}

// For sets without an instruction for it: for each pattern of bits the lane that each lane takes, one byte a lane.
template <int Lanes>
struct LaneOrders {
    uint64_t compress[1 << Lanes] = {}, expand[1 << Lanes] = {};
    constexpr LaneOrders() {
        for (int bits = 0; bits < (1 << Lanes); ++bits) {
            int front = 0;
            for (int lane = 0; lane < Lanes; ++lane) {
                if (!(bits >> lane & 1)) continue;
                compress[bits] |= static_cast<uint64_t>(lane) << (8 * front);
                expand[bits] |= static_cast<uint64_t>(front) << (8 * lane);
                ++front;
            }
        }
    }
};
template <int Lanes>
constexpr LaneOrders<Lanes> kOrders{};

#if defined(EDGEPRUNE_SIMD_AVX512)

struct F32 {
    static constexpr int lanes = 16;
    __m512 v;
    static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
    static F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static F32 load_part(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
    static F32 splat(float x) { return {_mm512_set1_ps(x)}; }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store_part(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, first(n), v); }
    friend F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
    friend F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
    friend F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
    static F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
    static F32 select_positive(F32 c, F32 a, F32 b) {
        return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(c.v, _mm512_setzero_ps(), _CMP_GT_OQ), b.v, a.v)};
    }
    static F32 compress(F32 x, unsigned bits) { return {_mm512_maskz_compress_ps(static_cast<__mmask16>(bits), x.v)}; }
    static F32 expand(F32 x, unsigned bits) { return {_mm512_maskz_expand_ps(static_cast<__mmask16>(bits), x.v)}; }
    static F32 select(unsigned bits, F32 a, F32 b) {
        return {_mm512_mask_blend_ps(static_cast<__mmask16>(bits), b.v, a.v)};
    }
};

struct F64 {
    static constexpr int lanes = 8;
    __m512d v;
    static F64 zero() { return {_mm512_setzero_pd()}; }
    static F64 load(const double* p) { return {_mm512_loadu_pd(p)}; }
    void store(double* p) const { _mm512_storeu_pd(p, v); }
    friend F64 operator+(F64 a, F64 b) { return {_mm512_add_pd(a.v, b.v)}; }
    friend F64 operator*(F64 a, F64 b) { return {_mm512_mul_pd(a.v, b.v)}; }
    F64 abs() const { return {_mm512_abs_pd(v)}; }
    F64 sqrt() const { return {_mm512_sqrt_pd(v)}; }
};

inline void widen(F32 x, F64* out) {
    out[0].v = _mm512_cvtps_pd(_mm512_castps512_ps256(x.v));
    out[1].v = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1));
}

#define EDGEPRUNE_SIMD_HALVES
inline __m256 half_sum(F32 x) { return _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1)); }

#elif defined(EDGEPRUNE_SIMD_AVX2)

struct F32 {
    static constexpr int lanes = 8;
    __m256 v;
    static __m256i first(int64_t n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static F32 load_part(const float* p, int64_t n) { return {_mm256_maskload_ps(p, first(n))}; }
    static F32 splat(float x) { return {_mm256_set1_ps(x)}; }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    void store_part(float* p, int64_t n) const { _mm256_maskstore_ps(p, first(n), v); }
    friend F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
    friend F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
    friend F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
    static F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
    static F32 select_positive(F32 c, F32 a, F32 b) {
        return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(c.v, _mm256_setzero_ps(), _CMP_GT_OQ))};
    }
    static __m256i lanes_of(uint64_t bytes) {
        return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes)));
    }
    static F32 compress(F32 x, unsigned bits) {
        return {_mm256_permutevar8x32_ps(x.v, lanes_of(kOrders<8>.compress[bits]))};
    }
    static F32 expand(F32 x, unsigned bits) {
        return {_mm256_permutevar8x32_ps(x.v, lanes_of(kOrders<8>.expand[bits]))};
    }
    static F32 select(unsigned bits, F32 a, F32 b) {
        const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane_bit);
        return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane_bit)))};
    }
};

struct F64 {
    static constexpr int lanes = 4;
    __m256d v;
    static F64 zero() { return {_mm256_setzero_pd()}; }
    static F64 load(const double* p) { return {_mm256_loadu_pd(p)}; }
    void store(double* p) const { _mm256_storeu_pd(p, v); }
    friend F64 operator+(F64 a, F64 b) { return {_mm256_add_pd(a.v, b.v)}; }
    friend F64 operator*(F64 a, F64 b) { return {_mm256_mul_pd(a.v, b.v)}; }
    F64 abs() const { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), v)}; }
    F64 sqrt() const { return {_mm256_sqrt_pd(v)}; }
};

inline void widen(F32 x, F64* out) {
    out[0].v = _mm256_cvtps_pd(_mm256_castps256_ps128(x.v));
    out[1].v = _mm256_cvtps_pd(_mm256_extractf128_ps(x.v, 1));
}

#define EDGEPRUNE_SIMD_HALVES
inline __m256 half_sum(F32 x) { return x.v; }

#elif defined(EDGEPRUNE_SIMD_NEON)

struct F32 {
    static constexpr int lanes = 4;
    float32x4_t v;
    static F32 load(const float* p) { return {vld1q_f32(p)}; }
    static F32 load_part(const float* p, int64_t n) {
        float part[lanes] = {};
        for (int64_t i = 0; i < n; ++i) part[i] = p[i];
        return load(part);
    }
    static F32 splat(float x) { return {vdupq_n_f32(x)}; }
    void store(float* p) const { vst1q_f32(p, v); }
    void store_part(float* p, int64_t n) const {
        float part[lanes];
        store(part);
        for (int64_t i = 0; i < n; ++i) p[i] = part[i];
    }
    friend F32 operator+(F32 a, F32 b) { return {vaddq_f32(a.v, b.v)}; }
    friend F32 operator*(F32 a, F32 b) { return {vmulq_f32(a.v, b.v)}; }
    friend F32 operator/(F32 a, F32 b) { return {vdivq_f32(a.v, b.v)}; }
    static F32 fma(F32 a, F32 b, F32 c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
    static F32 select_positive(F32 c, F32 a, F32 b) { return {vbslq_f32(vcgtzq_f32(c.v), a.v, b.v)}; }
    // Lane numbers, a byte each, to the byte numbers that a table look-up wants: lane l is bytes 4l .. 4l + 3.
    static uint8x16_t bytes_of(uint64_t lanes) {
        const uint8x8_t low = vcreate_u8(lanes);
        const uint8x16_t repeat = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
        const uint8x16_t within = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
        return vaddq_u8(vshlq_n_u8(vqtbl1q_u8(vcombine_u8(low, low), repeat), 2), within);
    }
    static F32 moved(F32 x, uint64_t lanes) {
        return {vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(x.v), bytes_of(lanes)))};
    }
    static F32 compress(F32 x, unsigned bits) { return moved(x, kOrders<4>.compress[bits]); }
    static F32 expand(F32 x, unsigned bits) { return moved(x, kOrders<4>.expand[bits]); }
    static F32 select(unsigned bits, F32 a, F32 b) {
        const uint32x4_t lane_bit = {1, 2, 4, 8};
        return {vbslq_f32(vtstq_u32(vdupq_n_u32(bits), lane_bit), a.v, b.v)};
    }
};

struct F64 {
    static constexpr int lanes = 2;
    float64x2_t v;
    static F64 zero() { return {vdupq_n_f64(0.0)}; }
    static F64 load(const double* p) { return {vld1q_f64(p)}; }
    void store(double* p) const { vst1q_f64(p, v); }
    friend F64 operator+(F64 a, F64 b) { return {vaddq_f64(a.v, b.v)}; }
    friend F64 operator*(F64 a, F64 b) { return {vmulq_f64(a.v, b.v)}; }
    F64 abs() const { return {vabsq_f64(v)}; }
    F64 sqrt() const { return {vsqrtq_f64(v)}; }
};

inline void widen(F32 x, F64* out) {
    out[0].v = vcvt_f64_f32(vget_low_f32(x.v));
    out[1].v = vcvt_high_f64_f32(x.v);
}

inline void sum4(F32 a, F32 b, F32 c, F32 d, float* out) {
    const float32x4_t sums = vpaddq_f32(vpaddq_f32(a.v, b.v), vpaddq_f32(c.v, d.v));
    vst1q_f32(out, vaddq_f32(vld1q_f32(out), sums));
}

#else  // scalar

struct F32 {
    static constexpr int lanes = 1;
    float v;
    static F32 load(const float* p) { return {*p}; }
    static F32 load_part(const float* p, int64_t n) { return {n ? *p : 0.0f}; }
    static F32 splat(float x) { return {x}; }
    void store(float* p) const { *p = v; }
    void store_part(float* p, int64_t n) const {
        if (n) *p = v;
    }
    friend F32 operator+(F32 a, F32 b) { return {a.v + b.v}; }
    friend F32 operator*(F32 a, F32 b) { return {a.v * b.v}; }
    friend F32 operator/(F32 a, F32 b) { return {a.v / b.v}; }
    static F32 fma(F32 a, F32 b, F32 c) { return {a.v * b.v + c.v}; }
    static F32 select_positive(F32 c, F32 a, F32 b) { return c.v > 0.0f ? a : b; }
    static F32 compress(F32 x, unsigned) { return x; }
    static F32 expand(F32 x, unsigned) { return x; }
    static F32 select(unsigned bits, F32 a, F32 b) { return bits ? a : b; }
};

struct F64 {
    static constexpr int lanes = 1;
    double v;
    static F64 zero() { return {0.0}; }
    static F64 load(const double* p) { return {*p}; }
    void store(double* p) const { *p = v; }
    friend F64 operator+(F64 a, F64 b) { return {a.v + b.v}; }
    friend F64 operator*(F64 a, F64 b) { return {a.v * b.v}; }
    F64 abs() const { return {__builtin_fabs(v)}; }
    F64 sqrt() const { return {__builtin_sqrt(v)}; }
};

inline void widen(F32 x, F64* out) { out[0].v = static_cast<double>(x.v); }

inline void sum4(F32 a, F32 b, F32 c, F32 d, float* out) {
    out[0] += a.v;
    out[1] += b.v;
    out[2] += c.v;
    out[3] += d.v;
}

#endif

#ifdef EDGEPRUNE_SIMD_HALVES
inline __m128 half_sum4(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}
inline void sum4(F32 a, F32 b, F32 c, F32 d, float* out) {
    _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), half_sum4(half_sum(a), half_sum(b), half_sum(c), half_sum(d))));
}
#endif

constexpr int kWide = F32::lanes / F64::lanes;  // vectors of doubles that widen() fills

}  // namespace simd
}  // namespace
}  // namespace edgeprune
