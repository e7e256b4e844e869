// The packing operators for Python: DLPack tensors in, results written into tensors the caller made. None stands for no
// mask, no scales, no residual.
#include "ops/packing.h"

#include <pybind11/stl.h>

#include <tuple>

#include "ops/gaps.h"
#include "python/bind.h"
#include "python/lender.h"

namespace py = pybind11;

namespace edgeprune {
namespace {

int64_t py_mask_count(py::handle mask, int threads, const std::string& variant) {
    Lender lender("mask_count");
    const View view = lender.view("mask", mask);
    const py::gil_scoped_release unlocked;
    return mask_count(view, {threads, variant});
}

int64_t py_mask_kept(const std::string& op, py::handle mask, int64_t n, int threads, const std::string& variant) {
    Lender lender(op.c_str());
    const View view = lender.view("mask", mask);
    const py::gil_scoped_release unlocked;
    return mask_kept(op.c_str(), view, n, {threads, variant});
}

void py_mask_to_indices(py::handle mask, int64_t n, py::handle out, int threads, const std::string& variant) {
    Lender lender("mask_to_indices");
    const View view = lender.view("mask", mask), to = lender.view("out", out);
    const py::gil_scoped_release unlocked;
    mask_to_indices(view, n, to, {threads, variant});
}

void py_mask_from_indices(py::handle indices, int64_t n, py::handle out) {
    Lender lender("mask_from_indices");
    const View view = lender.view("indices", indices), to = lender.view("out", out);
    const py::gil_scoped_release unlocked;
    mask_from_indices(view, n, to);
}

void py_select_largest(const py::sequence& xs, int64_t k, const py::sequence& masks, int threads,
                       const std::string& variant) {
    Lender lender("select_largest");
    const std::vector<View> from = lender.views("x", xs), to = lender.views("a mask", masks);
    const py::gil_scoped_release unlocked;
    select_largest(from, k, to, {threads, variant});
}

void py_select_above(const py::sequence& xs, uint32_t threshold, const py::sequence& masks, int threads,
                     const std::string& variant) {
    Lender lender("select_above");
    const std::vector<View> from = lender.views("x", xs), to = lender.views("a mask", masks);
    const py::gil_scoped_release unlocked;
    select_above(from, threshold, to, {threads, variant});
}

// Each call is (x, residual, mask, values, scales).
void py_pack_many(const std::vector<std::tuple<py::object, py::object, py::object, py::object, py::object>>& list,
                  const std::string& dtype, bool stochastic, uint64_t seed, int threads, const std::string& variant) {
    Lender lender("pack");
    std::vector<PackCall> calls;
    for (const auto& [x, residual, mask, values, scales] : list)
        calls.push_back({lender.view("x", x), lender.view("residual", residual), lender.view("mask", mask),
                         lender.view("values", values), lender.view("scales", scales)});
    const Coding coding = coding_named("pack", dtype);
    const py::gil_scoped_release unlocked;
    pack_many(calls, coding, stochastic, seed, {threads, variant});
}

void py_unpack(py::handle values, py::handle scales, py::handle mask, const std::string& dtype, py::handle out,
               int threads, const std::string& variant) {
    Lender lender("unpack");
    const View from = lender.view("values", values), by = lender.view("scales", scales);
    const View where = lender.view("mask", mask), to = lender.view("out", out);
    const Coding coding = coding_named("unpack", dtype);
    const py::gil_scoped_release unlocked;
    unpack(from, by, where, coding, to, {threads, variant});
}

void py_accumulate(py::handle total, py::handle weight_sum, py::handle values, py::handle scales, py::handle mask,
                   const std::string& dtype, float weight, int threads, const std::string& variant) {
    const char* const op = "accumulate_";
    Lender lender(op);
    const View sum = lender.view("total", total), weights = lender.view("weight_sum", weight_sum);
    const View from = lender.view("values", values), by = lender.view("scales", scales);
    const View where = lender.view("mask", mask);
    const Coding coding = coding_named(op, dtype);
    const py::gil_scoped_release unlocked;
    accumulate(sum, weights, from, by, where, coding, weight, {threads, variant});
}

void py_add_many(const py::sequence& xs, const py::sequence& sums, int threads, const std::string& variant) {
    Lender lender("pack_with_feedback_");
    const std::vector<View> from = lender.views("x", xs), to = lender.views("residual", sums);
    const py::gil_scoped_release unlocked;
    add_many(from, to, {threads, variant});
}

std::tuple<int64_t, int, int64_t> py_plan_gaps(py::handle mask, int64_t n, const std::string& variant) {
    Lender lender("encode_gaps");
    const View view = lender.view("mask", mask);
    const py::gil_scoped_release unlocked;
    const GapPlan plan = plan_gaps(view, n, {1, variant});
    return {plan.kept, plan.parameter, plan.bytes};
}

void py_encode_gaps(py::handle mask, int64_t n, std::tuple<int64_t, int, int64_t> plan, py::handle out,
                    const std::string& variant) {
    Lender lender("encode_gaps");
    const View view = lender.view("mask", mask), to = lender.view("out", out);
    const py::gil_scoped_release unlocked;
    encode_gaps(view, n, {std::get<0>(plan), std::get<1>(plan), std::get<2>(plan)}, to, {1, variant});
}

void py_decode_gaps(py::handle data, int64_t count, int64_t n, int64_t parameter, py::handle mask,
                    const std::string& variant) {
    Lender lender("decode_gaps");
    const View from = lender.view("data", data), to = lender.view("mask", mask);
    const py::gil_scoped_release unlocked;
    decode_gaps(from, count, n, parameter, to, {1, variant});
}

}  // namespace

void bind_packing(py::module_& module) {
    const auto threads = py::arg("threads") = 1;
    const auto variant = py::arg("variant") = "";
    const auto n = py::arg("n"), mask = py::arg("mask"), out = py::arg("out"), masks = py::arg("masks");
    const auto values = py::arg("values"), scales = py::arg("scales"), dtype = py::arg("dtype"), xs = py::arg("xs");
    module.def("mask_count", &py_mask_count, mask, threads, variant);
    module.def("mask_kept", &py_mask_kept, py::arg("op"), mask, n, threads, variant);
    module.def("mask_to_indices", &py_mask_to_indices, mask, n, out, threads, variant);
    module.def("mask_from_indices", &py_mask_from_indices, py::arg("indices"), n, out);
    module.def("select_largest", &py_select_largest, xs, py::arg("k"), masks, threads, variant);
    module.def("select_above", &py_select_above, xs, py::arg("threshold"), masks, threads, variant);
    module.def("pack_many", &py_pack_many, py::arg("calls"), dtype, py::arg("stochastic"), py::arg("seed"), threads,
               variant);
    module.def("unpack", &py_unpack, values, scales, mask, dtype, out, threads, variant);
    module.def("accumulate", &py_accumulate, py::arg("total"), py::arg("weight_sum"), values, scales, mask, dtype,
               py::arg("weight"), threads, variant);
    module.def("add_many", &py_add_many, xs, py::arg("sums"), threads, variant);
    module.def("plan_gaps", &py_plan_gaps, mask, n, variant);
    module.def("encode_gaps", &py_encode_gaps, mask, n, py::arg("plan"), out, variant);
    module.def("decode_gaps", &py_decode_gaps, py::arg("data"), py::arg("count"), n, py::arg("parameter"), mask,
               variant);
}

}  // namespace edgeprune
