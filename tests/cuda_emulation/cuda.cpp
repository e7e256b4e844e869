// base/cuda.h for the emulation: one device, and launches that do not fail.
#include "base/cuda.h"

#include "base/error.h"

namespace edgeprune {

void check_cuda(const char* op, int code) {
    if (code) fail("%s: the emulation returned %d", op, code);
}
CudaProperties cuda_properties(const char*, int) { return {3, 200 * 1024, 100 * 1024}; }

CudaDeviceGuard::CudaDeviceGuard(const char*, int device) : before_(device) {}
CudaDeviceGuard::~CudaDeviceGuard() { before_ = 0; }

}  // namespace edgeprune
