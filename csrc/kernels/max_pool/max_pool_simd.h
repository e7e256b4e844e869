// The kernels of max_pool.h, compiled once per instruction set. Written on the compiler's own vector types: comparison
// and choice by lane is all they need.
//
// Windows of 2 and 3, which networks have, are walked from above to below in strips of one vector's width: what a row
// says of its part of a window is found once and used by every window over it. Other sizes: window by window.
#pragma once

#include <cstring>

#include "kernels/max_pool/max_pool.h"

#if defined(EDGEPRUNE_SIMD_AVX512)
#include <immintrin.h>
#endif

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

// Comparisons and choices by lane. The compiler's own take a detour over whole vectors where the set has mask
// registers.
#if defined(EDGEPRUNE_SIMD_AVX512)
typedef __mmask16 Lanes;
inline Lanes above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Lanes unordered(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
inline Floats choose(Lanes lanes, Floats a, Floats b) { return _mm512_mask_blend_ps(lanes, b, a); }
inline Ints choose(Lanes lanes, Ints a, Ints b) { return (Ints)_mm512_mask_blend_epi32(lanes, (__m512i)b, (__m512i)a); }
inline bool any(Lanes lanes) { return lanes != 0; }
#else
typedef Ints Lanes;
inline Lanes above(Floats a, Floats b) { return a > b; }
inline Lanes unordered(Floats a, Floats b) { return (a != a) | (b != b); }
inline Floats choose(Lanes lanes, Floats a, Floats b) { return lanes ? a : b; }
inline Ints choose(Lanes lanes, Ints a, Ints b) { return lanes ? a : b; }
inline bool any(Lanes lanes) {
    int32_t found = 0;
    for (int i = 0; i < kLanes; ++i) found |= lanes[i];
    return found != 0;
}
#endif

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

inline void store_result(const Floats& best, const Ints& at, float* out, uint8_t* where) {
    const Bytes narrow = __builtin_convertvector(at, Bytes);
    std::memcpy(out, &best, sizeof best);
    std::memcpy(where, &narrow, sizeof narrow);
}

// One vector of windows, any size and any values.
inline void windows(const PoolTask& task, const float* x, float* out, uint8_t* where) {
    Floats best, v;
    load(best, x);
    Ints at = {};
    int32_t k = 0;
    for (int64_t dy = 0; dy < task.size; ++dy)
        for (int64_t dx = 0; dx < task.size; ++dx, ++k) {
            load(v, x + dy * task.width + dx);
            const Lanes larger = above(v, best) | unordered(v, v);
            best = choose(larger, v, best);
            at = choose(larger, Ints{} + k, at);
        }
    store_result(best, at, out, where);
}

// A plane's strip of one vector's width. False where a NaN came by: then its results are not those of NaNs.
template <int kSize>
inline bool strip(const PoolTask& task, const float* x, float* out, uint8_t* where, int64_t rows, int64_t columns) {
    Floats best[kSize];  // of the rows that the next window still covers
    Ints at[kSize];
    Lanes odd = {};
    const auto take = [&](const float* from, Floats& largest, Ints& place) {
        Floats v;
        load(largest, from);
        load(v, from + kSize - 1);
        odd |= unordered(largest, v);
        place = Ints{};
        for (int32_t k = 1; k < kSize; ++k) {
            load(v, from + k);
            const Lanes larger = above(v, largest);
            largest = choose(larger, v, largest);
            place = choose(larger, Ints{} + k, place);
        }
    };
    for (int y = 0; y + 1 < kSize; ++y) take(x + y * task.width, best[y], at[y]);
    for (int64_t y = 0; y < rows; ++y) {
        take(x + (y + kSize - 1) * task.width, best[kSize - 1], at[kSize - 1]);
        Floats most = best[0];
        Ints place = at[0];
        for (int32_t k = 1; k < kSize; ++k) {
            const Lanes larger = above(best[k], most);
            most = choose(larger, best[k], most);
            place = choose(larger, at[k] + k * kSize, place);
        }
        store_result(most, place, out + y * columns, where + y * columns);
        for (int k = 1; k < kSize; ++k) {
            best[k - 1] = best[k];
            at[k - 1] = at[k];
        }
    }
    return !any(odd);
}

void forward(const PoolTask& task, int64_t first_plane, int64_t last_plane) {
    const int64_t rows = task.height - task.size + 1, columns = task.width - task.size + 1;
    for (int64_t plane = first_plane; plane < last_plane; ++plane) {
        const float* x = task.x + plane * task.height * task.width;
        float* out = task.out + plane * rows * columns;
        uint8_t* where = task.where + plane * rows * columns;
        if (columns < kLanes) {
            for (int64_t y = 0; y < rows; ++y)
                short_row(task, x + y * task.width, out + y * columns, where + y * columns, columns);
            continue;
        }
        for_each_vector(columns, [&](int64_t first) {
            if (task.size == 2 && strip<2>(task, x + first, out + first, where + first, rows, columns)) return;
            if (task.size == 3 && strip<3>(task, x + first, out + first, where + first, rows, columns)) return;
            for (int64_t y = 0; y < rows; ++y) {
                const int64_t to = y * columns + first;
                windows(task, x + y * task.width + first, out + to, where + to);
            }
        });
    }
}

// How the backward kernel keeps places: bytes where they are compared into mask registers.
#if defined(EDGEPRUNE_SIMD_AVX512)
typedef uint8_t Place;
typedef __m128i Places;
inline void add_where(Floats& sum, Places at, int32_t place, Floats g) {
    const Lanes here = _mm_cmpeq_epi8_mask(at, _mm_set1_epi8(static_cast<char>(place)));
    sum = _mm512_mask_add_ps(sum, here, sum, g);
}
// In a register: gcc would load it once for each use, and half of these loads touch two lines.
inline void keep(Floats& g) { asm("" : "+v"(g)); }
inline void store_places(const Bytes& narrow, Place* to) { std::memcpy(to, &narrow, sizeof narrow); }
#else
typedef int32_t Place;
typedef Ints Places;
inline void add_where(Floats& sum, Places at, int32_t place, Floats g) { sum += at == place ? g : Floats{}; }
inline void keep(Floats&) {}
inline void store_places(const Bytes& narrow, Place* to) {
    const Ints wide = __builtin_convertvector(narrow, Ints);
    std::memcpy(to, &wide, sizeof wide);
}
#endif
static_assert(sizeof(Place) <= sizeof(int32_t), "PoolScratch has room for int32_t");

// One plane's gradients and places, with size - 1 columns of nowhere on either side: every element of dx then looks at
// the same windows, and what lies outside adds nothing.
struct Padded {
    const float* grad;
    const Place* where;
    int64_t stride;
};

inline Padded pad(const PoolBackwardTask& task, const PoolScratch& scratch, int64_t plane) {
    const int64_t rows = task.height - task.size + 1, columns = task.width - task.size + 1, edge = task.size - 1;
    const int64_t stride = columns + 2 * edge;
    Place* const places = static_cast<Place*>(scratch.where);
    for (int64_t y = 0; y < rows; ++y) {
        const float* grad = task.grad + (plane * rows + y) * columns;
        const uint8_t* where = task.where + (plane * rows + y) * columns;
        float* g = scratch.grad + y * stride;
        Place* at = places + y * stride;
        for (int64_t i = 0; i < edge; ++i) {
            g[i] = g[edge + columns + i] = 0.0f;
            at[i] = at[edge + columns + i] = kPoolNowhere;
        }
        if (columns < kLanes) {
            for (int64_t i = 0; i < columns; ++i) {
                g[edge + i] = grad[i];
                at[edge + i] = where[i];
            }
            continue;
        }
        for_each_vector(columns, [&](int64_t first) {  // rows are short: a call of memcpy costs more than the copy
            Floats some;
            Bytes narrow;
            load(some, grad + first);
            load(narrow, where + first);
            std::memcpy(g + edge + first, &some, sizeof some);
            store_places(narrow, at + edge + first);
        });
    }
    return {scratch.grad, places, stride};
}

// A strip of one vector's width of dx, rows of windows from above to below: each adds to the rows of dx it covers.
template <int kSize>
inline void gather_strip(const Padded& padded, int64_t first, int64_t rows, int64_t width, float* dx) {
    Floats sum[kSize] = {};  // of the rows that are not complete yet
    for (int64_t y = 0; y < rows; ++y) {
        for (int across = kSize - 1; across >= 0; --across) {
            const int64_t from = y * padded.stride + first + kSize - 1 - across;
            Places at;
            Floats g;
            load(at, padded.where + from);
            load(g, padded.grad + from);
            keep(g);
            for (int down = 0; down < kSize; ++down) add_where(sum[down], at, down * kSize + across, g);
        }
        std::memcpy(dx + y * width + first, &sum[0], sizeof sum[0]);
        for (int k = 1; k < kSize; ++k) sum[k - 1] = sum[k];
        sum[kSize - 1] = Floats{};
    }
    for (int k = 0; k + 1 < kSize; ++k) std::memcpy(dx + (rows + k) * width + first, &sum[k], sizeof sum[k]);
}

// Row y of dx: windows from above to below, and in a row from left to right.
inline void gather_row(const PoolBackwardTask& task, const Padded& padded, int64_t y, float* dx) {
    const int64_t rows = task.height - task.size + 1, edge = task.size - 1;
    const int64_t highest = y < edge ? y : edge, lowest = y >= rows ? y - rows + 1 : 0;
    if (task.width < kLanes) {
        for (int64_t i = 0; i < task.width; ++i) {
            float sum = 0.0f;
            for (int64_t down = highest; down >= lowest; --down)
                for (int64_t across = edge; across >= 0; --across) {
                    const int64_t from = (y - down) * padded.stride + i + edge - across;
                    if (padded.where[from] == down * task.size + across) sum += padded.grad[from];
                }
            dx[i] = sum;
        }
        return;
    }
    for_each_vector(task.width, [&](int64_t first) {
        Floats sum = {}, g;
        Places at;
        for (int64_t down = highest; down >= lowest; --down)
            for (int64_t across = edge; across >= 0; --across) {
                const int64_t from = (y - down) * padded.stride + first + edge - across;
                load(at, padded.where + from);
                load(g, padded.grad + from);
                add_where(sum, at, static_cast<int32_t>(down * task.size + across), g);
            }
        std::memcpy(dx + first, &sum, sizeof sum);
    });
}

void backward(const PoolBackwardTask& task, const PoolScratch& scratch, int64_t first_plane, int64_t last_plane) {
    const int64_t rows = task.height - task.size + 1, width = task.width;
    for (int64_t plane = first_plane; plane < last_plane; ++plane) {
        const Padded padded = pad(task, scratch, plane);
        float* dx = task.dx + plane * task.height * width;
        if (task.size == 2 && width >= kLanes) {
            for_each_vector(width, [&](int64_t first) { gather_strip<2>(padded, first, rows, width, dx); });
        } else if (task.size == 3 && width >= kLanes) {
            for_each_vector(width, [&](int64_t first) { gather_strip<3>(padded, first, rows, width, dx); });
        } else {
            for (int64_t y = 0; y < task.height; ++y) gather_row(task, padded, y, dx + y * width);
        }
    }
}

}  // namespace
}  // namespace edgeprune
