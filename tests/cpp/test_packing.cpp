// The packing operators of every variant present: against the reference, element by element, and bit for bit against
// the scalar one. Buffers are exactly as long as they must be, so that sanitizers see a step beyond.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "base/error.h"
#include "check.h"
#include "kernels/gaps/gaps.h"
#include "ops/build_info.h"
#include "ops/gaps.h"
#include "ops/packing.h"
#include "packing_values.h"
#include "views.h"

using namespace edgeprune;
using test::view_of;

namespace {

constexpr int64_t kSizes[] = {0, 1, 7, 8, 9, 63, 64, 65, 255, 256, 257, 2047, 2048, 2049, 5000, 66000, 140001};
constexpr int kPerMille[] = {0, 4, 30, 300, 1000};

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

using test::some_mask;
using test::some_values;

std::vector<int64_t> positions(const std::vector<uint8_t>& mask, int64_t n) {
    std::vector<int64_t> all;
    for (int64_t i = 0; i < n; ++i)
        if (packing_kept_reference(mask.data(), i)) all.push_back(i);
    return all;
}

struct Packed {
    std::vector<uint8_t> values;
    std::vector<float> scales;
};

Packed room_for(Coding coding, size_t kept) {
    const auto item = static_cast<size_t>(kItemBytes[static_cast<int>(coding)]);
    return {std::vector<uint8_t>(kept * item), std::vector<float>(coding == Coding::i8 ? (kept + 255) / 256 : 0)};
}

Packed packed_by(const std::string& variant, int threads, const std::vector<float>& x, std::vector<float>* residual,
                 const std::vector<uint8_t>* mask, size_t kept, Coding coding, bool stochastic) {
    Packed out = room_for(coding, kept);
    PackCall call{view_of(x), {}, {}, view_of(out.values), {}};
    if (residual) call.residual = view_of(*residual);
    if (mask) call.mask = view_of(*mask);
    if (coding == Coding::i8) call.scales = view_of(out.scales);
    pack_many({call}, coding, stochastic, 77, {threads, variant});
    return out;
}

bool refuses(const std::function<void()>& work, const char* said) {
    try {
        work();
    } catch (const Error& error) {
        return std::strstr(error.what(), said) != nullptr;
    }
    return false;
}

}  // namespace

TEST(packing_agrees_with_the_reference_and_between_variants) {
    for (int64_t n : kSizes) {
        const std::vector<float> x = some_values(n, static_cast<uint64_t>(n) + 1);
        for (int share : kPerMille) {
            const std::vector<uint8_t> mask = some_mask(n, share, static_cast<uint64_t>(share));
            const std::vector<int64_t> kept = positions(mask, n);
            for (Coding coding : {Coding::f32, Coding::bf16, Coding::f16, Coding::i8}) {
                for (bool stochastic : {false, true}) {
                    if (stochastic && coding != Coding::i8) continue;
                    const Packed first = packed_by("scalar", 1, x, nullptr, &mask, kept.size(), coding, stochastic);
                    if (!stochastic && (coding == Coding::f32 || coding == Coding::i8)) {
                        Packed plain = room_for(coding, kept.size());
                        CHECK(packing_pack_reference({x.data(), nullptr, mask.data(), n, coding, plain.values.data(),
                                                      plain.scales.data(), static_cast<int64_t>(kept.size()), false, 0,
                                                      0}));
                        CHECK(same(first.values, plain.values) && same(first.scales, plain.scales));
                    }
                    for (const std::string& variant : present_variants())
                        for (int threads : {1, 3}) {
                            const Packed got =
                                packed_by(variant, threads, x, nullptr, &mask, kept.size(), coding, stochastic);
                            CHECK(same(got.values, first.values) && same(got.scales, first.scales));
                        }
                }
            }
        }
    }
}

