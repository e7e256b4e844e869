#include "base/scratch.h"

#include <cstdlib>
#include <new>

namespace edgeprune {
namespace {

struct Buffer {
    float* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
};

}  // namespace

float* scratch(Slot slot, int64_t count) {
    thread_local Buffer buffers[static_cast<int>(Slot::count)];
    Buffer& buffer = buffers[static_cast<int>(slot)];
    // One that was needed once for something far larger is given back.
    const bool too_large = buffer.size > (int64_t{1} << 22) && count < buffer.size / 8;
    if (buffer.size < count || too_large) {
        std::free(buffer.data);
        buffer.data = nullptr;
        buffer.size = 0;
        const int64_t size = (count + 1023) / 1024 * 1024;
        buffer.data = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(size) * sizeof(float)));
        if (!buffer.data) throw std::bad_alloc();
        buffer.size = size;
    }
    return buffer.data;
}

}  // namespace edgeprune
