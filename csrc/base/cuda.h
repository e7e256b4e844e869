// The little of CUDA that the core needs besides its kernels: error codes as sentences, the device of a call.
#pragma once

namespace edgeprune {

// Throws Error for a cudaError_t other than 0: "op: what CUDA says; what to do".
void check_cuda(const char* op, int code);

struct CudaProperties {
    int multiprocessors;
    int shared_per_multiprocessor, shared_per_block;  // bytes; the most that a block may ask for
};
CudaProperties cuda_properties(const char* op, int device);

// Makes `device` current for as long as it lives, so that launches go where the tensors are.
class CudaDeviceGuard {
  public:
    CudaDeviceGuard(const char* op, int device);
    ~CudaDeviceGuard();
    CudaDeviceGuard(const CudaDeviceGuard&) = delete;
    CudaDeviceGuard& operator=(const CudaDeviceGuard&) = delete;

  private:
    int before_ = 0;
};

}  // namespace edgeprune
