// Max pooling of stride 1 for Python: DLPack tensors in, written in place.
#include "ops/max_pool.h"

#include <pybind11/stl.h>

#include "python/bind.h"
#include "python/dlpack.h"

namespace py = pybind11;

namespace edgeprune {
namespace {

void py_max_pool(py::handle x, py::handle out, py::handle where, int64_t size, int threads,
                 const std::string& variant) {
    const char* const op = "max_pool";
    const Borrowed read = borrow(op, "x", x), values = borrow(op, "out", out), places = borrow(op, "where", where);
    const py::gil_scoped_release unlocked;
    max_pool({read.view, values.view, places.view}, size, {threads, variant});
}

void py_max_pool_backward(py::handle grad, py::handle where, py::handle dx, int64_t size, int threads,
                          const std::string& variant) {
    const char* const op = "max_pool";
    const Borrowed read = borrow(op, "grad", grad), places = borrow(op, "where", where), values = borrow(op, "dx", dx);
    const py::gil_scoped_release unlocked;
    max_pool_backward({read.view, places.view, values.view}, size, {threads, variant});
}

}  // namespace

void bind_max_pool(py::module_& module) {
    module.def("max_pool", &py_max_pool, py::arg("x"), py::arg("out"), py::arg("where"), py::arg("size"),
               py::arg("threads"), py::arg("variant") = "");
    module.def("max_pool_backward", &py_max_pool_backward, py::arg("grad"), py::arg("where"), py::arg("dx"),
               py::arg("size"), py::arg("threads"), py::arg("variant") = "");
}

}  // namespace edgeprune