TEST(unpacking_and_accumulation_agree_with_the_reference) {
    for (int64_t n : kSizes) {
        const std::vector<float> x = some_values(n, 5);
        for (int share : kPerMille) {
            const std::vector<uint8_t> mask = some_mask(n, share, 9);
            const std::vector<int64_t> kept = positions(mask, n);
            for (Coding coding : {Coding::f32, Coding::bf16, Coding::f16, Coding::i8}) {
                const Packed packed = packed_by("scalar", 1, x, nullptr, &mask, kept.size(), coding, false);
                const PackedValues values{packed.values.data(),
                                          packed.scales.data(),
                                          mask.data(),
                                          n,
                                          static_cast<int64_t>(kept.size()),
                                          coding};
                std::vector<float> expected(x.size(), 0.0f), total(x.size(), 0.25f), held(x.size(), 1.0f);
                std::vector<float> expected_total = total, expected_held = held;
                for (size_t r = 0; r < kept.size(); ++r) {
                    const auto at = static_cast<size_t>(kept[r]);
                    expected[at] = packing_decode_reference(values, static_cast<int64_t>(r));
                    const float product = 0.3f * expected[at];
                    expected_total[at] = static_cast<float>(packing_accumulate_reference(0.25, 1.0f, product));
                    expected_held[at] += 0.3f;
                }
                const View scales = coding == Coding::i8 ? view_of(packed.scales) : View{};
                for (const std::string& variant : present_variants())
                    for (int threads : {1, 3}) {
                        std::vector<float> out(x.size(), NAN), sums = total, weights = held;
                        unpack(view_of(packed.values), scales, view_of(mask), coding, view_of(out), {threads, variant});
                        CHECK(same(out, expected));
                        accumulate(view_of(sums), view_of(weights), view_of(packed.values), scales, view_of(mask),
                                   coding, 0.3f, {threads, variant});
                        CHECK(same(sums, expected_total) && same(weights, expected_held));
                    }
            }
        }
    }
}

TEST(feedback_keeps_what_was_not_sent) {
    for (int64_t n : kSizes) {
        std::vector<float> x = some_values(n, 3), before = some_values(n, 4);
        for (std::vector<float>* part : {&x, &before})
            for (float& value : *part) value = std::fabs(value) > 6e4f ? 1.0f : value;
        for (int share : kPerMille) {
            const std::vector<uint8_t> mask = some_mask(n, share, 6);
            const std::vector<int64_t> kept = positions(mask, n);
            for (Coding coding : {Coding::f32, Coding::f16, Coding::i8})
                for (const std::string& variant : present_variants()) {
                    std::vector<float> residual = before;
                    const Packed got = packed_by(variant, 3, x, &residual, &mask, kept.size(), coding, false);
                    std::vector<float> sent(x.size(), 0.0f), rest(x.size());
                    const View scales = coding == Coding::i8 ? view_of(got.scales) : View{};
                    unpack(view_of(got.values), scales, view_of(mask), coding, view_of(sent), {1, "scalar"});
                    for (size_t i = 0; i < x.size(); ++i) rest[i] = (x[i] + before[i]) - sent[i];
                    CHECK(same(residual, rest));
                }
        }
    }
}

TEST(the_largest_are_the_largest) {
    for (int64_t n : kSizes) {
        for (int kind = 0; kind < 3; ++kind) {
            std::vector<float> x = some_values(n, static_cast<uint64_t>(kind));
            if (kind == 1)
                for (float& value : x) value = std::nearbyint(value * 2);
            if (kind == 2) std::fill(x.begin(), x.end(), -0.5f);
            const std::vector<float> other(x.begin(), x.begin() + n / 3);
            std::vector<float> all = x;
            all.insert(all.end(), other.begin(), other.end());
            std::vector<int64_t> order(all.size());
            std::iota(order.begin(), order.end(), 0);
            std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
                return std::fabs(all[static_cast<size_t>(a)]) > std::fabs(all[static_cast<size_t>(b)]);
            });
            for (int64_t k : {int64_t{0}, n / 100, n / 2, n}) {
                std::vector<uint8_t> expected_x((x.size() + 7) / 8), expected_other((other.size() + 7) / 8);
                for (int64_t i = 0; i < k; ++i) {
                    const int64_t at = order[static_cast<size_t>(i)], there = at - n;
                    auto& byte = at < n ? expected_x[static_cast<size_t>(at / 8)]
                                        : expected_other[static_cast<size_t>(there / 8)];
                    byte |= static_cast<uint8_t>(1 << ((at < n ? at : there) % 8));
                }
                for (const std::string& variant : present_variants()) {
                    std::vector<uint8_t> mask_x(expected_x.size(), 255), mask_other(expected_other.size(), 255);
                    select_largest({view_of(x), view_of(other)}, k, {view_of(mask_x), view_of(mask_other)},
                                   {3, variant});
                    CHECK(same(mask_x, expected_x) && same(mask_other, expected_other));
                }
            }
        }
    }
}

