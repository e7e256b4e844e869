// The kernels, once for all instruction sets.
#pragma once

#include "kernels/packing/coding_simd.h"
#include "kernels/packing/lines_simd.h"
#include "kernels/packing/select_simd.h"

namespace edgeprune {
namespace {

// ---- pack -----------------------------------------------------------------------------------------------------------

// What was just sent is taken off the residual, value by value; false when a receiver would read infinity or NaN.
inline bool take_off(const PackTask& task, const float* v, int64_t count, int64_t rank, const uint32_t* where,
                     float* residual) {
    alignas(64) float sent[kScaleBlock + kChunk + kSlack];
    decode({task.values, task.scales, nullptr, task.n, task.kept, task.coding}, rank, count, sent);
    bool finite = true;
    for (int64_t i = 0; i < count; ++i) {
        finite = finite && sent[i] - sent[i] == 0.0f;
        residual[where[i]] = v[i] - sent[i];
    }
    return finite;
}

// Values on their way into a coding: they gather until they fill blocks of int8; other codings take any number.
struct Held {
    const PackTask& task;
    const int64_t first;  // element from which `where` counts
    int64_t rank;         // of the first value held
    int64_t count = 0;
    alignas(64) float value[kScaleBlock + kChunk + kSlack];
    uint32_t where[kScaleBlock + kChunk];  // with a residual only

    Held(const PackTask& task_, int64_t first_, int64_t rank_) : task(task_), first(first_), rank(rank_) {}

    // Sends what is ready; false as pack.
    // Not inline: what calls it for every two thousandth value keeps to its registers.
    __attribute__((noinline)) bool send(bool last) {
        const int64_t ready = task.coding == Coding::i8 && !last ? count / kScaleBlock * kScaleBlock : count;
        if (!encode(task, value, ready, rank)) return false;
        if (task.residual && !take_off(task, value, ready, rank, where, task.residual + first)) return false;
        rank += ready;
        count -= ready;
        std::memmove(value, value + ready, static_cast<size_t>(count) * sizeof value[0]);
        std::memmove(where, where + ready, task.residual ? static_cast<size_t>(count) * sizeof where[0] : 0);
        return true;
    }

    // Positions of the elements of a word that begins at `place`.
    static uint32_t* list(uint64_t word, uint32_t place, uint32_t* to) {
        for (; word; word &= word - 1) *to++ = place + static_cast<uint32_t>(lowest(word));
        return to;
    }
    // Of the value that goes to `to` and those behind it.
    void list(uint64_t word, uint32_t place, const float* to) {
        if (task.residual) list(word, place, where + (to - value));
    }
    void list(const Words& words) {
        uint32_t* to = where + count;
        for (int64_t i = 0; i < words.count; ++i)
            to = list(words.word[i], static_cast<uint32_t>(words.element(i) - first), to);
    }
};

// Everything is packed from the residual where there is one, which then holds v.
inline const float* source_of(const PackTask& task) { return task.residual ? task.residual : task.x; }

// The values go where they belong as they are.
inline bool straight(const PackTask& task) {
    return task.coding == Coding::f32 && !task.residual &&
           reinterpret_cast<uintptr_t>(task.values) % alignof(float) == 0;
}

// The elements of a sixteen that `bits` says, to `to`; more may be written behind them.
inline float* compress_line(uint32_t bits, const float* from, float* to) {
    if (F32::lanes != kLine) return pick_word(bits, from, to);
    F32::compress(F32::load(from), bits).store(to);
    return to + __builtin_popcount(bits);
}

// The words of the mask at the ends of a range, as far as they are in it but do not lie in it whole, and the elements
// between them.
struct Ends {
    int64_t first, last;
    uint64_t head, rest;

