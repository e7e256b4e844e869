// A mask as words of 64 elements, and single values moved in and out under such a word.
#pragma once

#include <cstring>

#include "base/simd.h"
#include "base/simd_int.h"
#include "kernels/packing/packing.h"

namespace edgeprune {
namespace {

using simd::ask_for;
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

// The kept elements of a word's 64, in order, to `to`; returns behind the last. compress_word reads all 64, and writes
// kSlack elements at most.
inline float* pick_word(uint64_t word, const float* from, float* to) {
    for (; word; word &= word - 1) *to++ = from[lowest(word)];
    return to;
}
inline float* compress_word(uint64_t word, const float* from, float* to) {
    if (F32::lanes == 1) return pick_word(word, from, to);
    for (int v = 0; v < kWord / F32::lanes; ++v) {
        const unsigned bits = static_cast<unsigned>(word >> (v * F32::lanes)) & ((1u << F32::lanes) - 1);
        F32::compress(F32::load(from + v * F32::lanes), bits).store(to);
        to += __builtin_popcount(bits);
    }
    return to;
}

// The kept elements of x, in order, to dst, which has room for kSlack more. Returns how many.
inline int64_t compress_words(const Words& words, const float* x, float* dst) {
    float* to = dst;
    for (int64_t i = 0; i < words.count; ++i) {
        const float* const from = x + words.element(i);
        to = words.whole(i) ? compress_word(words.word[i], from, to) : pick_word(words.word[i], from, to);
    }
    return to - dst;
}

inline int64_t count_bits(const uint8_t* bytes, int64_t count) {
    constexpr int kAtOnce = 8;  // words: one by one, the loop costs more than the counting
    int64_t set = 0, i = 0;
    for (; i + 8 * kAtOnce <= count; i += 8 * kAtOnce) {
        uint64_t word[kAtOnce];
        std::memcpy(word, bytes + i, sizeof word);
        for (uint64_t each : word) set += bits_in(each);
    }
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
