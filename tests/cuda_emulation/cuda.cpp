// base/cuda.h for the emulation: as many devices as are asked for.
#include "base/cuda.h"

#include <cuda_runtime.h>

#include "base/error.h"

namespace edgeprune {

void check_cuda(const char* op, int code) {
    if (code) fail("%s: the emulation returned %d", op, code);
}
CudaProperties cuda_properties(const char*, int) { return {3, 200 * 1024, 100 * 1024}; }

CudaDeviceGuard::CudaDeviceGuard(const char*, int device) : before_(emulation::device) { emulation::device = device; }
CudaDeviceGuard::~CudaDeviceGuard() { emulation::device = before_; }

}  // namespace edgeprune
