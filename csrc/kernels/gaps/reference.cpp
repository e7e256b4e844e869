#include <cstring>
#include <vector>

#include "kernels/gaps/gaps.h"

namespace edgeprune {
namespace {

bool kept(const GapBits& code, int64_t i) { return code.mask[i / 8] >> (i % 8) & 1; }

int ones(int byte) {
    int set = 0;
    for (; byte; byte >>= 1) set += byte & 1;
    return set;
}

std::vector<bool> all_bits(const GapBits& code) {
    std::vector<bool> bits;
    if (code.parameter == kByteCode) {
        for (int64_t i = 0; i < (code.n + 7) / 8; ++i) {
            // The number of a code of its length: those of bytes before it in (length, byte), each shifted along.
            const int byte = code.mask[i], length = kByteCodeBits[ones(byte)];
            int number = 0;
            for (int other = 0; other < 256; ++other) {
                const int its = kByteCodeBits[ones(other)];
                if (its < length || (its == length && other < byte)) number += 1 << (length - its);
            }
            for (int b = length - 1; b >= 0; --b) bits.push_back(number >> b & 1);
        }
        return bits;
    }
    int64_t gap = 0;
    for (int64_t i = 0; i < code.n; ++i, ++gap) {
        if (!kept(code, i)) continue;
        for (int64_t zeros = gap >> code.parameter; zeros > 0; --zeros) bits.push_back(false);
        bits.push_back(true);
        for (int b = 0; b < code.parameter; ++b) bits.push_back(gap >> b & 1);
        gap = -1;
    }
    return bits;
}

}  // namespace

int64_t gaps_length_reference(const GapBits& code) { return static_cast<int64_t>(all_bits(code).size()); }

void gaps_encode_reference(const GapBits& code, uint8_t* out) {
    int64_t at = 0;
    for (bool bit : all_bits(code)) {
        if (bit) out[at / 8] |= static_cast<uint8_t>(1u << (at % 8));
        ++at;
    }
}

}  // namespace edgeprune
