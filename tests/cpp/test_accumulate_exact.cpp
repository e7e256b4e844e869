// Every variant present against the reference, on sizes around mask bytes, words of 64 and pieces; and what is refused.
#include <cmath>
#include <limits>

#include "base/error.h"
#include "check.h"
#include "kernels/accumulate_exact/accumulate_exact.h"
#include "ops/accumulate_exact.h"
#include "ops/build_info.h"
#include "views.h"

using namespace edgeprune;
using test::view_of;

namespace {

struct Case {
    std::vector<int64_t> words;
    std::vector<uint8_t> mask;
    std::vector<float> values;

    Case(int64_t n, int64_t kept_of_8, test::Random& random) : words(static_cast<size_t>(n)) {
        mask.resize(static_cast<size_t>((n + 7) / 8));
        for (int64_t i = 0; i < n; ++i) {
            words[static_cast<size_t>(i)] = random.below(1 << 20) - (1 << 19);
            if (random.below(8) >= kept_of_8) continue;
            mask[static_cast<size_t>(i / 8)] |= static_cast<uint8_t>(1 << (i % 8));
            values.push_back(random.real());
        }
    }
    ExactCall call() { return {view_of(words), view_of(mask), view_of(values)}; }
};

bool refused(Case& one, double factor, int64_t weight, int bits) {
    const std::vector<int64_t> before = one.words;
    try {
        accumulate_exact(one.call(), factor, weight, bits, {});
    } catch (const Error&) {
        return one.words == before;
    }
    return false;
}

}  // namespace

TEST(accumulate_exact_equals_the_reference) {
    test::Random random(7);
    for (const std::string& variant : present_variants())
        for (int64_t n : {0, 1, 7, 8, 9, 63, 64, 65, 511, 65536, 70001})
            for (int64_t kept_of_8 : {0, 1, 4, 8})
                for (int threads : {1, 3}) {
                    Case one(n, kept_of_8, random);
                    std::vector<int64_t> expected = one.words;
                    const double factor = 37 * std::ldexp(1.0, 40);
                    accumulate_exact_reference(
                        {expected.data(), one.mask.data(), one.values.data(), n, factor, 37, 10});
                    accumulate_exact(one.call(), factor, 37, 10, {threads, variant});
                    CHECK(one.words == expected);
                    if (kept_of_8 < 8) continue;
                    accumulate_exact_reference({expected.data(), nullptr, one.values.data(), n, factor, 37, 10});
                    ExactCall whole = one.call();
                    whole.mask = {};
                    accumulate_exact(whole, factor, 37, 10, {threads, variant});
                    CHECK(one.words == expected);
                }
}

TEST(accumulate_exact_refuses_before_it_writes) {
    test::Random random(7);
    Case good(100, 4, random);
    CHECK(refused(good, 1.0, 0, 4));
    CHECK(refused(good, 1.0, 16, 4));
    CHECK(refused(good, 1.0, 1, 25));
    CHECK(refused(good, std::ldexp(1.0, 70), 1, 4));
    CHECK(refused(good, std::numeric_limits<double>::quiet_NaN(), 1, 4));
    Case nan = good;
    nan.values.back() = std::numeric_limits<float>::quiet_NaN();
    CHECK(refused(nan, 1.0, 1, 4));
    Case few = good;
    few.values.pop_back();
    CHECK(refused(few, 1.0, 1, 4));
    Case beyond = good;
    beyond.mask.back() |= 0x80;
    CHECK(refused(beyond, 1.0, 1, 4));
    Case shorter = good;
    shorter.mask.pop_back();
    CHECK(refused(shorter, 1.0, 1, 4));
}
