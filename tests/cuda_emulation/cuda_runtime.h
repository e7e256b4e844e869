// The small part of CUDA that edgeprune's kernels use, on the host: put this folder before the toolkit's on the include
// path and compile the .cu files as C++. Blocks run one after the other, in the order of their numbers; a block's
// threads are fibers of one thread that take turns at barriers and warp operations. For tests of index arithmetic and
// logic; it says nothing about speed, and a missing barrier may go unnoticed (compute-sanitizer finds those on a GPU).
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
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
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorNoKernelImageForDevice = 209
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 3, cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaSuccess"; }

// ---- fibers ---------------------------------------------------------------------------------------------------------

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kStack = 128 * 1024;

struct Block {
    std::vector<ucontext_t> fibers;
    std::vector<bool> done;
    std::vector<long> waits;       // barriers passed by each thread
    std::vector<uint64_t> given;   // what each lane brought to a warp operation
    std::vector<long> warp_round;  // warp operations each lane has begun
    std::vector<long> warp_left;   // and has finished reading
    ucontext_t scheduler;
    unsigned current = 0;
    const std::function<void()>* body = nullptr;
};
inline Block* block = nullptr;
inline unsigned block_number = 0, blocks = 0, threads = 0;
inline unsigned block_row = 0, block_rows = 1;  // blockIdx.y and gridDim.y, for whoever runs a launch row by row

inline void yield() { swapcontext(&block->fibers[block->current], &block->scheduler); }

inline void enter() {
    (*block->body)();
    block->done[block->current] = true;
    swapcontext(&block->fibers[block->current], &block->scheduler);
}

// Runs a launch to its end; 0, as CUDA says success.
inline int run(unsigned block_count, unsigned thread_count, const std::function<void()>& body) {
    static std::vector<char> stacks;
    if (thread_count > 1024 || thread_count % kWarp) std::abort();
    if (stacks.size() < thread_count * kStack) stacks.resize(thread_count * kStack);
    blocks = block_count;
    threads = thread_count;
    for (block_number = 0; block_number < blocks; ++block_number) {
        Block own;
        own.fibers.resize(threads);
        own.done.assign(threads, false);
        own.waits.assign(threads, 0);
        own.given.assign(threads, 0);
        own.warp_round.assign(threads, 0);
        own.warp_left.assign(threads, 0);
        own.body = &body;
        block = &own;
        for (unsigned t = 0; t < threads; ++t) {
            getcontext(&own.fibers[t]);
            own.fibers[t].uc_stack.ss_sp = stacks.data() + t * kStack;
            own.fibers[t].uc_stack.ss_size = kStack;
            own.fibers[t].uc_link = nullptr;
            makecontext(&own.fibers[t], enter, 0);
        }
        // Even blocks take their threads upwards, odd ones downwards: what works in one order only shows.
        for (unsigned left = threads; left;) {
            for (unsigned i = 0; i < threads; ++i) {
                const unsigned t = block_number % 2 ? threads - 1 - i : i;
                if (own.done[t]) continue;
                own.current = t;
                swapcontext(&own.scheduler, &own.fibers[t]);
                if (own.done[t]) --left;
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
    const auto all = [&](const std::vector<long>& counts, long least) {
        for (unsigned t = first; t < first + kWarp; ++t)
            if (counts[t] < least) return false;
        return true;
    };
    const long round = block->warp_round[self];
    while (!all(block->warp_left, round)) yield();  // someone still reads what the last operation brought
    block->given[self] = 0;
    std::memcpy(&block->given[self], &value, sizeof value);
    block->warp_round[self] = round + 1;
    while (!all(block->warp_round, round + 1)) yield();
    const auto result = read([&](unsigned of) {
        Value brought;
        std::memcpy(&brought, &block->given[first + of % kWarp], sizeof brought);
        return brought;
    });
    block->warp_left[self] = round + 1;
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

inline void __syncthreads() {
    emulation::Block& block = *emulation::block;
    const long round = ++block.waits[block.current];
    const auto arrived = [&] {
        for (unsigned t = 0; t < emulation::threads; ++t)
            if (!block.done[t] && block.waits[t] < round) return false;
        return true;
    };
    while (!arrived()) emulation::yield();
}
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
