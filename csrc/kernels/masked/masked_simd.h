// The masked kernels, written once on base/simd.h and compiled by scalar.cpp, avx2.cpp, avx512.cpp and neon.cpp.
// Contracts: masked.h.
#pragma once

#include "base/simd.h"
#include "kernels/masked/masked.h"

namespace edgeprune {
namespace {

using simd::F32;

constexpr int kVectors = kChunk / F32::lanes;  // in a chunk

template <bool Table>
inline int64_t shift(const KeptRows& kept, int64_t k) {
    return Table ? kept.shift_of[kept.columns[k]] : kept.columns[k] * kept.column_stride;
}

// ---- accumulate ---------------------------------------------------------------------------------------------------

// sums[...] += w * the tile at `shift`.
template <int Chunks>
inline void add_tile(F32* sums, const float* const* x, int64_t shift, F32 w) {
    for (int c = 0; c < Chunks; ++c)
        for (int v = 0; v < kVectors; ++v)
            sums[c * kVectors + v] = F32::fma(F32::load(x[c] + shift + v * F32::lanes), w, sums[c * kVectors + v]);
}

// A multiply-add takes about four cycles and one or two start in each, so some eight sums must be under way: where the
// tile is narrower, kept weights take turns with several sets of sums. More than four cost more at the end of each row
// than they win.
template <int Chunks, bool Table, bool First, bool Ordered>
void accumulate_rows(const AccumulateTask& task) {
    constexpr int vectors = Chunks * kVectors;
    constexpr int sets = vectors >= 8 ? 1 : vectors >= 3 ? 2 : 4;
    const KeptRows& kept = task.kept;
    const auto weight = [&](int64_t k) { return F32::splat(task.w[Ordered ? task.order[k] : k]); };
    const float* x[Chunks];
    for (int c = 0; c < Chunks; ++c) x[c] = kept.x + kept.chunk[c];
    for (int64_t r = 0; r < kept.rows; ++r) {
        int64_t k = kept.begin[r];
        const int64_t end = kept.end[r];
        if (k == end && !First) continue;
        float* const y = task.y + r * task.y_stride;
        F32 sums[sets][vectors];
        const F32 start = F32::splat(First && task.bias ? task.bias[r] : 0.0f);
        for (int v = 0; v < vectors; ++v) {
            sums[0][v] = First ? start : F32::load(y + v * F32::lanes);
            for (int s = 1; s < sets; ++s) sums[s][v] = F32::splat(0.0f);
        }
        for (; k + sets <= end; k += sets)
            for (int s = 0; s < sets; ++s) add_tile<Chunks>(sums[s], x, shift<Table>(kept, k + s), weight(k + s));
        if (sets > 1)
            for (; k < end; ++k) add_tile<Chunks>(sums[0], x, shift<Table>(kept, k), weight(k));
        for (int v = 0; v < vectors; ++v) {
            for (int s = 1; s < sets; ++s) sums[0][v] = sums[0][v] + sums[s][v];
            sums[0][v].store(y + v * F32::lanes);
        }
    }
}

template <bool Table, bool First, bool Ordered = false>
inline void accumulate_by_chunks(const AccumulateTask& task) {
    switch (task.kept.chunks) {
        case 1:
            return accumulate_rows<1, Table, First, Ordered>(task);
        case 2:
            return accumulate_rows<2, Table, First, Ordered>(task);
        case 3:
            return accumulate_rows<3, Table, First, Ordered>(task);
        default:
            return accumulate_rows<4, Table, First, Ordered>(task);
    }
}

void accumulate(const AccumulateTask& task) {
    if (task.order)
        return task.first ? accumulate_by_chunks<false, true, true>(task)
                          : accumulate_by_chunks<false, false, true>(task);
    if (task.kept.shift_of)
        return task.first ? accumulate_by_chunks<true, true>(task) : accumulate_by_chunks<true, false>(task);
    return task.first ? accumulate_by_chunks<false, true>(task) : accumulate_by_chunks<false, false>(task);
}

// ---- dots ---------------------------------------------------------------------------------------------------------

// The tile of dy stays in registers; four kept weights at a time, so that four sums are under way and one shuffle
// adds up the lanes of all four.
template <int Chunks, bool Table>
void dots_rows(const DotsTask& task) {
    constexpr int vectors = Chunks * kVectors;
    const KeptRows& kept = task.kept;
    const float* x[Chunks];
    for (int c = 0; c < Chunks; ++c) x[c] = kept.x + kept.chunk[c];
    for (int64_t r = 0; r < kept.rows; ++r) {
        int64_t k = kept.begin[r];
        const int64_t end = kept.end[r];
        if (k == end) continue;
        F32 dy[vectors];
        for (int v = 0; v < vectors; ++v) dy[v] = F32::load(task.dy + r * task.dy_stride + v * F32::lanes);
        const auto dot = [&](int64_t at) {
            const int64_t by = shift<Table>(kept, at);
            F32 sum = dy[0] * F32::load(x[0] + by);
            for (int c = 0; c < Chunks; ++c)
                for (int v = c == 0 ? 1 : 0; v < kVectors; ++v)
                    sum = F32::fma(dy[c * kVectors + v], F32::load(x[c] + by + v * F32::lanes), sum);
            return sum;
        };
        for (; k + 4 <= end; k += 4) simd::sum4(dot(k), dot(k + 1), dot(k + 2), dot(k + 3), task.dw + k);
        if (k == end) continue;
        float rest[4] = {};
        const F32 none = F32::splat(0.0f);
        const int64_t left = end - k;
        simd::sum4(dot(k), left > 1 ? dot(k + 1) : none, left > 2 ? dot(k + 2) : none, none, rest);
        for (int64_t i = 0; i < left; ++i) task.dw[k + i] += rest[i];
    }
}

template <int Chunks>
inline void dots_of(const DotsTask& task) {
    return task.kept.shift_of ? dots_rows<Chunks, true>(task) : dots_rows<Chunks, false>(task);
}

// As many chunks of dy as registers hold beside the sums.
constexpr int kDotsChunks = F32::lanes == 16 ? 8 : 4;

void dots(const DotsTask& task) {
    switch (task.kept.chunks) {
        case 1:
            return dots_of<1>(task);
        case 2:
            return dots_of<2>(task);
        case 3:
            return dots_of<3>(task);
        case 4:
            return dots_of<4>(task);
#ifdef EDGEPRUNE_SIMD_AVX512
        case 5:
            return dots_of<5>(task);
        case 6:
            return dots_of<6>(task);
        case 7:
            return dots_of<7>(task);
        default:
            return dots_of<8>(task);
#endif
    }
}

// ---- one sample ---------------------------------------------------------------------------------------------------

// Left scalar: the compiler's gathers are slower than loads one by one.
#if defined(__GNUC__) && !defined(__clang__)
__attribute__((optimize("no-tree-vectorize", "no-tree-slp-vectorize")))
#endif
void gather_rows(const GatherRowsTask& task) {
    for (int64_t r = 0; r < task.rows; ++r) {
        int64_t k = task.begin[r];
        const int64_t end = task.end[r];
        const float *const w = task.w, *const x = task.x;
        const int32_t* const at = task.columns;
        float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
        for (; k + 4 <= end; k += 4) {
            s0 += w[k] * x[at[k]];
            s1 += w[k + 1] * x[at[k + 1]];
            s2 += w[k + 2] * x[at[k + 2]];
            s3 += w[k + 3] * x[at[k + 3]];
        }
        for (; k < end; ++k) s0 += w[k] * x[at[k]];
        task.y[r] = (s0 + s1) + (s2 + s3) + (task.bias ? task.bias[r] : 0.0f);
    }
}

void outer_rows(const OuterRowsTask& task) {
    for (int64_t r = 0; r < task.rows; ++r)
        for (int64_t k = task.begin[r]; k < task.end[r]; ++k) task.dw[k] = task.dy[r] * task.x[task.columns[k]];
}

// ---- the measure --------------------------------------------------------------------------------------------------

int64_t multiply_adds(int64_t rounds) {
    constexpr int sums = 10;  // more than are under way at once, fewer than there are registers
    volatile float start = 0.5f;
    const F32 scale = F32::splat(start + 0.499f), add = F32::splat(start * 1e-3f);
    F32 sum[sums];
    for (F32& each : sum) each = F32::splat(start);
    for (int64_t i = 0; i < rounds; ++i)
        for (F32& each : sum) each = F32::fma(each, scale, add);
    F32 all = sum[0];
    for (int i = 1; i < sums; ++i) all = all + sum[i];
    float lanes[F32::lanes];
    all.store(lanes);
    start = lanes[0];
    return rounds * sums * F32::lanes * 2;
}

// ---- interleaving -------------------------------------------------------------------------------------------------

constexpr int kSquare = 8;

// Where position q lies in packed memory.
inline int64_t at(const InterleaveTask& t, int64_t q) {
    return t.line ? (t.first + q) / t.line * t.line_step + (t.first + q) % t.line * t.packed_step : q * t.packed_step;
}

// Rows of a square: of pictures, or of positions one by one.
struct EvenRows {
    int64_t step;
    int64_t at(int i) const { return i * step; }
};
struct Places {
    int64_t place[kSquare];
    int64_t at(int i) const { return place[i]; }

