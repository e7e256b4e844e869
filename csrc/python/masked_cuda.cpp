// The masked operators on a GPU for Python. An arrangement is an opaque object; a plan travels as seven int32 arrays,
// which the caller brings to the device and hands back.
#include "ops/masked_cuda.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>

#include "base/error.h"
#include "python/bind.h"
#include "python/lender.h"

namespace py = pybind11;

namespace edgeprune {
namespace {

using Filter = std::array<int64_t, 9>;

FilterShape filter_of(const Filter& n) { return {n[0], n[1], n[2], {n[3], n[4]}, {n[5], n[6]}, {n[7], n[8]}}; }

MaskedWork work_of(int work) {
    if (work < 0 || work > 2) fail("masked_cuda: work %d; 0 forward, 1 input gradient, 2 weight gradient", work);
    return static_cast<MaskedWork>(work);
}

const int32_t* int32s(Lender& lender, const char* name, py::handle object, Device device, int64_t size = -1) {
    const View tensor = lender.view(name, object);
    if (tensor.dtype != DType::i32 || !tensor.contiguous() || tensor.device != device ||
        (size >= 0 && tensor.size() != size))
        fail("masked_cuda: %s must be contiguous int32 on the %s, got shape %s", name,
             device == Device::cpu ? "CPU" : "GPU", shape_text(tensor).c_str());
    return static_cast<const int32_t*>(tensor.data);
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
    if (work_of(work) == MaskedWork::input_gradient) {
        pattern.t_columns = int32s(lender, "t_columns", columns, Device::cpu);
        pattern.t_order = int32s(lender, "t_order", order, Device::cpu);
        pattern.t_starts =
            int32s(lender, "t_starts", starts, Device::cpu, transposed_rows(f) * (blocks_of(f.outputs, f) + 1));
    } else {
        pattern.columns = int32s(lender, "columns", columns, Device::cpu);
        pattern.starts = int32s(lender, "starts", starts, Device::cpu, f.outputs * (blocks_of(f.inputs, f) + 1));
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
    plan.order = int32s(lender, "order", parts[0], Device::cuda);
    plan.column = int32s(lender, "column", parts[1], Device::cuda, plan.entries);
    plan.segments = reinterpret_cast<const uint32_t*>(
        int32s(lender, "segments", parts[2], Device::cuda, tiles * plan.rows_per_tile));
    plan.tile_first = int32s(lender, "tile_first", parts[3], Device::cuda, tiles + 1);
    plan.tile_block = int32s(lender, "tile_block", parts[4], Device::cuda, tiles);
    plan.tile_row = int32s(lender, "tile_row", parts[5], Device::cuda, tiles);
    plan.row_first = int32s(lender, "row_first", parts[6], Device::cuda);
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
    call.columns = int32s(lender, "columns", columns, Device::cuda);
    call.order = backward ? int32s(lender, "order", order, Device::cuda) : nullptr;
    call.begin = int32s(lender, "starts", starts, Device::cuda, rows * (lines + 1));
    call.end = call.begin + lines * rows;
    call.x = lender.view("x", x), call.weights = lender.view("weights", weights);
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
