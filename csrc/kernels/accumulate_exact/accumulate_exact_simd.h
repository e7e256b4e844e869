// The kernel of accumulate_exact.h, compiled once per instruction set. What bounds it is the memory of `words`, of
// which a line is touched for nearly every mask byte; the compiler's own code for the set is as fast as that.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/accumulate_exact/accumulate_exact.h"

namespace edgeprune {
namespace {

inline void add_one(const ExactTask& task, int64_t i, float value) {
    const double rounded = std::rint(static_cast<double>(value) * task.factor);
    const auto whole = static_cast<uint64_t>(static_cast<int64_t>(rounded)) << task.bits;
    task.words[i] =
        static_cast<int64_t>(static_cast<uint64_t>(task.words[i]) + whole + static_cast<uint64_t>(task.weight));
}

void add(const ExactTask& task, int64_t first_byte, int64_t last_byte, int64_t rank) {
    const int64_t end = 8 * last_byte < task.n ? 8 * last_byte : task.n;
    if (!task.mask) {
        for (int64_t i = 8 * first_byte; i < end; ++i) add_one(task, i, task.values[i]);
        return;
    }
    const float* value = task.values + rank;
    int64_t byte = first_byte;
    for (; byte + 8 <= last_byte; byte += 8) {
        uint64_t kept;
        std::memcpy(&kept, task.mask + byte, 8);
        for (; kept; kept &= kept - 1) add_one(task, 8 * byte + __builtin_ctzll(kept), *value++);
    }
    for (; byte < last_byte; ++byte)
        for (unsigned kept = task.mask[byte]; kept; kept &= kept - 1)
            add_one(task, 8 * byte + __builtin_ctz(kept), *value++);
}

}  // namespace
}  // namespace edgeprune
