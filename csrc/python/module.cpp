// The extension edgeprune._core: one function binds each op's file.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/error.h"
#include "base/openmp.h"
#include "base/pages.h"
#include "ops/build_info.h"
#include "python/bind.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, module) {
    module.doc() = "Compiled core of edgeprune. Call it through edgeprune.ops, which knows torch.";
    py::register_exception_translator([](std::exception_ptr raised) {
        try {
            if (raised) std::rethrow_exception(raised);
        } catch (const edgeprune::Error& error) {
            const py::object type = py::module_::import("edgeprune.errors").attr("EdgePruneError");
            PyErr_SetString(type.ptr(), error.what());
        }
    });
    module.def("compiled_variants", &edgeprune::compiled_variants, "Instruction sets compiled in, best first.");
    module.def("present_variants", &edgeprune::present_variants, "Of these, the ones this processor runs.");
    module.def("chosen_variant", &edgeprune::chosen_variant, "The best one that EDGEPRUNE_ISA allows.");
    module.def("openmp_usable", &edgeprune::openmp_usable, "Whether kernels run on the process's OpenMP threads.");
    module.def(
        "ask_large_pages",
        [](uintptr_t address, size_t bytes) { edgeprune::ask_large_pages(reinterpret_cast<void*>(address), bytes); },
        "Advises the system of new memory that will be written whole; base/pages.h.");
    module.def("compiler", &edgeprune::compiler_text);
    module.def("cuda_built", &edgeprune::cuda_built);
    module.def("cuda_text", &edgeprune::cuda_text, "CUDA architectures, or why there are no CUDA kernels.");
    edgeprune::bind_accumulate_exact(module);
    edgeprune::bind_channels(module);
    edgeprune::bind_masked(module);
    edgeprune::bind_masked_blocks(module);
    edgeprune::bind_masked_cuda(module);
    edgeprune::bind_max_pool(module);
    edgeprune::bind_packing(module);
    edgeprune::bind_packing_cuda(module);
}
