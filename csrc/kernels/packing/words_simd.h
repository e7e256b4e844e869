// A mask as words of 64 elements, and single values moved in and out under such a word.
#pragma once

#include <cstring>

#include "base/simd.h"
#include "base/simd_int.h"
#include "kernels/packing/packing.h"

namespace edgeprune {
namespace {

using simd::F32;
using simd::I32;

constexpr int64_t kWord = 64;           // elements
constexpr int64_t kChunk = 32 * kWord;  // elements worked on at a time: what belongs to them stays in the first cache
constexpr int64_t kSlack = 64;          // elements that a vector may read or write beyond the last one in a buffer

inline int bits_in(uint64_t word) { return __builtin_popcountll(word); }
inline int lowest(uint64_t word) { return __builtin_ctzll(word); }

// Word w of a mask, without the elements outside [first, last).
inline uint64_t word_at(const uint8_t* mask, int64_t n, int64_t w, int64_t first, int64_t last) {
    uint64_t word = ~uint64_t{0};
    if (mask) {
        const int64_t left = (n + 7) / 8 - 8 * w;
        if (left >= 8) {
            std::memcpy(&word, mask + 8 * w, 8);
        } else {
            word = 0;
            std::memcpy(&word, mask + 8 * w, static_cast<size_t>(left));
        }
    }
    const int64_t start = w * kWord, end = start + kWord;
    if (start < first) word &= ~uint64_t{0} << (first - start);
    if (end > last) word &= ~uint64_t{0} >> (end - last);
    return word;
}

// The words of one chunk.
struct Words {
    uint64_t word[kChunk / kWord];
    int64_t first_word, count;  // words
    int64_t first, last;        // elements, those outside of the range left out
    int64_t kept;

