// Every variant present against the reference in double, and all variants equal bit for bit. Sizes straddle vectors
// (4, 8, 16 lanes), words of kept positions (16), partial sums (16), tiles (16, 32) and zero. Memory that must not be
// read holds NaN behind every buffer (and AddressSanitizer watches its end); memory that must not change is compared.
#include <cstring>
#include <limits>

#include "base/error.h"
#include "check.h"
#include "ops/build_info.h"
#include "ops/channels.h"
#include "ops/channels_tasks.h"
#include "views.h"

using namespace edgeprune;
using test::view_of;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kUnit = 1.0 / (1 << 24);  // half a unit in the last place of a float near one

using Floats = std::vector<float>;
using Positions = std::vector<int64_t>;

Floats random_floats(int64_t n, test::Random& random) {
    Floats data(static_cast<size_t>(n));
    for (float& x : data) x = random.real();
    return data;
}

// About `share` of 0..n-1, increasing, at least one when n > 0.
Positions kept_of(int64_t n, double share, test::Random& random) {
    Positions kept;
    for (int64_t i = 0; i < n; ++i)
        if (static_cast<double>(random.below(1000)) < share * 1000) kept.push_back(i);
    if (kept.empty() && n) kept.push_back(random.below(n));
    return kept;
}

bool same_bits(const Floats& a, const Floats& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

Index index_of(const Positions& kept) { return {kept.data(), static_cast<int64_t>(kept.size())}; }

struct Shape {
    std::vector<int64_t> dims;
    double share;
};

const std::vector<Shape>& shapes() {
    static const std::vector<Shape> all = {
        {{1}, 1.0},          {{7}, 0.5},          {{33}, 0.5},
        {{5, 15}, 0.5},      {{5, 16}, 0.5},      {{9, 17}, 0.5},
        {{40, 31}, 0.9},     {{40, 32}, 0.5},     {{40, 33}, 0.3},
        {{12, 100}, 0.1},    {{64, 129}, 0.5},    {{6, 5, 1, 1}, 0.5},
        {{6, 5, 2, 2}, 0.5}, {{8, 6, 3, 3}, 0.5}, {{4, 3, 4, 4}, 0.6},
        {{4, 3, 5, 5}, 0.6}, {{3, 20, 17}, 0.5},  {{2, 3, 2, 3, 2, 2, 2, 9}, 0.7},
        {{0, 4}, 0.5},       {{4, 0, 3}, 0.5},    {{300, 400}, 0.5},
        {{1, 70000}, 1.0},   {{70001}, 1.0},      {{3, 600}, 1.0},
    };
    return all;
}

// For each shape with every combination of kept and whole dimensions in the first three.
template <class Body>
void for_each_case(Body body) {
    uint64_t seed = 1;
    for (const Shape& shape : shapes()) {
        for (int which = 0; which < 8; ++which) {
            test::Random random(++seed);
            std::vector<Positions> kept(shape.dims.size());
            bool use[kMaxDims] = {};
            for (size_t d = 0; d < shape.dims.size(); ++d) {
                use[d] = which >> (d % 3) & 1;
                kept[d] = kept_of(shape.dims[d], shape.share, random);
            }
            std::vector<Index> index;
            std::vector<int64_t> part;
            for (size_t d = 0; d < shape.dims.size(); ++d) {
                static const int64_t nothing = 0;
                Index one = index_of(kept[d]);
                if (!one.data) one.data = &nothing;
                index.push_back(use[d] ? one : Index{});
                part.push_back(use[d] ? one.size : shape.dims[d]);
            }
            body(shape.dims, part, index, random);
        }
    }
}

int64_t product(const std::vector<int64_t>& shape) {
    int64_t n = 1;
    for (int64_t size : shape) n *= size;
    return n;
}

}  // namespace

TEST(gather_equals_the_reference_on_every_variant) {
    for_each_case([](const auto& shape, const auto& part, const auto& index, test::Random& random) {
        Floats x = random_floats(product(shape), random);
        Floats expected(static_cast<size_t>(product(part)), kNan);
        if (!expected.empty()) {
            const GatherTask task =
                make_task(GatherCall{view_of(x, shape), index, view_of(expected, part)}, false, nullptr);
            channels_gather_reference(task);
        }
        for (const std::string& variant : present_variants())
            for (int threads : {1, 3}) {
                Floats out(expected.size(), kNan);
                gather_many({{view_of(x, shape), index, view_of(out, part)}}, {threads, variant});
                CHECK(same_bits(out, expected));
            }
    });
}

