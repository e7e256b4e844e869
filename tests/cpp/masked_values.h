// What the tests of the masked kernels and of their operators start from.
#pragma once

#include <limits>
#include <vector>

#include "check.h"

namespace edgeprune {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kUnit = 1.0 / (1 << 24);

using Floats = std::vector<float>;

Floats random_floats(int64_t n, test::Random& random) {
    Floats data(static_cast<size_t>(n));
    for (float& x : data) x = random.real();
    return data;
}

}  // namespace
}  // namespace edgeprune
