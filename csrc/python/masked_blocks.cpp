// Kept blocks on the matrix units, for Python. The plan is six int32 tensors on the device
// (kernels/masked/cuda_blocks.h).
#include "ops/masked_blocks.h"

#include <pybind11/stl.h>

#include <array>

#include "python/bind.h"
#include "python/filter.h"
#include "python/lender.h"

namespace py = pybind11;

namespace edgeprune {
namespace {

BlocksCall call_of(Lender& lender, const Filter& filter, const std::array<int64_t, 2>& padding,
                   const std::array<int64_t, 4>& x_shape, int block, const std::array<py::object, 6>& plan) {
    BlocksCall call{};
    call.filter = filter_of(filter);
    for (size_t d = 0; d < 2; ++d) call.padding[d] = padding[d];
    for (size_t d = 0; d < 4; ++d) call.x_shape[d] = x_shape[d];
    call.block = block;
    for (size_t i = 0; i < plan.size(); ++i) call.plan[i] = lender.view("the plan", plan[i]);
    return call;
}

void py_run(const Filter& filter, const std::array<int64_t, 2>& padding, const std::array<int64_t, 4>& x_shape,
            int block, const std::array<py::object, 6>& plan, py::handle x, py::handle weights, py::handle bias,
            py::handle y, bool backward, std::uintptr_t stream) {
    Lender lender("masked_blocks");
    BlocksCall call = call_of(lender, filter, padding, x_shape, block, plan);
    call.x = lender.view("x", x), call.weights = lender.view("weights", weights);
    call.bias = lender.view("bias", bias), call.y = lender.view("y", y);
    const py::gil_scoped_release unlocked;
    run_masked_blocks(call, backward, reinterpret_cast<void*>(stream));
}

void py_run_dots(const Filter& filter, const std::array<int64_t, 2>& padding, const std::array<int64_t, 4>& x_shape,
                 int block, const std::array<py::object, 6>& plan, py::handle x, py::handle weights, py::handle y,
                 py::handle partial, int splits, std::uintptr_t stream) {
    Lender lender("masked_blocks");
    BlocksCall call = call_of(lender, filter, padding, x_shape, block, plan);
    call.x = lender.view("x", x), call.weights = lender.view("weights", weights);
    call.y = lender.view("y", y), call.partial = lender.view("partial", partial);
    const py::gil_scoped_release unlocked;
    run_masked_block_dots(call, splits, reinterpret_cast<void*>(stream));
}

}  // namespace

void bind_masked_blocks(py::module_& module) {
    const auto filter = py::arg("filter"), padding = py::arg("padding"), x_shape = py::arg("x_shape");
    const auto block = py::arg("block"), plan = py::arg("plan"), x = py::arg("x"), weights = py::arg("weights");
    module.def("masked_blocks_run", &py_run, filter, padding, x_shape, block, plan, x, weights, py::arg("bias"),
               py::arg("y"), py::arg("backward"), py::arg("stream"));
    module.def("masked_blocks_dots_run", &py_run_dots, filter, padding, x_shape, block, plan, x, weights, py::arg("y"),
               py::arg("partial"), py::arg("splits"), py::arg("stream"));
}

}  // namespace edgeprune
