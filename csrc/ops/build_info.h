// What was compiled into this library, for info() and `edgeprune doctor`.
#pragma once

#include <string>
#include <vector>

namespace edgeprune {

std::vector<std::string> compiled_variants();  // best first
std::vector<std::string> present_variants();   // of these, what this processor runs
std::string chosen_variant();                  // the best one that EDGEPRUNE_ISA allows
std::string compiler_text();                   // "gcc 12.2.0"
bool cuda_built();
std::string cuda_text();  // architectures when built with CUDA, else why not
// Throws: what a call for a GPU meets in a build without CUDA kernels.
[[noreturn]] void fail_no_cuda(const char* op);

}  // namespace edgeprune
