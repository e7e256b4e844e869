// What the channels operators accept, in sentences.
#include <cinttypes>
#include <cstdint>

#include "base/error.h"
#include "ops/channels_tasks.h"

namespace edgeprune {
namespace {

// "gather" or "gather of tensor 3".
std::string who(const char* op, int tensor) {
    return tensor < 0 ? op : std::string(op) + " of tensor " + std::to_string(tensor);
}

// `first` is the call's first tensor, on whose device all the others have to be.
void check_float(const std::string& op, const char* name, const View& view, Device device, const View& first) {
    if (view.dtype != DType::f32) fail("%s: %s must be float32", op.c_str(), name);
    if (view.device != device)
        fail("%s: %s is not on the %s, where this call works", op.c_str(), name, device == Device::cpu ? "CPU" : "GPU");
    if (view.device_index != first.device_index)
        fail("%s: %s is on GPU %d and the first tensor on GPU %d; bring them together", op.c_str(), name,
             view.device_index, first.device_index);
}

void check_contiguous(const std::string& op, const char* name, const View& view) {
    if (!view.contiguous()) fail("%s: %s must be contiguous", op.c_str(), name);
}

void check_writable(const std::string& op, const char* name, const View& view) {
    if (view.read_only) fail("%s: %s is read-only and would be written", op.c_str(), name);
    if (view.size() == 0) return;
    for (int d = 0; d < view.dims; ++d)
        if (view.shape[d] > 1 && view.stride[d] == 0)
            fail("%s: %s is an expanded tensor whose elements share memory; clone it first", op.c_str(), name);
}

// Views with gaps may lie between each other's elements: of these only ones that begin together are known to overlap.
bool overlap(const View& a, const View& b) {
    if (!a.size() || !b.size()) return false;
    if (!a.contiguous() || !b.contiguous()) return a.data == b.data;
    const auto begin = [](const View& view) { return reinterpret_cast<uintptr_t>(view.data); };
    const auto end = [&](const View& view) { return begin(view) + static_cast<size_t>(view.size()) * sizeof(float); };
    return begin(a) < end(b) && begin(b) < end(a);
}

// `part` has the shape of `whole` with the kept positions in place of whole dimensions.
void check_index_shapes(const std::string& op, const char* whole_name, const View& whole, const char* part_name,
                        const View& part, const std::vector<Index>& index) {
    if (static_cast<int>(index.size()) != whole.dims)
        fail("%s: %zu indices for %s of shape %s; give one for each dimension, None for all of it", op.c_str(),
             index.size(), whole_name, shape_text(whole).c_str());
    bool fits = part.dims == whole.dims;
    for (int d = 0; fits && d < whole.dims; ++d)
        fits = part.shape[d] == (index[d].data ? index[d].size : whole.shape[d]);
    if (!fits)
        fail("%s: %s of shape %s does not fit the kept positions in %s of shape %s", op.c_str(), part_name,
             shape_text(part).c_str(), whole_name, shape_text(whole).c_str());
}

}  // namespace

void check_index(const char* op, int tensor, int dim, const Index& index, int64_t limit, bool increasing) {
    for (int64_t i = 0; i < index.size; ++i) {
        if (index.data[i] < 0 || index.data[i] >= limit)
            fail("%s: the index of dimension %d holds %" PRId64 ", which is outside 0..%" PRId64,
                 who(op, tensor).c_str(), dim, index.data[i], limit - 1);
        if (increasing && i && index.data[i] <= index.data[i - 1])
            fail("%s: the index of dimension %d must be strictly increasing, but %" PRId64 " follows %" PRId64,
                 who(op, tensor).c_str(), dim, index.data[i], index.data[i - 1]);
    }
}

void check(const GatherCall& call, int tensor, Device device, bool check_values) {
    const std::string op = who("gather", tensor);
    check_float(op, "x", call.x, device, call.x);
    check_float(op, "out", call.out, device, call.x);
    check_contiguous(op, "out", call.out);
    check_writable(op, "out", call.out);
    check_index_shapes(op, "x", call.x, "out", call.out, call.index);
    for (int d = 0; check_values && d < call.x.dims; ++d)
        if (call.index[d].data) check_index("gather", tensor, d, call.index[d], call.x.shape[d], false);
}

void check(const ScatterCall& call, int tensor, Device device, bool check_values) {
    const std::string op = who("scatter_accumulate", tensor);
    check_float(op, "total", call.total, device, call.total);
    check_float(op, "count", call.count, device, call.total);
    check_float(op, "x", call.x, device, call.total);
    check_writable(op, "total", call.total);
    check_writable(op, "count", call.count);
    if (!same_shape(call.total, call.count))
        fail("%s: total has shape %s and count %s; they must be the same", op.c_str(), shape_text(call.total).c_str(),
             shape_text(call.count).c_str());
    if (overlap(call.total, call.count) || overlap(call.total, call.x) || overlap(call.count, call.x))
        fail("%s: total, count and x must not share memory", op.c_str());
    check_index_shapes(op, "total", call.total, "x", call.x, call.index);
    for (int d = 0; check_values && d < call.total.dims; ++d)
        if (call.index[d].data) check_index("scatter_accumulate", tensor, d, call.index[d], call.total.shape[d], true);
}

void check(const NormsCall& call, Device device) {
    check_float("channel_norms", "x", call.x, device, call.x);
    check_float("channel_norms", "out", call.out, device, call.x);
    check_contiguous("channel_norms", "x", call.x);
    check_contiguous("channel_norms", "out", call.out);
    check_writable("channel_norms", "out", call.out);
    if (call.p != 1 && call.p != 2) fail("channel_norms: p is %d; only 1 and 2 are known", call.p);
    if (call.dim < 0 || call.dim >= call.x.dims)
        fail("channel_norms: dim %d is outside 0..%d of x with shape %s", call.dim, call.x.dims - 1,
             shape_text(call.x).c_str());
    if (call.out.dims != 1 || call.out.shape[0] != call.x.shape[call.dim])
        fail("channel_norms: out has shape %s, but x has %" PRId64 " channels", shape_text(call.out).c_str(),
             call.x.shape[call.dim]);
}

void check(const FinishCall& call, int tensor, Device device) {
    const std::string op = who("merge_finish", tensor);
    const View* const views[] = {&call.base, &call.total, &call.count, &call.out};
    const char* const names[] = {"base", "total", "count", "out"};
    for (int i = 0; i < 4; ++i) {
        check_float(op, names[i], *views[i], device, call.base);
        check_contiguous(op, names[i], *views[i]);
        if (!same_shape(*views[i], call.base))
            fail("%s: base has shape %s and %s %s; they must be the same", op.c_str(), shape_text(call.base).c_str(),
                 names[i], shape_text(*views[i]).c_str());
    }
    check_writable(op, "out", call.out);
}

}  // namespace edgeprune
