#include <cmath>

#include "kernels/max_pool/max_pool.h"

namespace edgeprune {

void max_pool_reference(const PoolTask& task, int64_t planes) {
    const int64_t rows = task.height - task.size + 1, columns = task.width - task.size + 1;
    for (int64_t i = 0; i < planes * rows * columns; ++i) {
        const int64_t plane = i / (rows * columns), y = i / columns % rows, x = i % columns;
        const float* corner = task.x + (plane * task.height + y) * task.width + x;
        float best = corner[0];
        int64_t at = 0;
        for (int64_t k = 1; k < task.size * task.size; ++k) {
            const float v = corner[k / task.size * task.width + k % task.size];
            if (std::isnan(v) || v > best) {
                best = v;
                at = k;
            }
        }
        task.out[i] = best;
        task.where[i] = static_cast<uint8_t>(at);
    }
}

void max_pool_backward_reference(const PoolBackwardTask& task, int64_t planes, double* dx) {
    const int64_t rows = task.height - task.size + 1, columns = task.width - task.size + 1;
    for (int64_t i = 0; i < planes * task.height * task.width; ++i) dx[i] = 0.0;
    for (int64_t i = 0; i < planes * rows * columns; ++i) {
        const int64_t plane = i / (rows * columns), y = i / columns % rows, x = i % columns;
        const int64_t down = task.where[i] / task.size, across = task.where[i] % task.size;
        dx[(plane * task.height + y + down) * task.width + x + across] += static_cast<double>(task.grad[i]);
    }
}

}  // namespace edgeprune
