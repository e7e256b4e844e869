// The nine numbers that stand for a filter in Python: outputs, inputs, groups, taps, stride, dilation (rows, columns).
#pragma once

#include <array>

#include "ops/sparsity_pattern.h"

namespace edgeprune {

using Filter = std::array<int64_t, 9>;

inline FilterShape filter_of(const Filter& n) { return {n[0], n[1], n[2], {n[3], n[4]}, {n[5], n[6]}, {n[7], n[8]}}; }

}  // namespace edgeprune
