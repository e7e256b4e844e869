#include "base/openmp.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace edgeprune {
namespace {

// GOMP_parallel of GCC's ABI, which libgomp, LLVM's libomp and Intel's libiomp5 all have.
using Parallel = void (*)(void (*body)(void*), void* context, unsigned threads, unsigned flags);

// From when the core is loaded: the runtime may have been used, and its threads lost, before we ask for it.
std::atomic<bool> forked{false};
const int kWatching = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

bool allowed() {
    static const bool answer = [] {
        const char* const pool = std::getenv("EDGEPRUNE_POOL");
        return !pool || std::strcmp(pool, "own") != 0;
    }();
    return answer;
}

// torch may be imported after us, so "none" is not remembered.
Parallel find() {
    static std::atomic<Parallel> found{nullptr};
    Parallel parallel = found.load(std::memory_order_relaxed);
    if (!parallel) {
        parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
        found.store(parallel, std::memory_order_relaxed);
    }
    return parallel;
}

}  // namespace

bool openmp_usable() { return kWatching == 0 && !forked.load(std::memory_order_relaxed) && allowed() && find(); }

bool run_on_openmp(int threads, void (*body)(void*), void* context) {
    if (!openmp_usable()) return false;
    find()(body, context, static_cast<unsigned>(threads), 0);
    return true;
}

}  // namespace edgeprune