TEST(gather_of_strided_views) {
    test::Random random(5);
    for (int64_t columns : {1, 3, 16, 37}) {
        // A transposed view inside a larger buffer of NaN: only its own elements may come out.
        const int64_t rows = 20, gap = 50;
        Floats buffer(static_cast<size_t>(rows * gap), kNan);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c) buffer[static_cast<size_t>(r * gap + c)] = random.real();
        View x = view_of(buffer, {columns, rows});
        x.stride[0] = 1;
        x.stride[1] = gap;
        const Positions kept = kept_of(rows, 0.5, random);
        for (const std::string& variant : present_variants()) {
            Floats out(static_cast<size_t>(columns) * kept.size(), kNan);
            gather_many({{x, {Index{}, index_of(kept)}, view_of(out, {columns, index_of(kept).size})}}, {1, variant});
            bool same = true;
            for (int64_t c = 0; c < columns; ++c)
                for (size_t k = 0; k < kept.size(); ++k)
                    same = same && out[static_cast<size_t>(c) * kept.size() + k] ==
                                       buffer[static_cast<size_t>(kept[k] * gap + c)];
            CHECK(same);
        }
    }
}

TEST(scatter_equals_the_reference_and_all_variants_agree) {
    for_each_case([](const auto& shape, const auto& part, const auto& index, test::Random& random) {
        const float weight = 0.37f;
        const Floats total0 = random_floats(product(shape), random), count0 = random_floats(product(shape), random);
        Floats x = random_floats(product(part), random);
        Floats total = total0, count = count0;
        std::vector<double> sums(total0.begin(), total0.end()), counts(count0.begin(), count0.end());
        std::vector<double> held(sums.size(), 0.0), unused(sums.size(), 0.0);
        const ScatterCall call{view_of(total, shape), view_of(count, shape), view_of(x, part), index};
        if (!x.empty()) {
            ScatterTask task = make_task(call, weight, false, nullptr);
            channels_scatter_reference(task, sums.data(), counts.data());
            channels_scatter_reference(task, unused.data(), held.data());
        }
        Floats first_total, first_count;
        for (const std::string& variant : present_variants())
            for (int threads : {1, 3}) {
                total = total0;
                count = count0;
                scatter_accumulate_many({call}, weight, {threads, variant});
                bool right = true, untouched = true;
                for (size_t i = 0; i < total.size(); ++i) {
                    // two roundings: of the product (below 1) and of the sum (below 2)
                    right = right && test::close(total[i], sums[i], 3 * kUnit) &&
                            test::close(count[i], counts[i], 2 * kUnit);
                    if (held[i] == 0.0)
                        untouched = untouched && std::memcmp(&total[i], &total0[i], sizeof(float)) == 0 &&
                                    std::memcmp(&count[i], &count0[i], sizeof(float)) == 0;
                }
                CHECK(right);
                CHECK(untouched);
                if (first_total.empty()) {
                    first_total = total;
                    first_count = count;
                }
                CHECK(same_bits(total, first_total));
                CHECK(same_bits(count, first_count));
            }
    });
}

TEST(norms_are_near_the_reference_and_all_variants_agree) {
    uint64_t seed = 100;
    for (int64_t before : {1, 2, 5})
        for (int64_t channels : {1, 3, 15, 16, 17, 33, 70})
            for (int64_t after : {0, 1, 2, 9, 15, 16, 17, 31, 32, 49, 1000})
                for (int p : {1, 2}) {
                    test::Random random(++seed);
                    Floats x = random_floats(before * channels * after, random);
                    Floats first;
                    std::vector<double> expected(static_cast<size_t>(channels));
                    for (const std::string& variant : present_variants())
                        for (int threads : {1, 3}) {
                            Floats norm(static_cast<size_t>(channels), kNan);
                            const NormsCall call{view_of(x, {before, channels, after}), 1, p,
                                                 view_of(norm, {channels})};
                            channels_norms_reference(make_task(call), expected.data());
                            channel_norms_many({call}, {threads, variant});
                            bool right = true;
                            for (size_t c = 0; c < norm.size(); ++c)  // summed in double, rounded once
                                right = right && test::close(norm[c], expected[c], expected[c] * 1.01 * kUnit);
                            CHECK(right);
                            if (first.empty()) first = norm;
                            CHECK(same_bits(norm, first));
                        }
                }
}

