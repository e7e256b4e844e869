// Matrix units as a warp sees them: 16 x 16 by 16 x 8 products of half or bfloat16 words with float32 sums, and the
// loads that bring their operands from shared memory. Compute capability 8.0 and later. On the host (see cuda_launch.h)
// the same, word by word.
#pragma once

#include "base/cuda_shared.h"

namespace edgeprune {

#ifdef __CUDACC__

// Four 8 x 8 matrices of 16-bit words; lane l gives the address of row l % 8 of matrix l / 8. Register i then holds two
// neighbouring words of row lane / 4, columns lane % 4 * 2 and the next, of matrix i; with Transposed, of its
// transpose.
template <bool Transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], SharedAddress row) {
    if (Transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(row)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(row)
                     : "memory");
}

// d += a b. a: rows lane / 4 and 8 below (a[0], a[1]), the same 8 columns on (a[2], a[3]); b: rows lane % 4 * 2 and the
// next, 8 below in b[1], column lane / 4; d: row lane / 4, columns lane % 4 * 2 and the next, 8 rows below in d[2],
// d[3].
template <bool Bf16>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if (Bf16)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A float rounded to nearest, ties to even, as the 16-bit word.
template <bool Bf16>
__device__ __forceinline__ uint16_t to_word(float x) {
    uint16_t word;
    if (Bf16)
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(word) : "f"(x));
    else
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(word) : "f"(x));
    return word;
}

#else

template <bool Bf16>
float from_word(uint16_t word) {
    if (Bf16) return __uint_as_float(static_cast<uint32_t>(word) << 16);
    const int exponent = word >> 10 & 31, fraction = word & 1023;
    float value = exponent == 31 ? (fraction ? NAN : INFINITY)
                  : exponent     ? std::ldexp(1.0f + fraction / 1024.0f, exponent - 15)
                                 : std::ldexp(static_cast<float>(fraction), -24);
    return word & 0x8000 ? -value : value;
}

template <bool Bf16>
uint16_t to_word(float x) {
    const uint32_t bits = __float_as_uint(x);
    if (Bf16) return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const float size = std::fabs(x);
    if (size == 0.0f) return sign;
    if (!(size <= 65519.0f)) return sign | (size != size ? 0x7e00 : 0x7c00);
    int exponent = 0;
    std::frexp(size, &exponent);
    const int least = std::max(exponent - 11, -24);  // weight of the last bit
    const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, -least)));
    const uint32_t word = least == -24 ? units : (static_cast<uint32_t>(least + 24) << 10) + units;
    return static_cast<uint16_t>(sign | word);
}

template <bool Transposed>
void load_matrices(uint32_t (&r)[4], SharedAddress row) {
    const unsigned lane = emulation::lane();
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
        uint32_t pair = 0;
        for (unsigned i = 0; i < 2; ++i) {
            const unsigned h = lane / 4, w = lane % 4 * 2 + i;
            const unsigned from = Transposed ? w : h, word = Transposed ? h : w;
            const auto address = emulation::exchange(row, [&](auto of) { return of(matrix * 8 + from); });
            if (address % 16) std::abort();
            uint16_t value;
            std::memcpy(&value, emulation_shared::aligned() + address + 2 * word, 2);
            pair |= static_cast<uint32_t>(value) << 16 * i;
        }
        r[matrix] = pair;
    }
}

template <bool Bf16>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const unsigned lane = emulation::lane();
    float rows[2][16], columns[2][16];  // the two rows of a and the two columns of b that this lane's sums need
    for (unsigned i = 0; i < 4; ++i) {
        const auto every = [&](auto of) {
            for (unsigned l = 0; l < 4; ++l)
                for (unsigned half = 0; half < 2; ++half)
                    rows[i % 2][i / 2 * 8 + l * 2 + half] =
                        from_word<Bf16>(static_cast<uint16_t>(of(lane / 4 * 4 + l) >> 16 * half));
            return 0;
        };
        emulation::exchange(a[i], every);
    }
    for (unsigned i = 0; i < 2; ++i) {
        const auto every = [&](auto of) {
            for (unsigned c = 0; c < 2; ++c)
                for (unsigned l = 0; l < 4; ++l)
                    for (unsigned half = 0; half < 2; ++half)
                        columns[c][i * 8 + l * 2 + half] =
                            from_word<Bf16>(static_cast<uint16_t>(of((lane % 4 * 2 + c) * 4 + l) >> 16 * half));
            return 0;
        };
        emulation::exchange(i ? b1 : b0, every);
    }
    for (unsigned i = 0; i < 4; ++i)
        for (unsigned k = 0; k < 16; ++k) d[i] += rows[i / 2][k] * columns[i % 2][k];
}

#endif

}  // namespace edgeprune