TEST(gap_codes_agree_with_the_reference_and_survive_damage) {
    for (int64_t n : kSizes) {
        for (int share : {0, 4, 30, 380, 1000}) {
            const std::vector<uint8_t> mask = some_mask(n, share, 8);
            for (const std::string& variant : present_variants()) {
                const PackingOptions options{1, variant};
                const GapPlan plan = plan_gaps(view_of(mask), n, options);
                std::vector<uint8_t> data(static_cast<size_t>(plan.bytes)), expected = data;
                encode_gaps(view_of(mask), n, plan, view_of(data), options);
                const GapBits code{mask.data(), n, plan.parameter};
                CHECK(plan.kept == 0 || (gaps_length_reference(code) + 7) / 8 == plan.bytes);
                if (plan.kept) gaps_encode_reference(code, expected.data());
                CHECK(same(data, expected));
                std::vector<uint8_t> back(mask.size());
                decode_gaps(view_of(data), plan.kept, n, plan.parameter, view_of(back), options);
                CHECK(same(back, mask));
                test::Random random(static_cast<uint64_t>(n + share));
                for (int turn = 0; turn < 20 && !data.empty(); ++turn) {
                    std::vector<uint8_t> bad = data;
                    bad.resize(static_cast<size_t>(random.below(plan.bytes) + 1));
                    bad[static_cast<size_t>(random.below(static_cast<int64_t>(bad.size())))] ^=
                        static_cast<uint8_t>(1 << random.below(8));
                    std::fill(back.begin(), back.end(), uint8_t{0});
                    try {
                        const int64_t count = random.below(2) ? plan.kept : random.below(n + 1);
                        decode_gaps(view_of(bad), count, n, random.below(2) ? plan.parameter : random.below(31),
                                    view_of(back), options);
                        CHECK(mask_kept("test", view_of(back), n, options) == count);
                    } catch (const Error&) {
                        CHECK(true);
                    }
                }
            }
        }
    }
}

TEST(packing_refuses_what_does_not_fit) {
    const std::vector<float> nine(9, 1.0f), eight(8, 1.0f), nan = {1.0f, NAN};
    const std::vector<uint8_t> two_kept = {1, 1}, spare = {1, 2}, eight_bytes(8), nine_bytes(9), one(1);
    const PackingOptions options;
    const auto open = [&](const std::vector<uint8_t>& mask, const std::vector<uint8_t>& values) {
        unpack(view_of(values), {}, view_of(mask), Coding::f32, view_of(nine), options);
    };
    CHECK(refuses([&] { open(spare, eight_bytes); }, "bits set beyond its 9"));
    CHECK(refuses([&] { open(one, eight_bytes); }, "is 2 bytes, not 1"));
    CHECK(refuses([&] { open(two_kept, nine_bytes); }, "9 bytes of values"));
    CHECK(refuses([&] { unpack(view_of(one), {}, {}, Coding::i8, view_of(nine), options); }, "1 bytes of values"));
    CHECK(refuses([&] { unpack(view_of(nine_bytes), {}, {}, Coding::i8, view_of(nine), options); }, "0 scales"));
    CHECK(refuses([&] { mask_to_indices(view_of(spare), 9, {}, options); }, "bits set beyond"));
    CHECK(refuses([&] { select_largest({view_of(nan)}, 1, {view_of(one)}, options); }, "NaN"));
    CHECK(refuses([&] { select_largest({view_of(nine)}, 1, {view_of(one)}, options); }, "is 2 bytes"));
    CHECK(refuses([&] { select_largest({view_of(eight)}, 9, {view_of(one)}, options); }, "outside 0..8"));
    const std::vector<int64_t> outside = {3, 9};
    CHECK(refuses([&] { mask_from_indices(view_of(outside), 9, view_of(two_kept)); }, "9 lies outside 0..8"));
    CHECK(refuses([&] { packed_by("", 1, nan, nullptr, nullptr, 2, Coding::i8, false); }, "not finite in i8"));
}
