// Values and masks that tests of packing share: odd floats among random ones, masks of a given density.
#pragma once

#include "check.h"

namespace test {

inline std::vector<float> some_values(int64_t n, uint64_t seed) {
    constexpr float kOdd[] = {0.0f, -0.0f, 1e-45f, -1e-39f, 65504.0f, 65519.9f, -65520.0f, 3e38f, 6e-8f};
    Random random(seed);
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = random.below(3) ? random.real() : kOdd[random.below(9)];
    return x;
}

inline std::vector<uint8_t> some_mask(int64_t n, int64_t per_mille, uint64_t seed) {
    Random random(seed);
    std::vector<uint8_t> mask(static_cast<size_t>((n + 7) / 8));
    for (int64_t i = 0; i < n; ++i)
        if (random.below(1000) < per_mille) mask[static_cast<size_t>(i / 8)] |= static_cast<uint8_t>(1 << (i % 8));
    return mask;
}

}  // namespace test
