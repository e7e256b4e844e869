// The kernels of max_pool.h, compiled once per instruction set. Written on the compiler's own vector types: comparison
// and choice by lane is all they need, and masks stay in registers on every set.
#pragma once

#include <cstring>

#include "kernels/max_pool/max_pool.h"

namespace edgeprune {
namespace {

#if defined(EDGEPRUNE_SIMD_AVX512)
constexpr int kLanes = 16;
#elif defined(EDGEPRUNE_SIMD_AVX2)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

template <class Vector, class Element>
inline void load(Vector& into, const Element* from) {
    std::memcpy(&into, from, sizeof into);
}

// Calls one(first) for vectors that cover 0 .. n - 1, the last one overlapping the one before it; n >= kLanes.
template <class One>
inline void for_each_vector(int64_t n, One one) {
    for (int64_t i = 0; i + kLanes < n; i += kLanes) one(i);
    one(n - kLanes);
}

// A row too short for a vector.
inline void short_row(const PoolTask& task, const float* x, float* out, uint8_t* where, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        float best = x[i];
        int64_t at = 0;
        for (int64_t k = 1; k < task.size * task.size; ++k) {
            const float v = x[k / task.size * task.width + k % task.size + i];
            if (v > best || v != v) best = v, at = k;
        }
        out[i] = best;
        where[i] = static_cast<uint8_t>(at);
    }
}

inline void row(const PoolTask& task, const float* x, float* out, uint8_t* where, int64_t n) {
    if (n < kLanes) return short_row(task, x, out, where, n);
    for_each_vector(n, [&](int64_t first) {
        Floats best, v;
        load(best, x + first);
        Ints at = {};
        int32_t k = 0;
        for (int64_t dy = 0; dy < task.size; ++dy)
            for (int64_t dx = 0; dx < task.size; ++dx, ++k) {
                load(v, x + dy * task.width + dx + first);
                const Ints larger = (v > best) | (v != v);
                best = larger ? v : best;
                at = larger ? Ints{} + k : at;
            }
        const Bytes narrow = __builtin_convertvector(at, Bytes);
        std::memcpy(out + first, &best, sizeof best);
        std::memcpy(where + first, &narrow, sizeof narrow);
    });
}

void forward(const PoolTask& task, int64_t first_plane, int64_t last_plane) {
    const int64_t rows = task.height - task.size + 1, columns = task.width - task.size + 1;
    for (int64_t plane = first_plane; plane < last_plane; ++plane)
        for (int64_t y = 0; y < rows; ++y) {
            const int64_t to = (plane * rows + y) * columns;
            row(task, task.x + (plane * task.height + y) * task.width, task.out + to, task.where + to, columns);
        }
}

// One plane's gradients and places, with size - 1 columns of nowhere on either side: every element of dx then looks at
// the same windows, and what lies outside adds nothing.
inline void pad(const PoolBackwardTask& task, const PoolScratch& scratch, int64_t plane) {
    const int64_t rows = task.height - task.size + 1, columns = task.width - task.size + 1, edge = task.size - 1;
    const int64_t stride = columns + 2 * edge;
    for (int64_t y = 0; y < rows; ++y) {
        const float* grad = task.grad + (plane * rows + y) * columns;
        const uint8_t* where = task.where + (plane * rows + y) * columns;
        float* g = scratch.grad + y * stride;
        int32_t* at = scratch.where + y * stride;
        for (int64_t i = 0; i < edge; ++i) {
            g[i] = g[edge + columns + i] = 0.0f;
            at[i] = at[edge + columns + i] = kPoolNowhere;
        }
        std::memcpy(g + edge, grad, static_cast<size_t>(columns) * sizeof(float));
        for (int64_t i = 0; i < columns; ++i) at[edge + i] = where[i];
    }
}

// Row y of dx: windows from above to below, and in a row from left to right.
inline void gather_row(const PoolBackwardTask& task, const PoolScratch& scratch, int64_t y, float* dx) {
    const int64_t rows = task.height - task.size + 1, edge = task.size - 1, stride = task.width + edge;
    const int64_t highest = y < edge ? y : edge, lowest = y >= rows ? y - rows + 1 : 0;
    if (task.width < kLanes) {
        for (int64_t i = 0; i < task.width; ++i) {
            float sum = 0.0f;
            for (int64_t down = highest; down >= lowest; --down)
                for (int64_t across = edge; across >= 0; --across) {
                    const int64_t from = (y - down) * stride + i + edge - across;
                    if (scratch.where[from] == down * task.size + across) sum += scratch.grad[from];
                }
            dx[i] = sum;
        }
        return;
    }
    for_each_vector(task.width, [&](int64_t first) {
        Floats sum = {}, g;
        Ints at;
        for (int64_t down = highest; down >= lowest; --down)
            for (int64_t across = edge; across >= 0; --across) {
                const int64_t from = (y - down) * stride + first + edge - across;
                load(at, scratch.where + from);
                load(g, scratch.grad + from);
                sum += at == static_cast<int32_t>(down * task.size + across) ? g : Floats{};
            }
        std::memcpy(dx + first, &sum, sizeof sum);
    });
}

void backward(const PoolBackwardTask& task, const PoolScratch& scratch, int64_t first_plane, int64_t last_plane) {
    for (int64_t plane = first_plane; plane < last_plane; ++plane) {
        pad(task, scratch, plane);
        for (int64_t y = 0; y < task.height; ++y)
            gather_row(task, scratch, y, task.dx + (plane * task.height + y) * task.width);
    }
}

}  // namespace
}  // namespace edgeprune
