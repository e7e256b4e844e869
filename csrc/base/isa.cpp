#include "base/isa.h"

#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace edgeprune {
namespace {

constexpr Isa kAll[] = {Isa::scalar, Isa::neon, Isa::avx2, Isa::avx512};

Isa read_ceiling() {
    const char* wish = std::getenv("EDGEPRUNE_ISA");
    if (!wish || !*wish) return Isa::avx512;
    for (Isa isa : kAll)
        if (std::strcmp(wish, isa_name(isa)) == 0) return isa;
    fail("EDGEPRUNE_ISA is '%s': set it to one of scalar, neon, avx2, avx512, or leave it unset", wish);
}

}  // namespace

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::neon:
            return "neon";
        case Isa::avx2:
            return "avx2";
        case Isa::avx512:
            return "avx512";
        default:
            return "scalar";
    }
}

bool isa_present(Isa isa) {
#if defined(__x86_64__)
    switch (isa) {
        case Isa::scalar:
            return true;
        // These ask the operating system too, whether it saves the wide registers.
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        case Isa::avx512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        default:
            return false;
    }
#elif defined(__aarch64__)
    return isa == Isa::scalar || isa == Isa::neon;  // NEON is part of the base of AArch64
#else
    return isa == Isa::scalar;
#endif
}

bool isa_allowed(Isa isa) {
    static const Isa ceiling = read_ceiling();
    return isa <= ceiling && isa_present(isa);
}

void fail_no_variant(const char* op, const std::string& wanted) {
    if (wanted.empty()) fail("%s: no variant of this operator was compiled for this processor", op);
    fail("%s: no variant '%s' here: it was not compiled, or this processor does not run it", op, wanted.c_str());
}

}  // namespace edgeprune
