// The fixed prefix code over the bytes of a mask (gaps.h), as tables made by the compiler.
#pragma once

#include "kernels/gaps/gaps.h"

namespace edgeprune {
namespace {

struct ByteCode {
    uint16_t code[256] = {};  // first bit to be written lowest
    uint8_t length[256] = {};
    uint16_t entry[1 << kByteCodeMost] = {};  // of the next bits: length << 8 | byte; 0 where no code begins so

    constexpr ByteCode() {
        unsigned next = 0;
        for (int bits = 1; bits <= kByteCodeMost; ++bits) {
            for (int byte = 0; byte < 256; ++byte) {
                int set = 0;
                for (int b = 0; b < 8; ++b) set += byte >> b & 1;
                if (kByteCodeBits[set] != bits) continue;
                unsigned turned = 0;
                for (int b = 0; b < bits; ++b) turned |= (next >> b & 1) << (bits - 1 - b);
                code[byte] = static_cast<uint16_t>(turned);
                length[byte] = static_cast<uint8_t>(bits);
                for (unsigned above = 0; above < 1u << (kByteCodeMost - bits); ++above)
                    entry[turned | above << bits] = static_cast<uint16_t>(bits << 8 | byte);
                ++next;
            }
            next <<= 1;
        }
    }
};
constexpr ByteCode kBytes{};

}  // namespace
}  // namespace edgeprune
