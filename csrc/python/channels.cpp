// The channels operators for Python: lists of DLPack tensors in, results written into tensors the caller made.
// Arguments `threads` and `variant` are for the CPU; a `stream` other than None (a CUDA stream handle) sends the
// work there.
#include "ops/channels.h"

#include <pybind11/stl.h>

#include <deque>
#include <optional>

#include "base/error.h"
#include "python/bind.h"
#include "python/dlpack.h"

namespace py = pybind11;

namespace edgeprune {
namespace {

using Stream = std::optional<std::uintptr_t>;

void* stream_handle(const Stream& stream) { return reinterpret_cast<void*>(*stream); }

// Keeps everything borrowed for one call alive, and copies of indices that came with gaps.
class Lender {
  public:
    explicit Lender(const char* op) : op_(op) {}

    View view(const char* name, py::handle object) {
        kept_.push_back(borrow(op_, name, object));
        return kept_.back().view;
    }

    std::vector<Index> indices(py::handle list) {
        const py::sequence sequence = py::reinterpret_borrow<py::sequence>(list);
        std::vector<Index> all;
        all.reserve(sequence.size());
        for (py::handle item : sequence) all.push_back(item.is_none() ? Index{} : index(view("an index", item)));
        return all;
    }

  private:
    Index index(const View& view) {
        if (view.dtype != DType::i64 || view.dims != 1)
            fail("%s: an index must be a one-dimensional int64 tensor, or None", op_);
        static const int64_t nothing = 0;  // an index without positions is still an index, not "all"
        if (view.shape[0] == 0) return {&nothing, 0};
        const auto* data = static_cast<const int64_t*>(view.data);
        if (view.stride[0] == 1 || view.shape[0] == 1) return {data, view.shape[0]};
        if (view.device != Device::cpu) fail("%s: an index on a GPU must be contiguous", op_);
        copies_.emplace_back();
        for (int64_t i = 0; i < view.shape[0]; ++i) copies_.back().push_back(data[i * view.stride[0]]);
        return {copies_.back().data(), view.shape[0]};
    }

    const char* op_;
    std::deque<Borrowed> kept_;
    std::deque<std::vector<int64_t>> copies_;
};

void same_length(const char* op, const py::sequence& a, const py::sequence& b) {
    if (a.size() != b.size()) fail("%s: lists of %zu and %zu tensors; they must be as long", op, a.size(), b.size());
}

void py_gather_many(const py::sequence& xs, const py::sequence& indices, const py::sequence& outs, int threads,
                    const std::string& variant, const Stream& stream) {
    const char* const op = "gather";
    same_length(op, xs, indices);
    same_length(op, xs, outs);
    Lender lender(op);
    std::vector<GatherCall> calls(xs.size());
    for (size_t i = 0; i < calls.size(); ++i)
        calls[i] = {lender.view("x", xs[i]), lender.indices(indices[i]), lender.view("out", outs[i])};
    const py::gil_scoped_release unlocked;
    if (stream) return gather_many_cuda(calls, stream_handle(stream));
    gather_many(calls, {threads, variant});
}

void py_scatter_accumulate_many(const py::sequence& totals, const py::sequence& counts, const py::sequence& xs,
                                const py::sequence& indices, float weight, int threads, const std::string& variant,
                                const Stream& stream) {
    const char* const op = "scatter_accumulate";
    same_length(op, totals, counts);
    same_length(op, totals, xs);
    same_length(op, totals, indices);
    Lender lender(op);
    std::vector<ScatterCall> calls(xs.size());
    for (size_t i = 0; i < calls.size(); ++i)
        calls[i] = {lender.view("total", totals[i]), lender.view("count", counts[i]), lender.view("x", xs[i]),
                    lender.indices(indices[i])};
    const py::gil_scoped_release unlocked;
    if (stream) return scatter_accumulate_many_cuda(calls, weight, stream_handle(stream));
    scatter_accumulate_many(calls, weight, {threads, variant});
}

std::vector<NormsCall> norms_calls(Lender& lender, const py::sequence& xs, const std::vector<int>& dims, int p,
                                   const py::sequence& outs) {
    const char* const op = "channel_norms";
    same_length(op, xs, outs);
    if (dims.size() != xs.size())
        fail("%s: %zu tensors and %zu dims; they must be as many", op, xs.size(), dims.size());
    std::vector<NormsCall> calls;
    for (size_t i = 0; i < dims.size(); ++i)
        calls.push_back({lender.view("x", xs[i]), dims[i], p, lender.view("out", outs[i])});
    return calls;
}

void py_channel_norms_many(const py::sequence& xs, const std::vector<int>& dims, int p, const py::sequence& outs,
                           int threads, const std::string& variant) {
    Lender lender("channel_norms");
    const std::vector<NormsCall> calls = norms_calls(lender, xs, dims, p, outs);
    const py::gil_scoped_release unlocked;
    channel_norms_many(calls, {threads, variant});
}

// Two steps on a GPU: how much room the call needs, and the call. `workspace` None: only the former.
int64_t py_channel_norms_many_cuda(const py::sequence& xs, const std::vector<int>& dims, int p,
                                   const py::sequence& outs, py::handle workspace, std::uintptr_t stream) {
    Lender lender("channel_norms");
    const std::vector<NormsCall> calls = norms_calls(lender, xs, dims, p, outs);
    if (workspace.is_none()) return channel_norms_workspace(calls);
    const View room = lender.view("the workspace", workspace);
    const py::gil_scoped_release unlocked;
    channel_norms_many_cuda(calls, room, reinterpret_cast<void*>(stream));
    return room.size();
}

void py_merge_finish_many(const py::sequence& bases, const py::sequence& totals, const py::sequence& counts,
                          const py::sequence& outs, int threads, const std::string& variant, const Stream& stream) {
    const char* const op = "merge_finish";
    same_length(op, bases, totals);
    same_length(op, bases, counts);
    same_length(op, bases, outs);
    Lender lender(op);
    std::vector<FinishCall> calls(bases.size());
    for (size_t i = 0; i < calls.size(); ++i)
        calls[i] = {lender.view("base", bases[i]), lender.view("total", totals[i]), lender.view("count", counts[i]),
                    lender.view("out", outs[i])};
    const py::gil_scoped_release unlocked;
    if (stream) return merge_finish_many_cuda(calls, stream_handle(stream));
    merge_finish_many(calls, {threads, variant});
}

}  // namespace

void bind_channels(py::module_& module) {
    const auto threads = py::arg("threads") = 1;
    const auto variant = py::arg("variant") = "";
    const auto stream = py::arg("stream") = py::none();
    module.def("gather_many", &py_gather_many, py::arg("xs"), py::arg("indices"), py::arg("outs"), threads, variant,
               stream);
    module.def("scatter_accumulate_many", &py_scatter_accumulate_many, py::arg("totals"), py::arg("counts"),
               py::arg("xs"), py::arg("indices"), py::arg("weight"), threads, variant, stream);
    const auto xs = py::arg("xs"), dims = py::arg("dims"), p = py::arg("p"), outs = py::arg("outs");
    module.def("channel_norms_many", &py_channel_norms_many, xs, dims, p, outs, threads, variant);
    module.def("channel_norms_many_cuda", &py_channel_norms_many_cuda, xs, dims, p, outs, py::arg("workspace"),
               py::arg("stream"));
    module.def("merge_finish_many", &py_merge_finish_many, py::arg("bases"), py::arg("totals"), py::arg("counts"),
               py::arg("outs"), threads, variant, stream);
}

}  // namespace edgeprune
