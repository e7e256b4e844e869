// Max pooling of stride 1 for Python: DLPack tensors in, written in place.
#include "ops/max_pool.h"

#include <pybind11/stl.h>

#include "python/bind.h"
#include "python/dlpack.h"

namespace py = pybind11;

namespace edgeprune {
namespace {

// Binds `run` as `name`: three tensors, in the order of Call's members and called `a`, `b` and `c`, and the window.
template <class Call>
void bind(py::module_& module, const char* name, void (*run)(const Call&, int64_t, const CpuOptions&), const char* a,
          const char* b, const char* c) {
    const auto call = [=](py::handle first, py::handle second, py::handle third, int64_t size, int threads,
                          const std::string& variant) {
        const Borrowed one = borrow("max_pool", a, first), two = borrow("max_pool", b, second),
                       three = borrow("max_pool", c, third);
        const py::gil_scoped_release unlocked;
        run({one.view, two.view, three.view}, size, {threads, variant});
    };
    module.def(name, call, py::arg(a), py::arg(b), py::arg(c), py::arg("size"), py::arg("threads"),
               py::arg("variant") = "");
}

}  // namespace

void bind_max_pool(py::module_& module) {
    module.attr("max_pool_max_size") = kPoolMaxSize;
    bind(module, "max_pool", &max_pool, "x", "out", "where");
    bind(module, "max_pool_backward", &max_pool_backward, "grad", "where", "dx");
}

}  // namespace edgeprune
