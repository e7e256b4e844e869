// New memory in large pages: the system zeroes a page when it is first touched, and 4 KB at a time that takes several
// times what the kernels that fill the memory take.
#pragma once

#include <cstddef>

namespace edgeprune {

// From this size on it is certain that a page of 2 MB, the large one of x86 and of arm64 with pages of 4 KB, lies
// inside wherever the memory begins.
constexpr size_t kLargePagesFrom = size_t{4} << 20;

// Asks the system for large pages under [data, data + bytes), which has not been written yet; contents and addresses
// stay. Only advice: where the system has none, or forbids them, nothing happens.
void ask_large_pages(void* data, size_t bytes);

}  // namespace edgeprune
