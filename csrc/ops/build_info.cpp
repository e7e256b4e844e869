#include "ops/build_info.h"

#include "base/error.h"
#include "base/isa.h"

#ifndef EDGEPRUNE_WHY_NO_CUDA
#define EDGEPRUNE_WHY_NO_CUDA "not asked for"
#endif

namespace edgeprune {
namespace {

#define EDGEPRUNE_VALUE(isa) Isa::isa,
constexpr Isa kCompiled[] = {EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_VALUE)};
#undef EDGEPRUNE_VALUE

}  // namespace

std::vector<std::string> compiled_variants() {
    std::vector<std::string> names;
    for (Isa isa : kCompiled) names.emplace_back(isa_name(isa));
    return names;
}

std::vector<std::string> present_variants() {
    std::vector<std::string> names;
    for (Isa isa : kCompiled)
        if (isa_present(isa)) names.emplace_back(isa_name(isa));
    return names;
}

std::string chosen_variant() {
    for (Isa isa : kCompiled)
        if (isa_allowed(isa)) return isa_name(isa);
    fail_no_variant("build_info", "");
}

std::string compiler_text() {
#if defined(__clang__)
    return "clang " __clang_version__;
#else
    return "gcc " __VERSION__;
#endif
}

#ifdef EDGEPRUNE_CUDA
bool cuda_built() { return true; }
std::string cuda_text() { return EDGEPRUNE_CUDA_ARCHS; }
#else
bool cuda_built() { return false; }
std::string cuda_text() { return EDGEPRUNE_WHY_NO_CUDA; }
#endif

void fail_no_cuda(const char* op) {
    fail("%s: this build of edgeprune has no CUDA kernels (%s); move the tensors to the CPU or rebuild with nvcc", op,
         EDGEPRUNE_WHY_NO_CUDA);
}

}  // namespace edgeprune
