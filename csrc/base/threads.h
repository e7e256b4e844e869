// Work split over threads: those of the OpenMP runtime that the process has, else a small pool of the core's own
// (docs/decisions/0002-own-thread-pool.md).
#pragma once

#include <cstdint>
#include <type_traits>

namespace edgeprune {

// Calls work(i) once for every i in [0, pieces), on at most `threads` threads, the caller's being one of them, and
// returns when all are done. Pieces are handed out in order as threads become free; no order of execution is promised,
// so pieces must write to different memory. `work` must not throw.
// With one thread, one piece, or the threads in use by another caller (or by us, one level up), the caller does it
// alone. After fork() the child starts with a new, empty pool of ours.
void parallel_pieces(int threads, int64_t pieces, void (*work)(void* context, int64_t piece), void* context);

template <class Work>
void parallel_pieces(int threads, int64_t pieces, Work&& work) {
    using Body = std::remove_reference_t<Work>;
    parallel_pieces(
        threads, pieces, [](void* context, int64_t piece) { (*static_cast<Body*>(context))(piece); },
        const_cast<void*>(static_cast<const void*>(&work)));
}

}  // namespace edgeprune
