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

constexpr int64_t kFew = 2048;   // at most so many in a range,
constexpr int64_t kSparse = 64;  // and at most one in so many

inline bool few(int64_t kept, int64_t elements) { return kept <= kFew && kept * kSparse <= elements; }

// Their positions, counted from `first`; room for kFew + 2. A word rarely holds more than two, and whether it holds any
// cannot be foretold: two are written always.
inline void list_few(const uint8_t* mask, int64_t n, int64_t first, int64_t last, uint32_t* where) {
    for (int64_t w = first / kWord; w * kWord < last; ++w) {
        uint64_t word = word_at(mask, n, w, first, last);
        const int set = bits_in(word);
        const auto start = static_cast<uint32_t>(w * kWord - first);
        constexpr uint64_t top = uint64_t{1} << 63;  // so that there is a lowest bit
        where[0] = start + static_cast<uint32_t>(lowest(word | top));
        const uint64_t rest = word & (word - 1);
        where[1] = start + static_cast<uint32_t>(lowest(rest | top));
        if (set > 2) {
            word = rest & (rest - 1);
            for (int i = 2; i < set; ++i, word &= word - 1) where[i] = start + static_cast<uint32_t>(lowest(word));
        }
        where += set;
    }
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
