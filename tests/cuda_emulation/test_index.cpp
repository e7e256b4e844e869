// Index arithmetic that host and device share, against plain division and search.
#include "base/cuda_index.h"
#include "check.h"

using namespace edgeprune;

TEST(fast_divisor_divides) {
    test::Random random(3);
    std::vector<uint32_t> divisors = {1, 2, 3, 5, 7, 9, 49, 64, 255, 256, 257, 65535, 65536, 1u << 30, 0x7FFFFFFF};
    for (int i = 0; i < 300; ++i) divisors.push_back(static_cast<uint32_t>(1 + random.below(0x7FFFFFFF)));
    for (uint32_t d : divisors) {
        const FastDivisor fast(d);
        std::vector<uint32_t> numbers = {0, 1, d - 1, 0x7FFFFFFF, 0x7FFFFFFE};
        for (int i = 0; i < 100; ++i) {
            const auto n = static_cast<uint32_t>(random.below(0x7FFFFFFF));
            numbers.push_back(n);
            if (n >= d) numbers.push_back(n / d * d - 1);  // one short of a multiple, and a multiple
            numbers.push_back(n / d * d);
        }
        for (uint32_t n : numbers) CHECK(fast.quotient(n) == n / d);
    }
}

TEST(pieces_are_found_by_their_starts) {
    const std::vector<int64_t> starts = {0, 0, 3, 3, 3, 4, 100, 100};
    for (int64_t at = 0; at < 120; ++at) {
        int expected = 0;
        for (size_t i = 0; i < starts.size(); ++i)
            if (starts[i] <= at) expected = static_cast<int>(i);
        CHECK(last_at_or_before(8, at, [&](int i) { return starts[static_cast<size_t>(i)]; }) == expected);
    }
}

TEST(first_bits_of_a_word) {
    for (int64_t size = -3; size < 40; ++size)
        for (int bit = 0; bit < 32; ++bit) CHECK(((first_bits(0xFFFFFFFFu, size) >> bit & 1u) != 0) == (bit < size));
}
