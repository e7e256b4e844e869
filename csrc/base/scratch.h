// Memory that a thread keeps between calls: asking the system anew would cost a page fault for each 4 KB touched.
#pragma once

#include <cstdint>

namespace edgeprune {

// What a thread's scratch may hold at once; a slot lives until the same thread asks for it again.
enum class Slot { packed, outputs, gradients, weights, shifts, maybe, keys, count };

// At least `count` floats, 64-byte aligned, contents unspecified. Throws std::bad_alloc.
float* scratch(Slot slot, int64_t count);

}  // namespace edgeprune
