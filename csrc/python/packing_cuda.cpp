// The packing operators on a GPU for Python: DLPack tensors in, results written into tensors the caller made, workspace
// and status too. `stream` is a CUDA stream handle. None stands for no mask, no scales, no residual.
#include "ops/packing_cuda.h"

#include <pybind11/stl.h>

#include <tuple>

#include "python/bind.h"
#include "python/lender.h"

namespace py = pybind11;

namespace edgeprune {
namespace {

// (workspace, status, stream), lent for one call.
using How = std::tuple<py::object, py::object, std::uintptr_t>;

CudaCall call_of(Lender& lender, const How& how) {
    return {lender.view("the workspace", std::get<0>(how)), lender.view("the status", std::get<1>(how)),
            reinterpret_cast<void*>(std::get<2>(how))};
}

void py_select_largest(const py::sequence& xs, int64_t k, const py::sequence& masks, const How& how) {
    Lender lender("select_largest");
    const std::vector<View> from = lender.views("x", xs), to = lender.views("a mask", masks);
    const CudaCall call = call_of(lender, how);
    const py::gil_scoped_release unlocked;
    select_largest_cuda(from, k, to, call);
}

void py_select_above(const py::sequence& xs, uint32_t threshold, const py::sequence& masks, const How& how) {
    Lender lender("select_above");
    const std::vector<View> from = lender.views("x", xs), to = lender.views("a mask", masks);
    const CudaCall call = call_of(lender, how);
    const py::gil_scoped_release unlocked;
    select_above_cuda(from, threshold, to, call);
}

// Each call is (x, residual, mask, values, scales).
void py_pack_many(const std::vector<std::tuple<py::object, py::object, py::object, py::object, py::object>>& list,
                  const std::string& dtype, bool stochastic, uint64_t seed, const How& how) {
    Lender lender("pack");
    std::vector<PackCall> calls;
    for (const auto& [x, residual, mask, values, scales] : list)
        calls.push_back({lender.view("x", x), lender.view("residual", residual), lender.view("mask", mask),
                         lender.view("values", values), lender.view("scales", scales)});
    const Coding coding = coding_named("pack", dtype);
    const CudaCall call = call_of(lender, how);
    const py::gil_scoped_release unlocked;
    pack_many_cuda(calls, coding, stochastic, seed, call);
}

void py_unpack(py::handle values, py::handle scales, py::handle mask, const std::string& dtype, py::handle out,
               const How& how) {
    Lender lender("unpack");
    const View from = lender.view("values", values), by = lender.view("scales", scales);
    const View where = lender.view("mask", mask), to = lender.view("out", out);
    const Coding coding = coding_named("unpack", dtype);
    const CudaCall call = call_of(lender, how);
    const py::gil_scoped_release unlocked;
    unpack_cuda(from, by, where, coding, to, call);
}

void py_accumulate(py::handle total, py::handle weight_sum, py::handle values, py::handle scales, py::handle mask,
                   const std::string& dtype, float weight, const How& how) {
    const char* const op = "accumulate_";
    Lender lender(op);
    const View sum = lender.view("total", total), weights = lender.view("weight_sum", weight_sum);
    const View from = lender.view("values", values), by = lender.view("scales", scales);
    const View where = lender.view("mask", mask);
    const Coding coding = coding_named(op, dtype);
    const CudaCall call = call_of(lender, how);
    const py::gil_scoped_release unlocked;
    accumulate_cuda(sum, weights, from, by, where, coding, weight, call);
}

void py_mask_counts(const py::sequence& masks, const std::vector<int64_t>& sizes, py::handle counts, const How& how) {
    Lender lender("mask_count");
    const std::vector<View> from = lender.views("a mask", masks);
    const View to = lender.view("counts", counts);
    const CudaCall call = call_of(lender, how);
    const py::gil_scoped_release unlocked;
    mask_counts_cuda(from, sizes, to, call);
}

void py_mask_to_indices(py::handle mask, int64_t n, py::handle out, const How& how) {
    Lender lender("mask_to_indices");
    const View from = lender.view("mask", mask), to = lender.view("out", out);
    const CudaCall call = call_of(lender, how);
    const py::gil_scoped_release unlocked;
    mask_to_indices_cuda(from, n, to, call);
}

void py_mask_from_indices(py::handle indices, int64_t n, py::handle out, const How& how) {
    Lender lender("mask_from_indices");
    const View from = lender.view("indices", indices), to = lender.view("out", out);
    const CudaCall call = call_of(lender, how);
    const py::gil_scoped_release unlocked;
    mask_from_indices_cuda(from, n, to, call);
}

void py_check(const std::string& op, const std::vector<uint32_t>& status, const std::string& dtype) {
    packing_cuda_check(op.c_str(), status, coding_named(op.c_str(), dtype));
}

}  // namespace

void bind_packing_cuda(py::module_& module) {
    const auto how = py::arg("how"), xs = py::arg("xs"), masks = py::arg("masks"), mask = py::arg("mask");
    const auto values = py::arg("values"), scales = py::arg("scales"), dtype = py::arg("dtype");
    const auto n = py::arg("n"), out = py::arg("out");
    module.def("packing_cuda_workspace", &packing_cuda_workspace, py::arg("what"), py::arg("sizes"), py::arg("kept"));
    module.def("packing_cuda_check", &py_check, py::arg("op"), py::arg("status"), dtype);
    module.def("select_largest_cuda", &py_select_largest, xs, py::arg("k"), masks, how);
    module.def("select_above_cuda", &py_select_above, xs, py::arg("threshold"), masks, how);
    module.def("pack_many_cuda", &py_pack_many, py::arg("calls"), dtype, py::arg("stochastic"), py::arg("seed"), how);
    module.def("unpack_cuda", &py_unpack, values, scales, mask, dtype, out, how);
    module.def("accumulate_cuda", &py_accumulate, py::arg("total"), py::arg("weight_sum"), values, scales, mask, dtype,
               py::arg("weight"), how);
    module.def("mask_counts_cuda", &py_mask_counts, masks, py::arg("sizes"), py::arg("counts"), how);
    module.def("mask_to_indices_cuda", &py_mask_to_indices, mask, n, out, how);
    module.def("mask_from_indices_cuda", &py_mask_from_indices, py::arg("indices"), n, out, how);
}

}  // namespace edgeprune
