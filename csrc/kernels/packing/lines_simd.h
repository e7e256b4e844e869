// Few kept elements: lines of memory without any are not read, and those with some are asked for well ahead.
#pragma once

#include "kernels/packing/words_simd.h"

namespace edgeprune {
namespace {

constexpr int64_t kLine = 16;    // floats
constexpr int64_t kAhead = 128;  // lines between asking and visiting

// Lines that will be needed are asked for into the second-level cache. It can wait for several times as many as the
// first level, whose dozen of outstanding misses is what limits plain reads of scattered values. The sixteens of a
// tensor that does not begin on a line lie on two each.
struct Asked {
    const float* from;
    bool on_lines;

    explicit Asked(const float* from_)
        : from(from_), on_lines(reinterpret_cast<uintptr_t>(from_) % (kLine * sizeof(float)) == 0) {}
    void ask(uint32_t place) const {
        ask_for(from + place);
        if (!on_lines) ask_for(from + place + kLine - 1);
    }
};

// Sixteens of a mask that hold kept elements, which elements, and where the sixteen begins.
struct Lines {
    static constexpr int64_t block = 4096;  // elements listed at a time
    static constexpr int64_t room = 2048;
    uint32_t place[room + F32::lanes], bits[room + F32::lanes];
    int64_t listed = 0, visited = 0;

    // Those of [at, at + block) before `last`, counted from `first`.
    void list(const uint8_t* mask, int64_t n, int64_t first, int64_t at, int64_t last) {
        if (room - listed < block / kLine) move_up();
        if (F32::lanes > 1 && at + block <= last)
            list_block(mask + at / 8, static_cast<uint32_t>(at - first));
        else
            list_words(mask, n, first, at, at + block < last ? at + block : last);
    }

  private:
    void move_up() {
        const auto left = static_cast<size_t>(listed - visited);
        std::memmove(place, place + visited, left * sizeof place[0]);
        std::memmove(bits, bits + visited, left * sizeof bits[0]);
        listed = static_cast<int64_t>(left);
        visited = 0;
    }

    // Most sixteens are empty, and which cannot be foretold: nothing branches on it.
    void list_block(const uint8_t* bytes, uint32_t start) {
        alignas(64) uint32_t steps[F32::lanes];
        for (int i = 0; i < F32::lanes; ++i) steps[i] = start + static_cast<uint32_t>(kLine) * static_cast<uint32_t>(i);
        const I32 zero = I32::splat(0), stride = I32::splat(static_cast<uint32_t>(kLine * F32::lanes));
        I32 at = I32::load(steps);
        int64_t count = listed;
        for (int64_t i = 0; i < block / kLine; i += F32::lanes) {
            const I32 sixteens = simd::load_16(bytes + 2 * i);
            const unsigned some = simd::above(sixteens, zero);
            simd::bits_of(F32::compress(simd::float_of(sixteens), some)).store(bits + count);
            simd::bits_of(F32::compress(simd::float_of(at), some)).store(place + count);
            count += __builtin_popcount(some);
            at = at + stride;
        }
        listed = count;
    }

    void list_words(const uint8_t* mask, int64_t n, int64_t first, int64_t at, int64_t last) {
        for (int64_t w = at / kWord; w * kWord < last; ++w) {
            const uint64_t word = word_at(mask, n, w, first, last);
            for (int64_t i = 0; i < kWord / kLine; ++i) {
                const auto some = static_cast<uint32_t>(word >> (kLine * i) & 0xFFFF);
                if (!some) continue;
                bits[listed] = some;
                place[listed++] = static_cast<uint32_t>(w * kWord + kLine * i - first);
            }
        }
    }
};

// Calls visit(place, bits) for each sixteen of a range with kept elements, in order, and ask(place) some way ahead of
// it; places count from `first`, where a word begins. One is asked for and one is visited in turn: that keeps the same
// number of lines on their way, where asking in bursts leaves the memory idle between them. A range is shorter than
// 2^31.
template <class Ask, class Visit>
inline void sweep_lines(const uint8_t* mask, int64_t n, int64_t first, int64_t last, Ask ask, Visit visit) {
    Lines lines;
    for (int64_t at = first; at < last; at += Lines::block) {
        const bool done = at + Lines::block >= last;
        int64_t ask_from = lines.listed - lines.visited;
        lines.list(mask, n, first, at, last);
        ask_from += lines.visited;
        int64_t visit_from = lines.visited;
        for (; ask_from < lines.listed && ask_from < visit_from + kAhead; ++ask_from) ask(lines.place[ask_from]);
        const int64_t until = done ? lines.listed : ask_from < lines.listed ? lines.listed - kAhead : visit_from;
        for (; visit_from < until; ++visit_from, ++ask_from) {
            if (ask_from < lines.listed) ask(lines.place[ask_from]);
            visit(lines.place[visit_from], lines.bits[visit_from]);
        }
        lines.visited = visit_from;
    }
}

}  // namespace
}  // namespace edgeprune
