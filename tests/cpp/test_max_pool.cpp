// Every variant present against the reference, on widths around a vector and windows around the edges; what is refused.
#include <limits>

#include "base/error.h"
#include "check.h"
#include "kernels/max_pool/max_pool.h"
#include "ops/build_info.h"
#include "ops/max_pool.h"
#include "views.h"

using namespace edgeprune;
using test::view_of;

TEST(max_pool_equals_the_reference) {
    test::Random random(7);
    for (int64_t width : {1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 18, 31, 33, 70})
        for (int64_t height : {1, 2, 6})
            for (int64_t size : {1, 2, 3, 5, 15}) {
                if (size > width || size > height) continue;
                const int64_t planes = 5, rows = height - size + 1, columns = width - size + 1;
                const auto windows = static_cast<size_t>(planes * rows * columns);
                std::vector<float> x(static_cast<size_t>(planes * height * width)), out(windows), grad(windows),
                    expected(windows);
                std::vector<uint8_t> where(windows), places(windows);
                // Whole numbers: many are equal, and sums of them are exact.
                for (float& v : x) v = static_cast<float>(random.below(5) - 2);
                for (float& v : grad) v = static_cast<float>(random.below(33) - 16);
                x.back() = std::numeric_limits<float>::infinity();
                std::vector<double> sums(x.size());
                max_pool_reference({x.data(), expected.data(), places.data(), height, width, size}, planes);
                max_pool_backward_reference({grad.data(), places.data(), nullptr, height, width, size}, planes,
                                            sums.data());
                for (const std::string& variant : present_variants())
                    for (int threads : {1, 3}) {
                        std::vector<float> dx(x.size(), std::numeric_limits<float>::quiet_NaN());
                        out.assign(windows, std::numeric_limits<float>::quiet_NaN());
                        max_pool({view_of(x, {planes, height, width}), view_of(out, {planes, rows, columns}),
                                  view_of(where, {planes, rows, columns})},
                                 size, {threads, variant});
                        CHECK(out == expected);
                        CHECK(where == places);
                        max_pool_backward(
                            {view_of(grad, {planes, rows, columns}), view_of(where, {planes, rows, columns}),
                             view_of(dx, {planes, height, width})},
                            size, {threads, variant});
                        bool same = true;
                        for (size_t i = 0; i < dx.size(); ++i) same &= static_cast<double>(dx[i]) == sums[i];
                        CHECK(same);
                    }
            }
}

TEST(max_pool_refuses_before_it_writes) {
    std::vector<float> x(16), out(9, 5.0f);
    std::vector<uint8_t> where(9);
    const PoolCall good = {view_of(x, {1, 4, 4}), view_of(out, {1, 3, 3}), view_of(where, {1, 3, 3})};
    const auto refused = [&](const PoolCall& call, int64_t size) {
        try {
            max_pool(call, size, {});
        } catch (const Error&) {
            return out == std::vector<float>(9, 5.0f);
        }
        return false;
    };
    CHECK(refused(good, 3));
    CHECK(refused(good, 0));
    CHECK(refused(good, 5));
    PoolCall narrow = good;
    narrow.out.shape[2] = 2;
    CHECK(refused(narrow, 2));
    PoolCall other = good;
    other.x.dtype = DType::f16;
    CHECK(refused(other, 2));
    PoolCall fixed = good;
    fixed.out.read_only = true;
    CHECK(refused(fixed, 2));
}