    Places(const InterleaveTask& t, int64_t q) {
        int64_t line = (t.first + q) / t.line, column = (t.first + q) % t.line;
        for (int64_t& each : place) {
            each = line * t.line_step + column * t.packed_step;
            if (++column == t.line) column = 0, ++line;
        }
    }
};

#ifdef EDGEPRUNE_SIMD_HALVES
template <class From, class To>
inline void transpose_square(const float* src, From from, float* dst, To to) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(src + from.at(i));
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(dst + to.at(i), _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(dst + to.at(i + 4), _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}
#elif defined(EDGEPRUNE_SIMD_NEON)
template <class From, class To>
inline void transpose_square(const float* src, From from, float* dst, To to) {
    for (int i = 0; i < kSquare; i += 4) {
        for (int j = 0; j < kSquare; j += 4) {
            float32x4_t a[4];
            for (int n = 0; n < 4; ++n) a[n] = vld1q_f32(src + from.at(i + n) + j);
            const float32x4_t p = vzip1q_f32(a[0], a[2]), q = vzip2q_f32(a[0], a[2]);
            const float32x4_t s = vzip1q_f32(a[1], a[3]), t = vzip2q_f32(a[1], a[3]);
            vst1q_f32(dst + to.at(j) + i, vzip1q_f32(p, s));
            vst1q_f32(dst + to.at(j + 1) + i, vzip2q_f32(p, s));
            vst1q_f32(dst + to.at(j + 2) + i, vzip1q_f32(q, t));
            vst1q_f32(dst + to.at(j + 3) + i, vzip2q_f32(q, t));
        }
    }
}
#else
template <class From, class To>
inline void transpose_square(const float* src, From from, float* dst, To to) {
    for (int i = 0; i < kSquare; ++i)
        for (int j = 0; j < kSquare; ++j) dst[to.at(j) + i] = src[from.at(i) + j];
}
#endif

// Squares are done two by two, so that a line of the cache is read and written whole while it is there: images are
// often a multiple of 4 KB apart, where few lines fit at once.
constexpr int64_t kDouble = 2 * kSquare;

inline int64_t square_images(const InterleaveTask& t) { return t.images / kSquare * kSquare; }

// Calls square(position, image) for all positions of as many images as whole squares cover, the last square of them
// overlapping the one before. Returns how many images.
template <class Square>
inline int64_t for_each_square(const InterleaveTask& t, Square square) {
    if (t.plain_step != 1 || t.images < kSquare || t.count < kSquare) return 0;
    const int64_t images = square_images(t), last = t.count - kSquare;
    for (int64_t q = 0; q < t.count; q += kDouble)
        for (int64_t n = 0; n < images; n += kDouble)
            for (int64_t i = n; i < n + kDouble && i < images; i += kSquare)
                for (int64_t j = q; j < q + kDouble && j < t.count; j += kSquare) square(j < last ? j : last, i);
    return images;
}

// No square goes over the end of a line.
inline bool squares_in_lines(const InterleaveTask& t) {
    return !t.line || (t.first == 0 && t.line % kSquare == 0 && t.count % kSquare == 0);
}

void interleave(const InterleaveTask& t) {
    if (t.width == 1 && !t.line) {
        for (int64_t q = 0; q < t.count; ++q) t.packed[q * t.packed_step] = t.plain[q * t.plain_step];
        return;
    }
    const auto even = [&](int64_t q, int64_t n) {
        transpose_square(t.plain + n * t.plain_image + q, EvenRows{t.plain_image}, t.packed + at(t, q) + n,
                         EvenRows{t.packed_step});
    };
    const auto odd = [&](int64_t q, int64_t n) {
        transpose_square(t.plain + n * t.plain_image + q, EvenRows{t.plain_image}, t.packed + n, Places(t, q));
    };
    const int64_t images = squares_in_lines(t) ? for_each_square(t, even) : for_each_square(t, odd);
    if (images == t.width) return;
    for (int64_t q = 0; q < t.count; ++q) {
        float* const to = t.packed + at(t, q);
        for (int64_t n = images; n < t.images; ++n) to[n] = t.plain[n * t.plain_image + q * t.plain_step];
        for (int64_t n = t.images; n < t.width; ++n) to[n] = 0.0f;
    }
}

void deinterleave(const InterleaveTask& t) {
    if (t.width == 1 && !t.line) {
        for (int64_t q = 0; q < t.count; ++q) t.plain[q * t.plain_step] = t.packed[q * t.packed_step];
        return;
    }
    const auto even = [&](int64_t q, int64_t n) {
        transpose_square(t.packed + at(t, q) + n, EvenRows{t.packed_step}, t.plain + n * t.plain_image + q,
                         EvenRows{t.plain_image});
    };
    const auto odd = [&](int64_t q, int64_t n) {
        transpose_square(t.packed + n, Places(t, q), t.plain + n * t.plain_image + q, EvenRows{t.plain_image});
    };
    const int64_t images = squares_in_lines(t) ? for_each_square(t, even) : for_each_square(t, odd);
    if (images == t.images) return;
    for (int64_t q = 0; q < t.count; ++q) {
        const float* const from = t.packed + at(t, q);
        for (int64_t n = images; n < t.images; ++n) t.plain[n * t.plain_image + q * t.plain_step] = from[n];
    }
}

// A row's last vector overlaps the one before. What follows on both sides is asked for: it is the next call's.
void copy_rows(const CopyRowsTask& t) {
    const int64_t whole = t.count / F32::lanes * F32::lanes;
    for (int64_t r = 0; r < t.rows; ++r) {
        const float* const from = t.from + r * t.from_step;
        float* const to = t.to + r * t.to_step;
        for (int64_t i = 0; i < whole; i += F32::lanes) {
            if (i % 16 == 0) {
                __builtin_prefetch(from + t.count + i, 0, 2);
                __builtin_prefetch(to + t.count + i, 1, 2);
            }
            F32::load(from + i).store(to + i);
        }
        if (whole && whole < t.count)
            F32::load(from + t.count - F32::lanes).store(to + t.count - F32::lanes);
        else
            for (int64_t i = whole; i < t.count; ++i) to[i] = from[i];
    }
}

}  // namespace
}  // namespace edgeprune
