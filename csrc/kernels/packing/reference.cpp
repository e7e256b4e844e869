// Element by element, in plain words. Only f32 and i8 round to nearest here; tests/ops holds bf16, f16 and stochastic
// rounding against numpy.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/packing/packing.h"

namespace edgeprune {

bool packing_kept_reference(const uint8_t* mask, int64_t i) { return !mask || (mask[i / 8] >> (i % 8) & 1); }

bool packing_pack_reference(const PackTask& task) {
    std::vector<float> kept;
    for (int64_t i = 0; i < task.n; ++i)
        if (packing_kept_reference(task.mask, i)) kept.push_back(task.x[i]);
    for (size_t start = 0; start < kept.size(); start += kScaleBlock) {
        const size_t end = std::min(kept.size(), start + kScaleBlock);
        float largest = 0.0f;
        for (size_t j = start; j < end; ++j) {
            if (task.coding == Coding::f32) std::memcpy(task.values + 4 * j, &kept[j], 4);
            if (task.coding == Coding::i8 && !std::isfinite(kept[j])) return false;
            largest = std::max(largest, std::fabs(kept[j]));
        }
        if (task.coding != Coding::i8) continue;
        const float scale = task.scales[start / kScaleBlock] = largest / 127.0f;
        for (size_t j = start; j < end; ++j) {
            const float t = scale > 0.0f ? std::clamp(kept[j] / scale, -127.0f, 127.0f) : 0.0f;
            task.values[j] = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(t)));
        }
    }
    return true;
}

float packing_decode_reference(const PackedValues& packed, int64_t rank) {
    const uint8_t* const at = packed.values + rank * kItemBytes[static_cast<int>(packed.coding)];
    if (packed.coding == Coding::i8)
        return static_cast<float>(static_cast<int8_t>(*at)) * packed.scales[rank / kScaleBlock];
    if (packed.coding == Coding::f16) {
        const uint32_t half = at[0] | at[1] << 8, exponent = half >> 10 & 31, fraction = half & 1023;
        const double sign = half & 0x8000 ? -1.0 : 1.0;
        if (exponent == 31) return fraction ? std::nanf("") : static_cast<float>(sign * HUGE_VAL);
        const double value = exponent ? std::ldexp(1024.0 + fraction, static_cast<int>(exponent) - 25)
                                      : std::ldexp(static_cast<double>(fraction), -24);
        return static_cast<float>(sign * value);
    }
    uint32_t bits;
    if (packed.coding == Coding::bf16) {
        bits = static_cast<uint32_t>(at[0] | at[1] << 8) << 16;
    } else {
        std::memcpy(&bits, at, 4);
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

double packing_accumulate_reference(double total, float weight, float value) {
    return total + static_cast<double>(weight) * static_cast<double>(value);
}

}  // namespace edgeprune
