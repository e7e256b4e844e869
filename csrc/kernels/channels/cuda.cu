// The channels kernels on a GPU, plain and correct: one thread an element, one block a channel for norms. Offsets are
// 64-bit; the grid is capped and threads stride over the rest. Same roundings as on the CPU (-fmad=false), except for
// the order of the sums in norms.
#include <cuda_runtime.h>

#include "kernels/channels/channels.h"

namespace edgeprune {
namespace {

// ---- launch shape -------------------------------------------------------------------------------------------------

constexpr int kThreads = 256;
static_assert(kThreads % 32 == 0 && (kThreads & (kThreads - 1)) == 0, "norms adds its threads' sums pairwise");
constexpr int64_t kMaxBlocks = 4096;  // several times what the largest GPU holds at once

int blocks_for(int64_t elements) {
    const int64_t blocks = (elements + kThreads - 1) / kThreads;
    return static_cast<int>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

template <class Task>
int64_t elements_of(const Task& task) {
    int64_t elements = 1;
    for (int a = 0; a < task.axes; ++a) elements *= task.axis[a].size;
    return elements;
}

struct Limits {
    int64_t of[kChannelsAxes];  // an index must lie below it
};

Limits copy_limits(const int64_t* limit) {
    Limits limits;
    for (int a = 0; a < kChannelsAxes; ++a) limits.of[a] = limit[a];
    return limits;
}

// ---- gather -------------------------------------------------------------------------------------------------------

__global__ void gather_kernel(const GatherTask task, const Limits limits, int64_t elements) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; element < elements;
         element += step) {
        int64_t rest = element, from = 0;
        bool inside = true;
        for (int a = task.axes - 1; a >= 0; --a) {
            const GatherAxis& axis = task.axis[a];
            int64_t i = rest % axis.size;
            rest /= axis.size;
            if (axis.index) {
                i = axis.index[i];
                inside = inside && i >= 0 && i < limits.of[a];
            }
            from += i * axis.stride;
        }
        task.dst[element] = inside ? task.src[from] : __int_as_float(0x7fc00000);  // NaN shows; a stray read does not
    }
}

// ---- scatter ------------------------------------------------------------------------------------------------------

// No two elements meet in one place (an index has no duplicates), so there is nothing to do atomically.
__global__ void scatter_kernel(const ScatterTask task, const Limits limits, int64_t elements) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; element < elements;
         element += step) {
        int64_t rest = element, to_total = 0, to_count = 0, from = 0;
        bool inside = true;
        for (int a = task.axes - 1; a >= 0; --a) {
            const ScatterAxis& axis = task.axis[a];
            const int64_t i = rest % axis.size;
            rest /= axis.size;
            int64_t where = i;
            if (axis.index) {
                where = axis.index[i];
                inside = inside && where >= 0 && where < limits.of[a];
            }
            to_total += where * axis.total_stride;
            to_count += where * axis.count_stride;
            from += i * axis.x_stride;
        }
        if (inside) {
            task.total[to_total] += task.weight * task.x[from];
            task.count[to_count] += task.weight;
        }
    }
}

// ---- norms --------------------------------------------------------------------------------------------------------

// One block a channel: every thread sums its share in double, then the shares are added pairwise in shared memory.
__global__ void norms_kernel(const NormsTask task) {
    __shared__ double part[kThreads];
    for (int64_t c = blockIdx.x; c < task.channels; c += gridDim.x) {
        double sum = 0.0;
        const int64_t elements = task.before * task.after;
        for (int64_t i = threadIdx.x; i < elements; i += blockDim.x) {
            const double x = task.x[(i / task.after * task.channels + c) * task.after + i % task.after];
            sum += task.p == 1 ? fabs(x) : x * x;
        }
        part[threadIdx.x] = sum;
        __syncthreads();
        for (int half = kThreads / 2; half; half /= 2) {
            if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
            __syncthreads();
        }
        if (threadIdx.x == 0) task.norm[c] = static_cast<float>(task.p == 1 ? part[0] : sqrt(part[0]));
        __syncthreads();  // part[0] is read before the next channel writes it
    }
}

// ---- finish -------------------------------------------------------------------------------------------------------

__global__ void finish_kernel(const FinishTask task, int64_t size) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step)
        task.out[i] = task.count[i] > 0.0f ? __fdiv_rn(task.total[i], task.count[i]) : task.base[i];
}

}  // namespace

int channels_gather_cuda(const GatherTask& task, const int64_t* limit, void* stream) {
    const int64_t elements = elements_of(task);
    if (!elements) return 0;
    gather_kernel<<<blocks_for(elements), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(task, copy_limits(limit),
                                                                                            elements);
    return cudaGetLastError();
}

int channels_scatter_cuda(const ScatterTask& task, const int64_t* limit, void* stream) {
    const int64_t elements = elements_of(task);
    if (!elements) return 0;
    scatter_kernel<<<blocks_for(elements), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(task, copy_limits(limit),
                                                                                             elements);
    return cudaGetLastError();
}

int channels_norms_cuda(const NormsTask& task, void* stream) {
    if (!task.channels) return 0;
    const int64_t blocks = task.channels < kMaxBlocks ? task.channels : kMaxBlocks;
    norms_kernel<<<static_cast<int>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(task);
    return cudaGetLastError();
}

int channels_finish_cuda(const FinishTask& task, int64_t size, void* stream) {
    if (!size) return 0;
    finish_kernel<<<blocks_for(size), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(task, size);
    return cudaGetLastError();
}

}  // namespace edgeprune
