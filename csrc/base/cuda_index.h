// Index arithmetic of the CUDA kernels that is easy to get wrong, for host and device alike: tests/cpp holds it against
// plain division and search.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define EDGEPRUNE_HD __host__ __device__ inline
#else
#define EDGEPRUNE_HD inline
#endif

namespace edgeprune {

EDGEPRUNE_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Quotient and remainder by a divisor that is fixed for a launch, for numbers below 2^31: a multiplication and a shift
// in place of some twenty instructions (the round-up method of Granlund and Montgomery, PLDI 1994: with s the smallest
// power of two >= d, m = 2^32 (2^s - d) / d + 1 and q = (umulhi(n, m) + n) >> s).
struct FastDivisor {
    uint32_t divisor = 1, multiplier = 1, shift = 0;

    FastDivisor() = default;
    explicit FastDivisor(uint32_t d) : divisor(d) {
        while (shift < 31 && (uint32_t{1} << shift) < d) ++shift;
        const uint64_t power = uint64_t{1} << shift;
        multiplier = static_cast<uint32_t>((power - d) * (uint64_t{1} << 32) / d + 1);
    }
    EDGEPRUNE_HD uint32_t quotient(uint32_t n) const {
#ifdef __CUDA_ARCH__
        const uint32_t high = __umulhi(n, multiplier);
#else
        const auto high = static_cast<uint32_t>(static_cast<uint64_t>(n) * multiplier >> 32);
#endif
        return (high + n) >> shift;
    }
};

// The last of `count` increasing starts that is <= `at` (starts[0] <= at): which of many pieces laid end to end holds
// it; pieces without length are passed over.
template <class Start>
EDGEPRUNE_HD int last_at_or_before(int count, int64_t at, Start start) {
    int low = 0, high = count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (start(middle) <= at) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

// A word's bits from `size` on cleared; size may be 0 .. 32 and more.
EDGEPRUNE_HD uint32_t first_bits(uint32_t word, int64_t size) {
    return size >= 32 ? word : size <= 0 ? 0u : word & ((1u << size) - 1u);
}

}  // namespace edgeprune
