// The small part of CUDA that edgeprune's kernels use, on the host: put this folder before the toolkit's on the include
// path and compile the .cu files as C++. Blocks run one after the other, in the order of their numbers; a block's
// threads are fibers of one thread that take turns at barriers and warp operations. For tests of index arithmetic and
// logic; it says nothing about speed, and a missing barrier may go unnoticed (compute-sanitizer finds those on a GPU).
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

// ---- words of the language ------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#ifndef __restrict__
#define __restrict__ __restrict
#endif

struct uint3 {
    unsigned x, y, z;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- the runtime's few functions ------------------------------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorNoKernelImageForDevice = 209
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
namespace emulation {
inline int device = 0;                                                       // which is current
inline int shared_per_block(int of) { return (of == 0 ? 227 : 99) * 1024; }  // number 1 has little, as sm_86 and sm_120
}  // namespace emulation
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = emulation::device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return emulation::device = device, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
    *value = which == cudaDevAttrMultiProcessorCount ? 3 : emulation::shared_per_block(device);
    return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaSuccess"; }

// ---- fibers ---------------------------------------------------------------------------------------------------------

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kStack = 128 * 1024;

// A fiber starts on its own stack by ucontext and from then on switches by setjmp and longjmp, which ask the system
// nothing. Fibers outlive a launch: the next one's threads run on their stacks.
struct Fiber {
    std::jmp_buf state;
    bool started = false;
    std::vector<char> stack = std::vector<char>(kStack);
};
inline std::vector<Fiber> fibers;
inline std::jmp_buf scheduler;
inline const std::function<void()>* body = nullptr;

// Threads that wait for each other: a block's, or a warp's.
struct Barrier {
    unsigned size = 0, arrived = 0;
    long opened = 0;
    void open() {
        arrived = 0;
        ++opened;
    }
};

struct Block {
    unsigned current = 0;
    long steps = 0;  // barriers opened and threads ended: when a round over all threads adds none, all wait for ever
    std::vector<bool> done;
    std::vector<uint64_t> given;  // what each lane brought to a warp operation
    std::vector<Barrier> warps;
    Barrier all;
};
inline Block* block = nullptr;
inline unsigned block_number = 0, blocks = 0, threads = 0;
inline unsigned block_row = 0, block_rows = 1;  // blockIdx.y and gridDim.y, for whoever runs a launch row by row

inline void yield() {
    if (!_setjmp(fibers[block->current].state)) _longjmp(scheduler, 1);
}

inline void wait_at(Barrier& barrier) {
    const long before = barrier.opened;
    if (++barrier.arrived == barrier.size) {
        barrier.open();
        ++block->steps;
    }
    while (barrier.opened == before) yield();
}

inline void run_fiber() {
    for (;;) {
        (*body)();
        block->done[block->current] = true;
        ++block->steps;
        // Threads that have ended are not waited for.
        if (--block->all.size && block->all.arrived == block->all.size) block->all.open();
        yield();
    }
}

// Until the fiber yields.
inline void resume(unsigned t) {
    Fiber& fiber = fibers[t];
    block->current = t;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.state, 1);
    fiber.started = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.data();
    context.uc_stack.ss_size = fiber.stack.size();
    context.uc_link = nullptr;
    makecontext(&context, run_fiber, 0);
    setcontext(&context);
}

// Runs a launch to its end; 0, as CUDA says success.
inline int run(unsigned block_count, unsigned thread_count, const std::function<void()>& kernel) {
    if (thread_count > 1024 || thread_count % kWarp) std::abort();
    if (fibers.size() < thread_count) fibers.resize(thread_count);
    blocks = block_count;
    threads = thread_count;
    body = &kernel;
    for (block_number = 0; block_number < blocks; ++block_number) {
        Block own;
        own.done.assign(threads, false);
        own.given.assign(threads, 0);
        own.warps.resize(threads / kWarp);
        for (Barrier& warp : own.warps) warp.size = kWarp;
        own.all.size = threads;
        block = &own;
        // Even blocks take their threads upwards, odd ones downwards: what works in one order only shows.
        while (own.all.size) {
            const long before = own.steps;
            for (unsigned i = 0; i < threads; ++i) {
                const unsigned t = block_number % 2 ? threads - 1 - i : i;
                if (!own.done[t]) resume(t);
            }
            if (own.steps == before) {
                std::fputs("emulation: threads wait for each other at different places\n", stderr);
                std::abort();
            }
        }
    }
    block = nullptr;
    return 0;
}

