// Exact weighted sums for Python: DLPack tensors in, added in place.
#include "ops/accumulate_exact.h"

#include <pybind11/stl.h>

#include "python/bind.h"
#include "python/dlpack.h"

namespace py = pybind11;

namespace edgeprune {
namespace {

void py_accumulate_exact(py::handle words, py::handle mask, py::handle values, double factor, int64_t weight, int bits,
                         int threads, const std::string& variant) {
    const char* const op = "accumulate_exact";
    const Borrowed held = borrow(op, "words", words), read = borrow(op, "values", values);
    ExactCall call{held.view, {}, read.view};
    Borrowed kept;
    if (!mask.is_none()) {
        kept = borrow(op, "mask", mask);
        call.mask = kept.view;
    }
    const py::gil_scoped_release unlocked;
    accumulate_exact(call, factor, weight, bits, {threads, variant});
}

}  // namespace

void bind_accumulate_exact(py::module_& module) {
    module.def("accumulate_exact", &py_accumulate_exact, py::arg("words"), py::arg("mask"), py::arg("values"),
               py::arg("factor"), py::arg("weight"), py::arg("bits"), py::arg("threads"), py::arg("variant") = "");
}

}  // namespace edgeprune
