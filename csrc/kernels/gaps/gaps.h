// Masks as gaps between kept elements, coded by Golomb and Rice, or as bytes in one fixed prefix code. Plain structs,
// no checks of the caller, no allocation; what is decoded is checked, every bit of it.
//
// Bits fill bytes from the least significant one; the last byte is filled up with zeros.
//   parameter 0 .. 30   for each kept element the number g of dropped ones since the kept one before it:
//                       g >> parameter zeros, a one, then the low `parameter` bits of g, lowest first
//   parameter 32        for each byte of the mask its code: canonical in order of (length, byte), most significant bit
//                       first, with the lengths kByteCodeBits by the number of bits set. For densities near 0.38, where
//                       a code for single gaps wastes 4 %.
// S. W. Golomb, Run-length encodings, IEEE Trans. Inf. Theory 12 (1966); R. F. Rice, JPL Publication 79-22 (1979).
#pragma once

#include <cstdint>

#include "base/isa.h"

namespace edgeprune {

constexpr int kMaxRice = 30;
constexpr int kByteCode = 32;
constexpr int kByteCodeBits[9] = {6, 6, 7, 8, 8, 9, 10, 10, 10};
constexpr int kByteCodeMost = 10;

enum class GapError { none, truncated, outside, count, leftover };

struct GapsKernels {
    Isa isa;
    // bits[p] for p = 0 .. last: length of the Rice code with parameter p, in bits. Returns the number of kept
    // elements.
    int64_t (*measure)(const uint8_t* mask, int64_t n, int last, uint64_t* bits);
    // Length in the byte code, in bits.
    uint64_t (*measure_bytes)(const uint8_t* mask, int64_t n);
    // Writes exactly the bytes that the length says.
    void (*encode)(const uint8_t* mask, int64_t n, int parameter, uint8_t* out, int64_t out_bytes);
    // mask: all zeros before. Nothing outside [0, n) is written and nothing outside the data read, whatever they hold.
    // outside: an element at n or beyond; count: not `count` elements; leftover: bytes or set bits behind the last
    // code.
    GapError (*decode)(const uint8_t* data, int64_t data_bytes, int64_t count, int64_t n, int parameter, uint8_t* mask);
};

#define EDGEPRUNE_DECLARE(isa) extern const GapsKernels gaps_##isa;
EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_DECLARE)
#undef EDGEPRUNE_DECLARE

// The reference: a bit at a time.
struct GapBits {
    const uint8_t* mask;
    int64_t n;
    int parameter;
};
int64_t gaps_length_reference(const GapBits&);             // in bits
void gaps_encode_reference(const GapBits&, uint8_t* out);  // out: zeros before

}  // namespace edgeprune