TEST(finish_keeps_the_base_bit_for_bit) {
    for (int64_t n : {0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 70000}) {
        test::Random random(static_cast<uint64_t>(n) + 1);
        Floats base = random_floats(n, random), total = random_floats(n, random), count(static_cast<size_t>(n));
        for (float& c : count) c = random.below(2) ? 0.0f : 3.0f + random.real();
        for (size_t i = 0; i < count.size(); i += 5) count[i] = 0.0f;
        for (size_t i = 0; i < base.size(); i += 5) base[i] = i % 2 ? -0.0f : kNan;
        for (size_t i = 3; i < count.size(); i += 11) count[i] = -1.0f;
        Floats first;
        for (const std::string& variant : present_variants())
            for (int threads : {1, 3}) {
                Floats out(static_cast<size_t>(n), kNan);
                const FinishCall call{view_of(base, {n}), view_of(total, {n}), view_of(count, {n}), view_of(out, {n})};
                merge_finish_many({call}, {threads, variant});
                bool right = true;
                for (int64_t i = 0; i < n; ++i) {
                    const size_t k = static_cast<size_t>(i);
                    const double expected = channels_finish_reference(make_task(call), i);
                    right = right && (count[k] > 0.0f ? test::close(out[k], expected, std::fabs(expected) * kUnit)
                                                      : std::memcmp(&out[k], &base[k], sizeof(float)) == 0);
                }
                CHECK(right);
                if (first.empty()) first = out;
                CHECK(same_bits(out, first));
            }
    }
}

TEST(many_tensors_share_one_call) {
    test::Random random(9);
    std::vector<Floats> xs, outs;
    std::vector<Positions> kept;
    const int64_t n = 50;
    for (int64_t i = 0; i < n; ++i) {
        xs.push_back(random_floats((i + 1) * 300, random));
        kept.push_back(kept_of(i + 1, 0.5, random));
        outs.emplace_back(kept.back().size() * 300, kNan);
    }
    std::vector<GatherCall> calls;
    for (size_t i = 0; i < xs.size(); ++i)
        calls.push_back({view_of(xs[i], {static_cast<int64_t>(i) + 1, 300}),
                         {index_of(kept[i]), Index{}},
                         view_of(outs[i], {index_of(kept[i]).size, 300})});
    gather_many(calls, {4, ""});
    for (size_t i = 0; i < xs.size(); ++i)
        for (size_t k = 0; k < kept[i].size(); ++k)
            CHECK(std::memcmp(&outs[i][k * 300], &xs[i][static_cast<size_t>(kept[i][k]) * 300], 300 * sizeof(float)) ==
                  0);
}

TEST(bad_calls_are_refused_before_anything_is_written) {
    const auto refused = [](const std::function<void()>& call, const char* part) {
        try {
            call();
        } catch (const Error& error) {
            return std::string(error.what()).find(part) != std::string::npos;
        }
        return false;
    };
    Floats x(12, 1.0f), out(6, kNan), total(12, 0.0f), count(12, 0.0f), part(6, 1.0f);
    const Positions fine = {0, 2}, outside = {0, 4}, negative = {-1, 2}, twice = {1, 1}, back = {2, 0};
    const auto gather = [&](const Positions& kept) {
        return [&, kept] { gather_many({{view_of(x, {4, 3}), {index_of(kept), {}}, view_of(out, {2, 3})}}, {}); };
    };
    const auto scatter = [&](const Positions& kept) {
        return [&, kept] {
            scatter_accumulate_many(
                {{view_of(total, {4, 3}), view_of(count, {4, 3}), view_of(part, {2, 3}), {index_of(kept), {}}}}, 1.0f,
                {});
        };
    };
    CHECK(refused(gather(outside), "holds 4, which is outside 0..3"));
    CHECK(refused(gather(negative), "holds -1"));
    CHECK(refused(scatter(outside), "outside 0..3"));
    CHECK(refused(scatter(twice), "strictly increasing"));
    CHECK(refused(scatter(back), "strictly increasing"));
    CHECK(refused([&] { gather_many({{view_of(x, {4, 3}), {index_of(fine)}, view_of(out, {2, 3})}}, {}); },
                  "1 indices for x of shape (4, 3)"));
    CHECK(refused([&] { gather_many({{view_of(x, {4, 3}), {{}, {}}, view_of(out, {2, 3})}}, {}); }, "does not fit"));
    CHECK(refused([&] { gather_many({{view_of(x, {4, 3}), {index_of(fine), {}}, view_of(out, {2, 3})}}, {1, "mmx"}); },
                  "no variant 'mmx'"));
    for (float value : out) CHECK(std::isnan(value));
    for (float value : total) CHECK(value == 0.0f);
    gather(back)();  // gather takes any order
    CHECK(out[0] == 1.0f);
}
