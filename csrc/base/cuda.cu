#include <cuda_runtime.h>

#include "base/cuda.h"
#include "base/error.h"

namespace edgeprune {
namespace {

const char* remedy(cudaError_t code) {
    switch (code) {
        case cudaErrorNoKernelImageForDevice:
            return "this build has no code for that GPU; rebuild on the machine or set EDGEPRUNE_CUDA_ARCHS";
        case cudaErrorInsufficientDriver:
            return "the driver is older than the CUDA toolkit of this build; update the driver or rebuild";
        case cudaErrorNoDevice:
            return "no GPU is visible; move the tensors to the CPU";
        default:
            return "run again with CUDA_LAUNCH_BLOCKING=1 to find the call that failed";
    }
}

}  // namespace

void check_cuda(const char* op, int code) {
    if (code == cudaSuccess) return;
    const auto error = static_cast<cudaError_t>(code);
    cudaGetLastError();  // forgets it: the next launch would be taken for the one that failed
    fail("%s: CUDA says '%s' (%s): %s", op, cudaGetErrorString(error), cudaGetErrorName(error), remedy(error));
}

CudaProperties cuda_properties(const char* op, int device) {
    CudaProperties found{};
    check_cuda(op, cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device));
    check_cuda(op, cudaDeviceGetAttribute(&found.shared_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor,
                                          device));
    check_cuda(op, cudaDeviceGetAttribute(&found.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return found;
}

CudaDeviceGuard::CudaDeviceGuard(const char* op, int device) {
    check_cuda(op, cudaGetDevice(&before_));
    check_cuda(op, cudaSetDevice(device));
}

CudaDeviceGuard::~CudaDeviceGuard() { cudaSetDevice(before_); }

}  // namespace edgeprune