    void read(const uint8_t* mask, int64_t n, int64_t from, int64_t range_last) {
        first_word = from / kWord;
        first = from;
        last = (first_word + kChunk / kWord) * kWord;
        if (last > range_last) last = range_last;
        count = (last + kWord - 1) / kWord - first_word;
        kept = 0;
        if (mask && last - first == kChunk) {
            std::memcpy(word, mask + 8 * first_word, sizeof word);
        } else {
            for (int64_t i = 0; i < count; ++i) word[i] = word_at(mask, n, first_word + i, first, last);
        }
        for (int64_t i = 0; i < count; ++i) kept += bits_in(word[i]);
    }
    int64_t element(int64_t i) const { return (first_word + i) * kWord; }
    bool whole(int64_t i) const { return element(i) >= first && element(i) + kWord <= last; }
};

// The kept elements of x, in order, to dst, which has room for kSlack more. Returns how many.
inline int64_t compress_words(const Words& words, const float* x, float* dst) {
    float* to = dst;
    for (int64_t i = 0; i < words.count; ++i) {
        uint64_t word = words.word[i];
        const float* const from = x + words.element(i);
        if (F32::lanes == 1 || !words.whole(i)) {
            for (; word; word &= word - 1) *to++ = from[lowest(word)];
            continue;
        }
        for (int v = 0; v < kWord / F32::lanes; ++v) {
            const unsigned bits = static_cast<unsigned>(word >> (v * F32::lanes)) & ((1u << F32::lanes) - 1);
            F32::compress(F32::load(from + v * F32::lanes), bits).store(to);
            to += __builtin_popcount(bits);
        }
    }
    return to - dst;
}

// ---- few kept elements: moved one by one, so that lines of memory without any are not read --------------------------

// The positions in one word, which begins at `start`; returns behind the last. A word rarely holds more than two, and
// whether it holds any cannot be foretold: two are written always.
inline uint32_t* list_word(uint64_t word, uint32_t start, uint32_t* where) {
    const int set = bits_in(word);
    constexpr uint64_t top = uint64_t{1} << 63;  // so that there is a lowest bit
    where[0] = start + static_cast<uint32_t>(lowest(word | top));
    const uint64_t rest = word & (word - 1);
    where[1] = start + static_cast<uint32_t>(lowest(rest | top));
    if (set > 2) {
        word = rest & (rest - 1);
        for (int i = 2; i < set; ++i, word &= word - 1) where[i] = start + static_cast<uint32_t>(lowest(word));
    }
    return where + set;
}

constexpr int64_t kBatch = 64;  // words

// The same of at most kBatch whole words. Half of a word is mostly empty: those that are not are brought together
// first, so that nothing branches on what cannot be foretold.
inline uint32_t* list_words(const uint8_t* bytes, int64_t words, uint32_t start, uint32_t* where) {
    alignas(64) float held[2 * kBatch + 16], place[2 * kBatch + 16];  // bits, not numbers
    int64_t half = 0, count = 0;
    if constexpr (F32::lanes > 1) {
        alignas(64) uint32_t steps[F32::lanes];
        for (int i = 0; i < F32::lanes; ++i) steps[i] = start + 32 * static_cast<uint32_t>(i);
        const I32 zero = I32::splat(0), stride = I32::splat(32 * F32::lanes);
        I32 at = I32::load(steps);
        for (; half + F32::lanes <= 2 * words; half += F32::lanes) {
            const I32 halves = I32::load(reinterpret_cast<const uint32_t*>(bytes + 4 * half));
            const unsigned some = above(halves, zero) | above(zero, halves);
            F32::compress(float_of(halves), some).store(held + count);
            F32::compress(float_of(at), some).store(place + count);
            count += __builtin_popcount(some);
            at = at + stride;
        }
    }
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits, first;
        std::memcpy(&bits, held + i, 4);
        std::memcpy(&first, place + i, 4);
        where = list_word(bits, first, where);
    }
    for (; half < 2 * words; half += 2) {
        uint64_t word;
        std::memcpy(&word, bytes + 4 * half, 8);
        where = list_word(word, start + static_cast<uint32_t>(32 * half), where);
    }
    return where;
}

// Lines that will be needed are asked for into the second-level cache. It can wait for several times as many as the
// first level, whose dozen of outstanding misses is what limits plain reads of scattered values.
constexpr int64_t kAhead = 256;  // values between asking and reading

inline void ask_for(const float* line) { __builtin_prefetch(line, 0, 2); }

// Lists the kept elements of a range, counted from `first`; returns behind the last.
inline uint32_t* list_range(const uint8_t* mask, int64_t n, int64_t first, int64_t last, uint32_t* where) {
    for (int64_t at = first; at < last;) {
        const int64_t w = at / kWord;
        const auto start = static_cast<uint32_t>(w * kWord - first);
        if (at % kWord == 0 && last - at >= kWord) {
            const int64_t words = last - at >= kBatch * kWord ? kBatch : (last - at) / kWord;
            where = list_words(mask + 8 * w, words, start, where);
            at += words * kWord;
        } else {
            where = list_word(word_at(mask, n, w, first, last), start, where);
            at = (w + 1) * kWord;
        }
    }
    return where;
}

// Lists the few kept elements of a range and calls visit(i) for each, ask(i) some way ahead of it: i counts them, and
// where[i] is its position, counted from `first`. Room for kFew + 2. One asks and one is visited in turn: that keeps
// the same number of lines on their way, where asking in bursts leaves the memory idle between them.
template <class Ask, class Visit>
inline void visit_few(const uint8_t* mask, int64_t n, int64_t first, int64_t last, uint32_t* where, Ask ask,
                      Visit visit) {
    const int64_t count = list_range(mask, n, first, last, where) - where;
    const int64_t ahead = count < kAhead ? count : kAhead;
    for (int64_t i = 0; i < ahead; ++i) ask(i);
    for (int64_t i = 0; i < count - ahead; ++i) {
        ask(i + ahead);
        visit(i);
    }
    for (int64_t i = count - ahead; i < count; ++i) visit(i);
}

inline int64_t count_bits(const uint8_t* bytes, int64_t count) {
    int64_t set = 0, i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t word;
        std::memcpy(&word, bytes + i, 8);
        set += bits_in(word);
    }
    for (; i < count; ++i) set += __builtin_popcount(bytes[i]);
    return set;
}

inline void add(const float* x, float* sum, int64_t count) {
    int64_t i = 0;
    for (; i + F32::lanes <= count; i += F32::lanes) (F32::load(x + i) + F32::load(sum + i)).store(sum + i);
    if (i < count)
        (F32::load_part(x + i, count - i) + F32::load_part(sum + i, count - i)).store_part(sum + i, count - i);
}

}  // namespace
}  // namespace edgeprune
