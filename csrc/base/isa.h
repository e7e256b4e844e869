// Instruction sets: which are compiled in, which this machine has, which may be used.
#pragma once

#include <string>

namespace edgeprune {

// Lowest first: EDGEPRUNE_ISA names the highest that may be used.
enum class Isa { scalar, neon, avx2, avx512 };

// The one list of compiled variants, best first. It drives the declaration of each op's variants, the choice
// at run time, and the tests; CMakeLists.txt compiles kernels/<op>/<isa>.cpp for each.
#if defined(__x86_64__)
#define EDGEPRUNE_FOR_EACH_ISA(X) X(avx512) X(avx2) X(scalar)
#elif defined(__aarch64__)
#define EDGEPRUNE_FOR_EACH_ISA(X) X(neon) X(scalar)
#else
#define EDGEPRUNE_FOR_EACH_ISA(X) X(scalar)
#endif

const char* isa_name(Isa isa);

// This processor and its operating system run the set.
bool isa_present(Isa isa);

// Present, and not above the ceiling in the environment variable EDGEPRUNE_ISA, which is read once.
// Throws Error when EDGEPRUNE_ISA holds an unknown name.
bool isa_allowed(Isa isa);

// The variant of an op to use: the first of `table` (best first) that is allowed, or the one called `wanted`
// when that is not empty (tests and benchmarks; it may lie above the ceiling, but must be present).
// Kernels is a struct of function pointers with a member `Isa isa`.
[[noreturn]] void fail_no_variant(const char* op, const std::string& wanted);

template <class Kernels, int N>
const Kernels& choose_variant(const char* op, const Kernels* const (&table)[N], const std::string& wanted) {
    for (const Kernels* kernels : table) {
        if (wanted.empty() ? isa_allowed(kernels->isa) : wanted == isa_name(kernels->isa) && isa_present(kernels->isa))
            return *kernels;
    }
    fail_no_variant(op, wanted);
}

}  // namespace edgeprune
