// One line for each op that has Python bindings.
#pragma once

#include <pybind11/pybind11.h>

namespace edgeprune {

void bind_accumulate_exact(pybind11::module_& module);
void bind_channels(pybind11::module_& module);
void bind_masked(pybind11::module_& module);
void bind_masked_blocks(pybind11::module_& module);
void bind_masked_cuda(pybind11::module_& module);
void bind_max_pool(pybind11::module_& module);
void bind_packing(pybind11::module_& module);
void bind_packing_cuda(pybind11::module_& module);

}  // namespace edgeprune