    Ends(const PackTask& task, int64_t from, int64_t to) {
        first = (from + kWord - 1) / kWord * kWord;
        last = to / kWord * kWord;
        head = first > from ? word_at(task.mask, task.n, from / kWord, from, to) : 0;
        rest = first <= last && last < to ? word_at(task.mask, task.n, last / kWord, from, to) : 0;
        if (first > to) first = to;  // all of it is in one word, and in `head`
    }
};

inline bool pack_few(const PackTask& task, int64_t first, int64_t last, int64_t rank, int64_t last_rank) {
    const int64_t word = first / kWord * kWord;  // the one that holds `first` begins here
    const float *const x = source_of(task), *const from = x + word;
    const Ends ends(task, first, last);
    const Asked asked(x + ends.first);
    const auto ask = [&](uint32_t place) { asked.ask(place); };
    if (straight(task)) {
        float* to = pick_word(ends.head, from, reinterpret_cast<float*>(task.values) + rank);
        const float* const end = reinterpret_cast<float*>(task.values) + last_rank;
        sweep_lines(task.mask, task.n, ends.first, ends.last, ask, [&](uint32_t place, uint32_t bits) {
            const float* const line = asked.from + place;
            to = end - to >= kLine ? compress_line(bits, line, to) : pick_word(bits, line, to);
        });
        pick_word(ends.rest, x + ends.last, to);
        return true;
    }
    if (task.residual && task.x) add(task.x + first, task.residual + first, last - first);
    Held held(task, word, rank);
    const auto behind = static_cast<uint32_t>(ends.first - word);
    bool finite = true;
    held.list(ends.head, 0, held.value);
    float* to = pick_word(ends.head, from, held.value);
    sweep_lines(task.mask, task.n, ends.first, ends.last, ask, [&](uint32_t place, uint32_t bits) {
        held.list(bits, behind + place, to);
        to = compress_line(bits, asked.from + place, to);
        if (to - held.value < kChunk) return;
        held.count = to - held.value;
        finite = finite && held.send(false);
        to = held.value + (finite ? held.count : 0);
    });
    if (!finite) return false;
    held.list(ends.rest, static_cast<uint32_t>(ends.last - word), to);
    held.count = pick_word(ends.rest, x + ends.last, to) - held.value;
    return held.send(true);
}

// Straight, from all of a range that begins at a word: four stretches of it in turns, which reads faster than one.
inline void pack_straight(const PackTask& task, int64_t first, int64_t last, int64_t rank) {
    constexpr int64_t kStretches = 4;
    float* const values = reinterpret_cast<float*>(task.values);
    const int64_t words = (last - first) / kWord / kStretches;
    const uint8_t* mask[kStretches];
    const float* from[kStretches];
    float *to[kStretches], *end[kStretches];
    for (int64_t s = 0; s < kStretches; ++s) {
        const int64_t at = first + s * words * kWord;
        mask[s] = task.mask + at / 8;
        from[s] = task.x + at;
        to[s] = values + rank;
        rank += count_bits(mask[s], words * kWord / 8);
        end[s] = values + rank;
    }
    for (int64_t w = 0; w < words; ++w) {
        for (int64_t s = 0; s < kStretches; ++s) {
            uint64_t word;
            std::memcpy(&word, mask[s] + 8 * w, 8);
            const float* const x = from[s] + w * kWord;
            to[s] = end[s] - to[s] >= kSlack ? compress_word(word, x, to[s]) : pick_word(word, x, to[s]);
        }
    }
    float* rest = values + rank;
    for (int64_t at = first + kStretches * words * kWord; at < last; at += kWord)
        rest = pick_word(word_at(task.mask, task.n, at / kWord, first, last), task.x + at, rest);
}

inline bool pack(const PackTask& task, int64_t first, int64_t last, int64_t rank, int64_t last_rank) {
    if (task.mask && few(last_rank - rank, last - first)) return pack_few(task, first, last, rank, last_rank);
    if (task.mask && straight(task) && first % kWord == 0) {
        pack_straight(task, first, last, rank);
        return true;
    }
    const float* const x = source_of(task);
    Held held(task, first, rank);
    Words words;
    for (int64_t at = first; at < last; at = words.last) {
        words.read(task.mask, task.n, at, last);
        if (task.residual && task.x) add(task.x + at, task.residual + at, words.last - at);
        if (!task.mask && !task.residual) {
            if (!encode(task, x + at, words.kept, held.rank)) return false;
            held.rank += words.kept;
            continue;
        }
        if (task.residual) held.list(words);
        held.count += compress_words(words, x, held.value + held.count);
        if (!held.send(words.last == last)) return false;
    }
    return true;
}

// ---- unpack and accumulate ------------------------------------------------------------------------------------------

// The values of a chunk's kept elements, readable kSlack floats beyond the last one.
inline const float* values_of(const PackedValues& packed, int64_t rank, int64_t count, float* buffer) {
    if (packed.coding == Coding::f32 && rank + count + kSlack <= packed.kept &&
        reinterpret_cast<uintptr_t>(packed.values) % alignof(float) == 0)
        return reinterpret_cast<const float*>(packed.values) + rank;
    decode(packed, rank, count, buffer);
    return buffer;
}

inline void unpack(const UnpackTask& task, int64_t first, int64_t last, int64_t rank) {
    alignas(64) float buffer[kChunk + kSlack];
    const F32 zero = F32::splat(0.0f);
    Words words;
    for (int64_t at = first; at < last; at = words.last) {
        words.read(task.packed.mask, task.packed.n, at, last);
        const float* from = values_of(task.packed, rank, words.kept, buffer);
        rank += words.kept;
        for (int64_t i = 0; i < words.count; ++i) {
            uint64_t word = words.word[i];
            float* const to = task.out + words.element(i);
            if (!words.whole(i) || F32::lanes == 1) {
                for (int64_t j = words.element(i); j < words.last && j < words.element(i) + kWord; ++j, word >>= 1)
                    task.out[j] = word & 1 ? *from++ : 0.0f;
                continue;
            }
            for (int v = 0; v < kWord / F32::lanes; ++v) {
                const unsigned bits = static_cast<unsigned>(word >> (v * F32::lanes)) & ((1u << F32::lanes) - 1);
                const F32 value = F32::select(bits, F32::expand(F32::load(from), bits), zero);
                if (task.around_caches) {
                    simd::stream(value, to + v * F32::lanes);
                } else {
                    value.store(to + v * F32::lanes);
                }
                from += __builtin_popcount(bits);
            }
        }
    }
    if (task.around_caches) simd::fence();
}

inline void accumulate_few(const AccumulateTask& task, int64_t first, int64_t last, int64_t rank, int64_t last_rank) {
    alignas(64) float buffer[kChunk + kSlack];
    const float *from = buffer, *end = buffer;
    const F32 weight = F32::splat(task.weight);
    const Asked totals(task.total + first), weight_sums(task.weight_sum + first);
    const int64_t whole = (task.packed.n - first) / kLine * kLine;  // sixteens before it are in the tensor
    const auto ask = [&](uint32_t place) {
        totals.ask(place);
        weight_sums.ask(place);
    };
    sweep_lines(task.packed.mask, task.packed.n, first, last, ask, [&](uint32_t place, uint32_t bits) {
        if (end - from < kLine) {  // a sixteen may need so many
            rank -= end - from;
            const int64_t count = last_rank - rank < kChunk ? last_rank - rank : kChunk;
            from = values_of(task.packed, rank, count, buffer);
            end = from + count;
            rank += count;
        }
        float* const total = task.total + first + place;
        float* const weight_sum = task.weight_sum + first + place;
        if (F32::lanes == kLine && place < whole) {
            const F32 sum = F32::load(total), held = F32::load(weight_sum);
            F32::select(bits, sum + weight * F32::expand(F32::load(from), bits), sum).store(total);
            F32::select(bits, held + weight, held).store(weight_sum);
            from += __builtin_popcount(bits);
            return;
        }
        for (; bits; bits &= bits - 1) {
            const float product = task.weight * *from++;
            total[lowest(bits)] += product;
            weight_sum[lowest(bits)] += task.weight;
        }
    });
}

inline void accumulate(const AccumulateTask& task, int64_t first, int64_t last, int64_t rank, int64_t last_rank) {
    if (task.packed.mask && few(last_rank - rank, last - first))
        return accumulate_few(task, first, last, rank, last_rank);
    alignas(64) float buffer[kChunk + kSlack];
    const F32 weight = F32::splat(task.weight);
    Words words;
    for (int64_t at = first; at < last; at = words.last) {
        words.read(task.packed.mask, task.packed.n, at, last);
        const float* from = values_of(task.packed, rank, words.kept, buffer);
        rank += words.kept;
        for (int64_t i = 0; i < words.count; ++i) {
            uint64_t word = words.word[i];
            float* const total = task.total + words.element(i);
            float* const weight_sum = task.weight_sum + words.element(i);
            if (F32::lanes == 1 || !words.whole(i)) {
                for (; word; word &= word - 1) {
                    const float product = task.weight * *from++;
                    total[lowest(word)] += product;
                    weight_sum[lowest(word)] += task.weight;
                }
                continue;
            }
            for (int v = 0; v < kWord / F32::lanes; ++v) {
                const unsigned bits = static_cast<unsigned>(word >> (v * F32::lanes)) & ((1u << F32::lanes) - 1);
                const F32 value = F32::expand(F32::load(from), bits);
                const F32 sum = F32::load(total + v * F32::lanes), held = F32::load(weight_sum + v * F32::lanes);
                F32::select(bits, sum + weight * value, sum).store(total + v * F32::lanes);
                F32::select(bits, held + weight, held).store(weight_sum + v * F32::lanes);
                from += __builtin_popcount(bits);
            }
        }
    }
}

}  // namespace
}  // namespace edgeprune
