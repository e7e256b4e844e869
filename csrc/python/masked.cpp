// The masked operators for Python: DLPack tensors in, results written into tensors the caller made. A pattern is its
// five int32 tensors and the numbers of the filter (outputs, inputs, groups, taps, stride, dilation).
#include "ops/masked.h"

#include <pybind11/stl.h>

#include <array>

#include "python/bind.h"
#include "python/filter.h"
#include "python/lender.h"

namespace py = pybind11;

namespace edgeprune {
namespace {

int64_t py_count_kept(py::handle mask, const Filter& filter) {
    const FilterShape shape = filter_of(filter);
    check_filter("sparsity_pattern", shape);
    Lender lender("sparsity_pattern");
    return count_kept(lender.view("mask", mask), shape.weights());
}

// Shapes of starts and t_starts.
std::array<int64_t, 4> py_pattern_sizes(const Filter& filter) {
    const FilterShape shape = filter_of(filter);
    check_filter("sparsity_pattern", shape);
    return {blocks_of(shape.inputs, shape) + 1, shape.outputs, blocks_of(shape.outputs, shape) + 1,
            transposed_rows(shape)};
}

void py_compile_pattern(const Filter& filter, py::handle mask, py::handle columns, py::handle starts,
                        py::handle t_columns, py::handle t_order, py::handle t_starts) {
    Lender lender("sparsity_pattern");
    const View bits = lender.view("mask", mask);
    const PatternOutputs out{lender.view("columns", columns), lender.view("starts", starts),
                             lender.view("t_columns", t_columns), lender.view("t_order", t_order),
                             lender.view("t_starts", t_starts)};
    const py::gil_scoped_release unlocked;
    compile_pattern(filter_of(filter), bits, out);
}

template <void (*Run)(const MaskedCall&, const MaskedOptions&), bool Transposed>
void py_masked(const Filter& filter, std::array<int64_t, 2> padding, py::handle columns, py::handle starts,
               py::handle order, py::handle x, py::handle weights, py::handle bias, py::handle y, int threads,
               const std::string& variant) {
    const char* const op = "masked";
    Lender lender(op);
    MaskedCall call;
    FilterShape& f = call.pattern.filter;
    f = filter_of(filter);
    check_filter(op, f);
    call.x = lender.view("x", x);
    call.weights = lender.view("weights", weights);
    call.bias = lender.view("bias", bias);
    call.y = lender.view("y", y);
    const int64_t kept = call.pattern.kept = call.weights.size();
    if (Transposed) {
        call.pattern.t_columns = lender.int32s("t_columns", columns, kept);
        call.pattern.t_order = lender.int32s("t_order", order, kept);
        call.pattern.t_starts = lender.int32s("t_starts", starts, transposed_rows(f) * (blocks_of(f.outputs, f) + 1));
    } else {
        call.pattern.columns = lender.int32s("columns", columns, kept);
        call.pattern.starts = lender.int32s("starts", starts, f.outputs * (blocks_of(f.inputs, f) + 1));
    }
    call.padding[0] = padding[0];
    call.padding[1] = padding[1];
    const py::gil_scoped_release unlocked;
    Run(call, {threads, variant});
}

}  // namespace

void bind_masked(py::module_& module) {
    module.def("pattern_kept", &py_count_kept, py::arg("mask"), py::arg("filter"));
    module.def("pattern_sizes", &py_pattern_sizes, py::arg("filter"));
    module.def("pattern_compile", &py_compile_pattern, py::arg("filter"), py::arg("mask"), py::arg("columns"),
               py::arg("starts"), py::arg("t_columns"), py::arg("t_order"), py::arg("t_starts"));
    module.def(
        "multiply_add_peak",
        [](double seconds, const std::string& wanted) {
            const py::gil_scoped_release unlocked;
            return multiply_add_peak(seconds, wanted);
        },
        py::arg("seconds") = 0.1, py::arg("variant") = "");
    const auto threads = py::arg("threads") = 1;
    const auto variant = py::arg("variant") = "";
    module.def("masked_forward", &py_masked<&masked_forward, false>, py::arg("filter"), py::arg("padding"),
               py::arg("columns"), py::arg("starts"), py::arg("order"), py::arg("x"), py::arg("weights"),
               py::arg("bias"), py::arg("y"), threads, variant);
    module.def("masked_input_gradient", &py_masked<&masked_input_gradient, true>, py::arg("filter"), py::arg("padding"),
               py::arg("columns"), py::arg("starts"), py::arg("order"), py::arg("x"), py::arg("weights"),
               py::arg("bias"), py::arg("y"), threads, variant);
    module.def("masked_weight_gradient", &py_masked<&masked_weight_gradient, false>, py::arg("filter"),
               py::arg("padding"), py::arg("columns"), py::arg("starts"), py::arg("order"), py::arg("x"),
               py::arg("weights"), py::arg("bias"), py::arg("y"), threads, variant);
}

}  // namespace edgeprune
