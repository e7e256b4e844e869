// Exact weighted sums of packed float32 values: integers in two lanes of one 64-bit word, so that the order in which
// updates are added changes no bit. Plain structs, no checks, no allocation: ops/accumulate_exact.cpp checks and
// splits.
#pragma once

#include <cstdint>

#include "base/isa.h"

namespace edgeprune {

// words[i] += (round(values[rank(i)] * factor) << bits) + weight for every kept i, in two's complement.
//   round is to nearest, ties to even, of the double product. rank(i) counts the kept elements before i; mask holds bit
//   i % 8 (lowest first) of byte i / 8 for element i, spare bits zero; null keeps all.
//   |values * factor| < 2^62 (checked outside). words must not overlap the others.
struct ExactTask {
    int64_t* words;
    const uint8_t* mask;
    const float* values;
    int64_t n;
    double factor;
    int64_t weight;
    int bits;
};

// One instruction set's kernel. Ranges of mask bytes let threads share a task: elements 8 * first_byte to
// min(8 * last_byte, n), the first kept one of which has rank `rank`.
struct ExactKernels {
    Isa isa;
    void (*add)(const ExactTask&, int64_t first_byte, int64_t last_byte, int64_t rank);
};

#define EDGEPRUNE_DECLARE(isa) extern const ExactKernels accumulate_exact_##isa;
EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_DECLARE)
#undef EDGEPRUNE_DECLARE

// The reference: the whole task, bit by bit.
void accumulate_exact_reference(const ExactTask&);

}  // namespace edgeprune
