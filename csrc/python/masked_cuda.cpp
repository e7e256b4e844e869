// The masked operators on a GPU for Python. An arrangement is an opaque object; a plan travels as seven int32 arrays,
// which the caller brings to the device and hands back.
#include "ops/masked_cuda.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>

#include "base/error.h"
#include "python/bind.h"
#include "python/filter.h"
#include "python/lender.h"

namespace py = pybind11;

namespace edgeprune {
namespace {

MaskedWork work_of(int work) {
    if (work < 0 || work > 2) fail("masked_cuda: work %d; 0 forward, 1 input gradient, 2 weight gradient", work);
    return static_cast<MaskedWork>(work);
}

py::array_t<int32_t> array_of(const std::vector<int32_t>& values) {
    return py::array_t<int32_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

Arrangement py_arrange(const Filter& filter, std::array<int64_t, 2> padding, std::array<int64_t, 4> x_shape, int work,
                       int phase, int64_t kept, std::array<int, 2> limits, int channels_per_block) {
    const int64_t pads[2] = {padding[0], padding[1]};
    const int64_t shape[4] = {x_shape[0], x_shape[1], x_shape[2], x_shape[3]};
    return arrange(filter_of(filter), pads, shape, work_of(work), phase, kept, {limits[0], limits[1]},
                   channels_per_block);
}

// order, column, segments, tile_first, tile_block, tile_row, row_first; and the entries of the fullest tile.
py::tuple py_plan(const Filter& filter, py::handle columns, py::handle order, py::handle starts, int work, int phase,
                  int rows_per_tile, int channels_per_block) {
    Lender lender("masked_cuda");
    SparsityPattern pattern;
    pattern.filter = filter_of(filter);
    check_filter("masked_cuda", pattern.filter);
    if (rows_per_tile < 1 || channels_per_block < 1) fail("masked_cuda: a plan needs rows and channels");
    const FilterShape& f = pattern.filter;
    if (phase < 0 || phase >= phases_of(f)) fail("masked_cuda: phase %d of %d", phase, phases_of(f));
    pattern.kept = lender.view("columns", columns).size();
    if (work_of(work) == MaskedWork::input_gradient) {
        pattern.t_columns = lender.int32s("t_columns", columns, -1);
        pattern.t_order = lender.int32s("t_order", order, pattern.kept);
        pattern.t_starts = lender.int32s("t_starts", starts, transposed_rows(f) * (blocks_of(f.outputs, f) + 1));
    } else {
        pattern.columns = lender.int32s("columns", columns, -1);
        pattern.starts = lender.int32s("starts", starts, f.outputs * (blocks_of(f.inputs, f) + 1));
    }
    PlanEntries plan;
    {
        const py::gil_scoped_release unlocked;
        plan = plan_entries(pattern, work_of(work), phase, rows_per_tile, channels_per_block);
    }
    return py::make_tuple(array_of(plan.order), array_of(plan.column), array_of(plan.segments),
                          array_of(plan.tile_first), array_of(plan.tile_block), array_of(plan.tile_row),
                          array_of(plan.row_first), plan.longest);
}

void py_run(const Arrangement& arrangement, const std::array<py::object, 7>& parts, int longest, py::handle x,
            py::handle weights, py::handle bias, py::handle y, py::handle workspace, int work, std::uintptr_t stream) {
    Lender lender("masked_cuda");
    CudaPlan plan{};
    plan.rows_per_tile = kCudaWarps * arrangement.rows_per_thread;
    plan.channels_per_block = arrangement.channels_per_block;
    plan.longest = longest;
    const View order = lender.view("order", parts[0]), blocks = lender.view("tile_block", parts[4]);
    const View rows = lender.view("row_first", parts[6]);
    plan.entries = static_cast<int>(order.size());
    plan.tiles = static_cast<int>(blocks.size());
    plan.row_tiles = static_cast<int>(rows.size()) - 1;
    const int64_t tiles = plan.tiles;
    plan.order = lender.int32s("order", parts[0], -1, Device::cuda);
    plan.column = lender.int32s("column", parts[1], plan.entries, Device::cuda);
    plan.segments = reinterpret_cast<const uint32_t*>(
        lender.int32s("segments", parts[2], tiles * plan.rows_per_tile, Device::cuda));
    plan.tile_first = lender.int32s("tile_first", parts[3], tiles + 1, Device::cuda);
    plan.tile_block = lender.int32s("tile_block", parts[4], tiles, Device::cuda);
    plan.tile_row = lender.int32s("tile_row", parts[5], tiles, Device::cuda);
    plan.row_first = lender.int32s("row_first", parts[6], -1, Device::cuda);
    const MaskedCudaCall call{lender.view("x", x), lender.view("weights", weights), lender.view("bias", bias),
                              lender.view("y", y), lender.view("workspace", workspace)};
    const py::gil_scoped_release unlocked;
    run_masked_cuda(arrangement, plan, call, work_of(work), reinterpret_cast<void*>(stream));
}

void py_run_few(const Filter& filter, py::handle columns, py::handle order, py::handle starts, py::handle x,
                py::handle weights, py::handle bias, py::handle y, int work, std::uintptr_t stream) {
    Lender lender("masked_cuda");
    const FilterShape f = filter_of(filter);
    const bool backward = work_of(work) == MaskedWork::input_gradient;
    const int64_t rows = backward ? f.inputs : f.outputs;
    const int64_t lines = blocks_of(backward ? f.outputs : f.inputs, f);
    if (f.all_taps() != 1 || f.strided()) fail("masked_cuda: this way is for linear layers");
    FewCall call{};
    call.weights = lender.view("weights", weights);
    call.columns = lender.int32s("columns", columns, call.weights.size(), Device::cuda);
    call.order = backward ? lender.int32s("order", order, call.weights.size(), Device::cuda) : nullptr;
    call.begin = lender.int32s("starts", starts, rows * (lines + 1), Device::cuda);
    call.end = call.begin + lines * rows;
    call.x = lender.view("x", x);
    call.bias = lender.view("bias", bias), call.y = lender.view("y", y);
    const py::gil_scoped_release unlocked;
    run_few_cuda(f, call, work_of(work), reinterpret_cast<void*>(stream));
}

}  // namespace

void bind_masked_cuda(py::module_& module) {
    py::class_<Arrangement>(module, "MaskedArrangement")
        .def_readonly("rows_per_thread", &Arrangement::rows_per_thread)
        .def_readonly("positions_per_lane", &Arrangement::positions_per_lane)
        .def_readonly("splits", &Arrangement::splits)
        .def_readonly("channels_per_block", &Arrangement::channels_per_block)
        .def_property_readonly("empty", &Arrangement::empty)
        .def("shared_bytes",
             [](const Arrangement& a, int work, int longest) { return shared_bytes(a, work_of(work), longest); });
    module.attr("CUDA_WARPS") = kCudaWarps;
    module.attr("CUDA_FEW_SAMPLES") = kFewSamples;
    module.def("masked_cuda_limits", [](int device) {
        const CudaLimits limits = cuda_limits(device);
        return std::array<int, 2>{limits.multiprocessors, limits.shared_bytes};
    });
    module.def("masked_cuda_arrange", &py_arrange, py::arg("filter"), py::arg("padding"), py::arg("x_shape"),
               py::arg("work"), py::arg("phase"), py::arg("kept"), py::arg("limits"),
               py::arg("channels_per_block") = 0);
    module.def("masked_cuda_plan", &py_plan, py::arg("filter"), py::arg("columns"), py::arg("order"), py::arg("starts"),
               py::arg("work"), py::arg("phase"), py::arg("rows_per_tile"), py::arg("channels_per_block"));
    module.def("masked_cuda_run", &py_run, py::arg("arrangement"), py::arg("parts"), py::arg("longest"), py::arg("x"),
               py::arg("weights"), py::arg("bias"), py::arg("y"), py::arg("workspace"), py::arg("work"),
               py::arg("stream"));
    module.def("masked_cuda_run_few", &py_run_few, py::arg("filter"), py::arg("columns"), py::arg("order"),
               py::arg("starts"), py::arg("x"), py::arg("weights"), py::arg("bias"), py::arg("y"), py::arg("work"),
               py::arg("stream"));
}

}  // namespace edgeprune
