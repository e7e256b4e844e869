#include <cmath>

#include "kernels/accumulate_exact/accumulate_exact.h"

namespace edgeprune {

void accumulate_exact_reference(const ExactTask& task) {
    int64_t rank = 0;
    for (int64_t i = 0; i < task.n; ++i) {
        if (task.mask && !(task.mask[i / 8] >> (i % 8) & 1)) continue;
        const auto whole = static_cast<int64_t>(std::nearbyint(static_cast<double>(task.values[rank++]) * task.factor));
        task.words[i] += whole * (int64_t{1} << task.bits) + task.weight;
    }
}

}  // namespace edgeprune
