// Linear layers on up to eight samples, written once and compiled with masked_simd.h. Contracts: masked.h.
//
// Eight samples side by side are half a chunk, so kernels of whole chunks would do twice the work and read twice the
// memory. And so few products with each weight do not pay for bringing the weights into the transposed order first.
#pragma once

#include "base/simd.h"
#include "kernels/masked/masked.h"

namespace edgeprune {
namespace {

// Floats of all samples of one input or output.
#if defined(EDGEPRUNE_SIMD_HALVES)
struct Eight {
    __m256 v;
    static Eight load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Eight splat(float x) { return {_mm256_set1_ps(x)}; }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    friend Eight operator+(Eight a, Eight b) { return {_mm256_add_ps(a.v, b.v)}; }
    friend Eight operator*(Eight a, Eight b) { return {_mm256_mul_ps(a.v, b.v)}; }
    static Eight fma(Eight a, Eight b, Eight c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
};
// out[0..3] = the sums over the samples of a, b, c, d.
inline void sums_of(Eight a, Eight b, Eight c, Eight d, float* out) {
    _mm_storeu_ps(out, simd::half_sum4(a.v, b.v, c.v, d.v));
}
#else
struct Eight {
    static constexpr int parts = static_cast<int>(kFew) / simd::F32::lanes;
    simd::F32 v[parts];
    static Eight load(const float* p) {
        Eight x;
        for (int i = 0; i < parts; ++i) x.v[i] = simd::F32::load(p + i * simd::F32::lanes);
        return x;
    }
    static Eight splat(float value) {
        Eight x;
        for (simd::F32& part : x.v) part = simd::F32::splat(value);
        return x;
    }
    void store(float* p) const {
        for (int i = 0; i < parts; ++i) v[i].store(p + i * simd::F32::lanes);
    }
    friend Eight operator+(Eight a, const Eight& b) {
        for (int i = 0; i < parts; ++i) a.v[i] = a.v[i] + b.v[i];
        return a;
    }
    friend Eight operator*(Eight a, const Eight& b) {
        for (int i = 0; i < parts; ++i) a.v[i] = a.v[i] * b.v[i];
        return a;
    }
    static Eight fma(const Eight& a, const Eight& b, Eight c) {
        for (int i = 0; i < parts; ++i) c.v[i] = simd::F32::fma(a.v[i], b.v[i], c.v[i]);
        return c;
    }
};
inline void sums_of(const Eight& a, const Eight& b, const Eight& c, const Eight& d, float* out) {
    simd::F32 sums[4] = {a.v[0], b.v[0], c.v[0], d.v[0]};
    for (int i = 1; i < Eight::parts; ++i) {
        sums[0] = sums[0] + a.v[i];
        sums[1] = sums[1] + b.v[i];
        sums[2] = sums[2] + c.v[i];
        sums[3] = sums[3] + d.v[i];
    }
    for (int i = 0; i < 4; ++i) out[i] = 0.0f;
    simd::sum4(sums[0], sums[1], sums[2], sums[3], out);
}
#endif

template <bool Ordered>
inline void few_sums(const FewTask& task) {
    const auto weight = [&](int64_t k) { return Eight::splat(task.w[Ordered ? task.order[k] : k]); };
    for (int64_t r = 0; r < task.rows; ++r) {
        int64_t k = task.begin[r];
        const int64_t end = task.end[r];
        if (k == end && !task.first) continue;
        float* const y = task.y + r * kFew;
        const Eight none = Eight::splat(0.0f);
        // four under way: a multiply-add takes about four cycles
        Eight sums[4] = {task.first ? Eight::splat(task.bias ? task.bias[r] : 0.0f) : Eight::load(y), none, none, none};
        for (; k + 4 <= end; k += 4)
            for (int s = 0; s < 4; ++s)
                sums[s] = Eight::fma(weight(k + s), Eight::load(task.x + kFew * task.columns[k + s]), sums[s]);
        for (; k < end; ++k) sums[0] = Eight::fma(weight(k), Eight::load(task.x + kFew * task.columns[k]), sums[0]);
        ((sums[0] + sums[1]) + (sums[2] + sums[3])).store(y);
    }
}

void few_products(const FewTask& task) { task.order ? few_sums<true>(task) : few_sums<false>(task); }

void few_dots(const FewTask& task) {
    for (int64_t r = 0; r < task.rows; ++r) {
        const Eight y = Eight::load(task.y + r * kFew);
        const auto products = [&](int64_t k) { return y * Eight::load(task.x + kFew * task.columns[k]); };
        int64_t k = task.begin[r];
        const int64_t end = task.end[r];
        for (; k + 4 <= end; k += 4)
            sums_of(products(k), products(k + 1), products(k + 2), products(k + 3), task.w + k);
        if (k == end) continue;
        float rest[4];
        const Eight none = Eight::splat(0.0f);
        const int64_t left = end - k;
        sums_of(products(k), left > 1 ? products(k + 1) : none, left > 2 ? products(k + 2) : none, none, rest);
        for (int64_t i = 0; i < left; ++i) task.w[k + i] = rest[i];
    }
}

}  // namespace
}  // namespace edgeprune
