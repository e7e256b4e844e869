// The kernels, once for all instruction sets: plain loops, of which the compiler makes what the set offers.
#pragma once

#include <cstring>

#include "kernels/gaps/byte_code.h"

namespace edgeprune {
namespace {

// Word w of a mask of n elements, zero behind its end.
inline uint64_t word_of(const uint8_t* mask, int64_t n, int64_t w) {
    const int64_t left = (n + 7) / 8 - 8 * w;
    uint64_t word = 0;
    std::memcpy(&word, mask + 8 * w, static_cast<size_t>(left < 8 ? left : 8));
    return word;
}

// Calls take(gap) for each kept element in order.
template <class Take>
void each_gap(const uint8_t* mask, int64_t n, Take&& take) {
    int64_t next = 0;  // behind the last kept element
    for (int64_t w = 0; w < (n + 63) / 64; ++w) {
        for (uint64_t word = word_of(mask, n, w); word; word &= word - 1) {
            const int64_t at = 64 * w + __builtin_ctzll(word);
            take(static_cast<uint64_t>(at - next));
            next = at + 1;
        }
    }
}

// ---- lengths --------------------------------------------------------------------------------------------------------

inline int64_t measure(const uint8_t* mask, int64_t n, int last, uint64_t* bits) {
    constexpr int kBatch = 512;
    uint64_t gaps[kBatch];
    int64_t kept = 0;
    int held = 0;
    for (int p = 0; p <= last; ++p) bits[p] = 0;
    const auto add_up = [&] {
        for (int p = 0; p <= last; ++p) {
            uint64_t sum = 0;
            for (int i = 0; i < held; ++i) sum += gaps[i] >> p;
            bits[p] += sum;
        }
        kept += held;
        held = 0;
    };
    each_gap(mask, n, [&](uint64_t gap) {
        gaps[held++] = gap;
        if (held == kBatch) add_up();
    });
    add_up();
    for (int p = 0; p <= last; ++p) bits[p] += static_cast<uint64_t>(kept) * static_cast<uint64_t>(1 + p);
    return kept;
}

inline uint64_t measure_bytes(const uint8_t* mask, int64_t n) {
    uint64_t bits = 0;
    for (int64_t i = 0; i < (n + 7) / 8; ++i) bits += kBytes.length[mask[i]];
    return bits;
}

// ---- writing --------------------------------------------------------------------------------------------------------

class BitWriter {
  public:
    BitWriter(uint8_t* out, int64_t bytes) : at_(out), end_(out + bytes) {}

    // At most 56 bits.
    void put(uint64_t bits, int count) {
        held_ |= bits << fill_;
        fill_ += count;
        if (end_ - at_ >= 8) {
            std::memcpy(at_, &held_, 8);
            at_ += fill_ >> 3;
        } else {
            for (int left = fill_ >> 3, i = 0; i < left && at_ < end_; ++i)
                *at_++ = static_cast<uint8_t>(held_ >> (8 * i));
        }
        held_ >>= fill_ & ~7;
        fill_ &= 7;
    }
    void finish() {
        if (fill_ && at_ < end_) *at_ = static_cast<uint8_t>(held_);
    }

  private:
    uint8_t* at_;
    uint8_t* end_;
    uint64_t held_ = 0;
    int fill_ = 0;  // < 8 between calls
};

inline void encode(const uint8_t* mask, int64_t n, int parameter, uint8_t* out, int64_t out_bytes) {
    BitWriter writer(out, out_bytes);
    if (parameter == kByteCode) {
        for (int64_t i = 0; i < (n + 7) / 8; ++i) writer.put(kBytes.code[mask[i]], kBytes.length[mask[i]]);
    } else {
        const uint64_t low = (uint64_t{1} << parameter) - 1;
        each_gap(mask, n, [&](uint64_t gap) {
            uint64_t zeros = gap >> parameter;
            for (; zeros > 24; zeros -= 24) writer.put(0, 24);
            writer.put((1 | (gap & low) << 1) << zeros, static_cast<int>(zeros) + 1 + parameter);
        });
    }
    writer.finish();
}

// ---- reading --------------------------------------------------------------------------------------------------------

class BitReader {
  public:
    BitReader(const uint8_t* data, int64_t bytes) : data_(data), bytes_(bytes) {}

    // The next bits, at least 57 unless the data end before; zeros behind the end.
    uint64_t peek() const {
        const int64_t byte = at_ >> 3;
        uint64_t word = 0;
        if (bytes_ - byte >= 8) {
            std::memcpy(&word, data_ + byte, 8);
        } else if (byte < bytes_) {
            std::memcpy(&word, data_ + byte, static_cast<size_t>(bytes_ - byte));
        }
        return word >> (at_ & 7);
    }
    int64_t left() const { return 8 * bytes_ - at_; }
    void skip(int64_t bits) { at_ += bits; }

  private:
    const uint8_t* data_;
    int64_t bytes_;
    int64_t at_ = 0;
};

inline GapError decode_rice(BitReader& reader, int64_t count, int64_t n, int parameter, uint8_t* mask) {
    const uint64_t low = (uint64_t{1} << parameter) - 1;
    const int64_t most = n >> parameter;  // a larger quotient leads outside, and could overflow
    int64_t next = 0;
    for (int64_t i = 0; i < count; ++i) {
        int64_t zeros = 0;
        uint64_t bits;
        while ((bits = reader.peek()) == 0) {
            const int64_t step = reader.left() < 57 ? reader.left() : 57;
            if (step <= 0) return GapError::truncated;
            zeros += step;
            reader.skip(step);
        }
        const int run = __builtin_ctzll(bits);
        zeros += run;
        uint64_t rest;
        if (run + 1 + parameter <= 57) {
            rest = bits >> run >> 1;
            reader.skip(run + 1);
        } else {
            reader.skip(run + 1);
            rest = reader.peek();
        }
        if (reader.left() < parameter) return GapError::truncated;
        reader.skip(parameter);
        if (zeros > most) return GapError::outside;
        next += static_cast<int64_t>(static_cast<uint64_t>(zeros) << parameter | (rest & low));
        if (next >= n) return GapError::outside;
        mask[next >> 3] |= static_cast<uint8_t>(1u << (next & 7));
        ++next;
    }
    return GapError::none;
}

inline GapError decode_bytes(BitReader& reader, int64_t count, int64_t n, uint8_t* mask) {
    int64_t kept = 0;
    for (int64_t i = 0; i < (n + 7) / 8; ++i) {
        const uint16_t entry = kBytes.entry[reader.peek() & ((1u << kByteCodeMost) - 1)];
        const int length = entry >> 8;
        if (!entry || reader.left() < length) return GapError::truncated;
        reader.skip(length);
        mask[i] = static_cast<uint8_t>(entry);
        kept += __builtin_popcount(mask[i]);
    }
    if (n % 8 && mask[n / 8] >> (n % 8)) return GapError::outside;
    return kept == count ? GapError::none : GapError::count;
}

inline GapError decode(const uint8_t* data, int64_t data_bytes, int64_t count, int64_t n, int parameter,
                       uint8_t* mask) {
    BitReader reader(data, data_bytes);
    if (count) {
        const GapError error = parameter == kByteCode ? decode_bytes(reader, count, n, mask)
                                                      : decode_rice(reader, count, n, parameter, mask);
        if (error != GapError::none) return error;
    }
    return reader.left() >= 8 || reader.peek() ? GapError::leftover : GapError::none;
}

}  // namespace
}  // namespace edgeprune
