// For .cu files whose kernels tile through shared memory: launches that ask for its size at run time, and copies into
// it that do not pass through registers. Compiled as C++ against tests/cuda_emulation/cuda_runtime.h the same kernels
// run on the host (see cuda_launch.h).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "base/cuda_launch.h"

namespace edgeprune {

// Bytes of shared memory that a block may have: without asking, and on the current device at most.
constexpr int64_t kSharedUnasked = 48 * 1024;
inline int64_t most_shared() {
    return of_device<cudaDevAttrMaxSharedMemoryPerBlockOptin>(static_cast<int>(kSharedUnasked));
}

// Declares `name`, the block's shared memory, 16-byte aligned.
#ifdef __CUDACC__
#define EDGEPRUNE_SHARED(name) extern __shared__ __align__(16) char name[]
#else
namespace emulation_shared {
inline std::vector<char> memory;
inline char* aligned() { return memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16; }
}  // namespace emulation_shared
#define EDGEPRUNE_SHARED(name) char* const name = emulation_shared::aligned()
#endif

// Starts a grid of `blocks` x `rows` blocks of `threads` threads with `bytes` of shared memory, at most most_shared().
// Returns a cudaError_t.
template <class... Parameters, class... Arguments>
int launch_shared(void (*kernel)(Parameters...), int64_t blocks, int64_t rows, int threads, int64_t bytes,
                  [[maybe_unused]] void* stream, const Arguments&... arguments) {
    if (blocks <= 0 || rows <= 0) return 0;
#ifdef __CUDACC__
    // Always the most: another thread may be between this and its launch of the same kernel with more.
    if (bytes > kSharedUnasked)
        if (const int code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  static_cast<int>(most_shared())))
            return code;
    kernel<<<dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows)), static_cast<unsigned>(threads),
             static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)>>>(arguments...);
    return cudaGetLastError();
#else
    if (bytes > most_shared()) return cudaErrorInvalidValue;
    emulation_shared::memory.assign(static_cast<size_t>(bytes) + 16, char(0xff));  // NaN: what was not written shows
    emulation::block_rows = static_cast<unsigned>(rows);
    int code = 0;
    for (unsigned row = 0; row < rows && !code; ++row) {
        emulation::block_row = row;
        code = emulation::run(static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                              [&] { kernel(arguments...); });
    }
    emulation::block_row = 0, emulation::block_rows = 1;
    return code;
#endif
}

// ---- asynchronous copies: a thread's are done after its wait_for_copies(), everybody's after the barrier behind it --

using SharedAddress = uint32_t;

#ifdef __CUDACC__
__device__ __forceinline__ SharedAddress shared_address(const void* pointer) {
    return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

// Copies 4 bytes, or writes 0 where `valid` is false; `from` must be an address in either case.
__device__ __forceinline__ void copy_4(SharedAddress to, const void* from, bool valid) {
    const int bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// The same for 16 bytes, both addresses being multiples of 16.
__device__ __forceinline__ void copy_16(SharedAddress to, const void* from, bool valid = true) {
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `Left` of the groups that were committed are under way.
template <int Left = 0>
__device__ __forceinline__ void wait_for_copies() {
    if (Left == 0)
        asm volatile("cp.async.wait_all;" ::: "memory");
    else
        asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}
#else
inline SharedAddress shared_address(const void* pointer) {
    return static_cast<SharedAddress>(static_cast<const char*>(pointer) - emulation_shared::aligned());
}
inline void copy_shared(SharedAddress to, const void* from, bool valid, size_t bytes) {
    if (to % bytes || to + bytes > emulation_shared::memory.size() - 16) std::abort();
    char* const place = emulation_shared::aligned() + to;
    if (valid) {
        if (reinterpret_cast<uintptr_t>(from) % bytes) std::abort();
        std::memcpy(place, from, bytes);
    } else {
        std::memset(place, 0, bytes);
    }
}
inline void copy_4(SharedAddress to, const void* from, bool valid) { copy_shared(to, from, valid, 4); }
inline void copy_16(SharedAddress to, const void* from, bool valid = true) { copy_shared(to, from, valid, 16); }
inline void commit_copies() {}
template <int Left = 0>
void wait_for_copies() {}
#endif

}  // namespace edgeprune
