// Launches of kernels, for .cu files. Compiled by nvcc a launch is a launch; compiled as C++ against
// tests/cuda_emulation/cuda_runtime.h it runs the same kernel on the host, thread by thread, so that index arithmetic
// can be tested on a machine without a GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace edgeprune {

// Starts `blocks` blocks of `threads` threads of `kernel` on the caller's stream; nothing for 0 blocks. Returns a
// cudaError_t, 0 for success.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, [[maybe_unused]] void* stream,
           const Arguments&... arguments) {
    if (blocks <= 0) return 0;
#ifdef __CUDACC__
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, static_cast<cudaStream_t>(stream)>>>(
        arguments...);
    return cudaGetLastError();
#else
    return emulation::run(static_cast<unsigned>(blocks), static_cast<unsigned>(threads), [&] { kernel(arguments...); });
#endif
}

// An attribute of the current device, asked for once a device; `otherwise` where it cannot be had.
template <cudaDeviceAttr Attribute>
int of_device(int otherwise) {
    constexpr int kDevices = 64;
    static int known[kDevices] = {};  // a race writes the same number twice
    int device = 0, found = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return otherwise;
    if (device < kDevices && known[device]) return known[device];
    if (cudaDeviceGetAttribute(&found, Attribute, device) != cudaSuccess || found < 1) return otherwise;
    if (device < kDevices) known[device] = found;
    return found;
}
inline int multiprocessors() { return of_device<cudaDevAttrMultiProcessorCount>(1); }

// Bytes of arguments that one launch may carry: descriptors of many tensors travel there, which needs no memory and is
// captured with a graph.
#if defined(CUDART_VERSION) && CUDART_VERSION < 12010
constexpr int kLaunchBytes = 4000;
#else
constexpr int kLaunchBytes = 32000;
#endif

}  // namespace edgeprune
