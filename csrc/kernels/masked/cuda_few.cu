// A masked linear layer on few samples: bound by reading the kept weights, so a warp walks one row and the inputs come
// from the caches.
#include "base/cuda_launch.h"
#include "kernels/masked/cuda.h"

namespace edgeprune {
namespace {

template <int N>
__global__ void __launch_bounds__(kCudaThreads) few_rows_kernel(const FewRowsCuda task) {
    const int row = blockIdx.x * kCudaWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= task.rows) return;
    float sum[N] = {};
    for (int k = task.begin[row] + lane; k < task.end[row]; k += 32) {
        const float w = task.w[task.order ? task.order[k] : k];
        const float* const x = task.x + task.columns[k];
#pragma unroll
        for (int n = 0; n < N; ++n)
            if (n < task.samples) sum[n] = fmaf(w, x[static_cast<int64_t>(n) * task.inputs], sum[n]);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
        for (int step = 16; step; step /= 2) sum[n] += __shfl_xor_sync(0xffffffffu, sum[n], step);
        if (lane == 0 && n < task.samples)
            task.y[static_cast<int64_t>(n) * task.rows + row] = sum[n] + (task.bias ? task.bias[row] : 0.0f);
    }
}

__global__ void __launch_bounds__(kCudaThreads) few_outer_kernel(const FewOuterCuda task) {
    const int row = blockIdx.x * kCudaWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= task.rows) return;
    for (int k = task.begin[row] + lane; k < task.end[row]; k += 32) {
        float sum = 0.0f;
        for (int n = 0; n < task.samples; ++n)
            sum = fmaf(task.dy[static_cast<int64_t>(n) * task.rows + row],
                       task.x[static_cast<int64_t>(n) * task.inputs + task.columns[k]], sum);
        task.dw[k] = sum;
    }
}

int blocks_for(int rows) { return (rows + kCudaWarps - 1) / kCudaWarps; }

}  // namespace

int masked_few_rows_cuda(const FewRowsCuda& task, void* stream) {
    return launch(task.samples == 1 ? few_rows_kernel<1> : few_rows_kernel<kFewSamples>, blocks_for(task.rows),
                  kCudaThreads, stream, task);
}

int masked_few_outer_cuda(const FewOuterCuda& task, void* stream) {
    return launch(few_outer_kernel, blocks_for(task.rows), kCudaThreads, stream, task);
}

}  // namespace edgeprune