inline unsigned lane() { return block->current % kWarp; }

// Brings a value to all lanes of the warp; `read` sees what every lane brought. All lanes of the warp must take part.
template <class Value, class Read>
auto exchange(Value value, Read read) {
    static_assert(sizeof(Value) <= 8, "a warp exchanges words");
    const unsigned self = block->current, first = self / kWarp * kWarp;
    Barrier& warp = block->warps[self / kWarp];
    block->given[self] = 0;
    std::memcpy(&block->given[self], &value, sizeof value);
    wait_at(warp);
    const auto result = read([&](unsigned of) {
        Value brought;
        std::memcpy(&brought, &block->given[first + of % kWarp], sizeof brought);
        return brought;
    });
    wait_at(warp);  // before the next operation's values come
    return result;
}

}  // namespace emulation

struct EmulatedIndex {
    unsigned (*of)();
    operator unsigned() const { return of(); }
};
struct EmulatedDim {
    EmulatedIndex x, y;
};
inline const EmulatedDim threadIdx{{[] { return emulation::block->current; }}, {[] { return 0u; }}};
inline const EmulatedDim blockIdx{{[] { return emulation::block_number; }}, {[] { return emulation::block_row; }}};
inline const EmulatedDim blockDim{{[] { return emulation::threads; }}, {[] { return 1u; }}};
inline const EmulatedDim gridDim{{[] { return emulation::blocks; }}, {[] { return emulation::block_rows; }}};

inline void __syncthreads() { emulation::wait_at(emulation::block->all); }
inline void __threadfence() {}
inline void __syncwarp(unsigned = ~0u) {
    emulation::exchange(0, [](auto) { return 0; });
}

// ---- warp operations: the mask must be all lanes --------------------------------------------------------------------

template <class Value>
Value __shfl_sync(unsigned, Value value, unsigned source) {
    return emulation::exchange(value, [&](auto of) { return of(source); });
}
template <class Value>
Value __shfl_xor_sync(unsigned, Value value, unsigned change) {
    const unsigned lane = emulation::lane();
    return emulation::exchange(value, [&](auto of) { return of(lane ^ change); });
}
template <class Value>
Value __shfl_up_sync(unsigned, Value value, unsigned by) {
    const unsigned lane = emulation::lane();
    return emulation::exchange(value, [&](auto of) { return lane < by ? value : of(lane - by); });
}
template <class Value>
Value __shfl_down_sync(unsigned, Value value, unsigned by) {
    const unsigned lane = emulation::lane();
    return emulation::exchange(value, [&](auto of) { return lane + by > 31 ? value : of(lane + by); });
}
inline unsigned __ballot_sync(unsigned, bool holds) {
    return emulation::exchange(static_cast<int>(holds), [](auto of) {
        unsigned bits = 0;
        for (unsigned lane = 0; lane < 32; ++lane) bits |= of(lane) ? 1u << lane : 0u;
        return bits;
    });
}
inline bool __any_sync(unsigned mask, bool holds) { return __ballot_sync(mask, holds) != 0; }

// ---- arithmetic -----------------------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
using std::max;
using std::min;

// ---- memory ---------------------------------------------------------------------------------------------------------

template <class Value>
Value __ldg(const Value* p) {
    return *p;
}
template <class Value>
Value __ldcg(const Value* p) {
    return *p;
}
template <class Value>
Value __ldcs(const Value* p) {
    return *p;
}
template <class Value>
void __stcs(Value* p, Value value) {
    *p = value;
}
template <class Value>
void __stcg(Value* p, Value value) {
    *p = value;
}
template <class Value, class Other>
Value atomicAdd(Value* p, Other value) {
    const Value before = *p;
    *p = static_cast<Value>(before + value);
    return before;
}
template <class Value>
Value atomicMax(Value* p, Value value) {
    const Value before = *p;
    *p = std::max(before, value);
    return before;
}
template <class Value>
Value atomicOr(Value* p, Value value) {
    const Value before = *p;
    *p = before | value;
    return before;
}
