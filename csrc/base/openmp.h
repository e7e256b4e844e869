// The OpenMP runtime that the process has loaded, which is torch's where torch is: its threads spin for a while after
// their work, and are better given ours than left to fight for the cores (docs/decisions/0002-own-thread-pool.md).
// Nothing is linked: the entry point that every OpenMP runtime has for GCC's programs is looked up when first needed.
#pragma once

namespace edgeprune {

// Calls body(context) once on each of `threads` threads, the caller's being one of them (on fewer inside a parallel
// region), and returns when all are done. False, and nothing called: there is no such runtime, the process is a child
// by fork() (whose copy of the runtime has lost its threads), or EDGEPRUNE_POOL=own forbids it. `body` must not throw.
bool run_on_openmp(int threads, void (*body)(void*), void* context);

// Whether run_on_openmp would do it now.
bool openmp_usable();

}  // namespace edgeprune
