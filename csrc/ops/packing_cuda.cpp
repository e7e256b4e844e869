// Checks without looking at device memory, rows filled in, the device guarded, kernels launched.
#include "ops/packing_cuda.h"

#include "base/cuda.h"
#include "base/error.h"
#include "kernels/packing/packing_cuda.h"
#include "ops/build_info.h"
#include "ops/packing_plan.h"

namespace edgeprune {

#ifdef EDGEPRUNE_CUDA

namespace {

long long number(int64_t n) { return static_cast<long long>(n); }

constexpr const char* kNames[] = {"f32", "bf16", "f16", "i8"};

// ---- checks ---------------------------------------------------------------------------------------------------------

// All tensors of a call lie on the GPU of its workspace.
class Checker {
  public:
    Checker(const char* op, const CudaCall& how) : op_(op), device_(how.workspace.device_index) {
        bytes("the workspace", how.workspace);
        typed("the status", how.status, DType::i32, "int32");
        if (how.status.size() < kStatusWords) fail("%s: the status has too few words", op_);
    }

    void typed(const char* name, const View& view, DType dtype, const char* said) const {
        if (view.dtype != dtype || view.device != Device::cuda || !view.contiguous())
            fail("%s: %s must be contiguous %s on the GPU", op_, name, said);
        if (view.device_index != device_)
            fail("%s: %s is on GPU %d and other tensors on GPU %d; bring them together", op_, name, view.device_index,
                 device_);
    }
    void floats(const char* name, const View& view) const { typed(name, view, DType::f32, "float32"); }
    void bytes(const char* name, const View& view) const { typed(name, view, DType::u8, "uint8"); }
    void written(const char* name, const View& view) const {
        if (view.read_only) fail("%s: %s is read-only", op_, name);
    }
    void mask(const View& view, int64_t n) const {
        if (!given(view)) return;
        bytes("a mask", view);
        if (view.size() != (n + 7) / 8)
            fail("%s: a mask of %lld elements is %lld bytes, not %lld", op_, number(n), number((n + 7) / 8),
                 number(view.size()));
    }
    // Returns how many elements there are values for.
    int64_t values(const View& values, const View& scales, const View& mask, Coding coding, int64_t n) const {
        const int64_t item = kItemBytes[static_cast<int>(coding)], kept = values.size() / item;
        bytes("values", values);
        if (values.size() % item || kept > n || (!given(mask) && kept != n))
            fail("%s: %lld bytes of values in %s do not fit %s %lld elements", op_, number(values.size()),
                 kNames[static_cast<int>(coding)], given(mask) ? "a mask of" : "all of", number(n));
        const bool scaled = given(scales);
        if (scaled) floats("scales", scales);
        const int64_t blocks = coding == Coding::i8 ? ceil_div(kept, kScaleBlock) : 0;
        if ((scaled ? scales.size() : 0) != blocks)
            fail("%s: %lld scales, but %lld kept elements in %s need %lld", op_, number(scaled ? scales.size() : 0),
                 number(kept), kNames[static_cast<int>(coding)], number(blocks));
        return kept;
    }

  private:
    static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
    const char* op_;
    int device_;
};

// ---- rows -----------------------------------------------------------------------------------------------------------

template <class T>
T* data(const View& view) {
    return static_cast<T*>(view.data);
}

// Places the rows' tiles and blocks one behind the other, and runs `kernels` where there is anything to do.
template <class Kernels>
void run(const char* op, std::vector<PackingRow>& rows, int64_t workspace, const CudaCall& how, Kernels kernels) {
    PackingCuda call = {rows.data(),        static_cast<int>(rows.size()), 0,         0,
                        how.workspace.data, data<uint32_t>(how.status),    how.stream};
    for (PackingRow& row : rows) {
        row.first_tile = call.tiles;
        row.first_block = call.blocks;
        call.tiles += (row.n + kCudaTile - 1) / kCudaTile;
        call.blocks += row.scales ? (row.kept + kScaleBlock - 1) / kScaleBlock : 0;
    }
    if (how.workspace.size() < workspace || reinterpret_cast<uintptr_t>(how.workspace.data) % 16)
        fail("%s: the workspace has %lld bytes; %lld that start at a multiple of 16 are needed", op,
             number(how.workspace.size()), number(workspace));
    if (call.tiles == 0) return;
    const CudaDeviceGuard guard(op, how.workspace.device_index);
    check_cuda(op, kernels(call));
}

std::vector<int64_t> sizes_of(const std::vector<PackingRow>& rows) {
    std::vector<int64_t> sizes;
    for (const PackingRow& row : rows) sizes.push_back(row.n);
    return sizes;
}

std::vector<PackingRow> selection_rows(const char* op, const std::vector<View>& xs, const std::vector<View>& masks,
                                       const CudaCall& how) {
    const Checker checker(op, how);
    if (xs.size() != masks.size()) fail("%s: %zu tensors and %zu masks; give one each", op, xs.size(), masks.size());
    std::vector<PackingRow> rows(xs.size());
    for (size_t i = 0; i < xs.size(); ++i) {
        checker.floats("x", xs[i]);
        checker.mask(masks[i], xs[i].size());
        checker.written("a mask", masks[i]);
        rows[i].x = data<const float>(xs[i]);
        rows[i].mask = data<uint8_t>(masks[i]);
        rows[i].n = xs[i].size();
    }
    return rows;
}

}  // namespace

int64_t packing_cuda_workspace(const std::string& what, const std::vector<int64_t>& sizes,
                               const std::vector<int64_t>& kept) {
    int64_t tiles = 0, blocks = 0;
    for (int64_t n : sizes) tiles += (n + kCudaTile - 1) / kCudaTile;
    for (int64_t k : kept) blocks += (k + kScaleBlock - 1) / kScaleBlock;
    const auto rows = static_cast<int64_t>(sizes.size());
    if (what == "select") return packing_workspace_select(rows, tiles);
    if (what == "pack") return packing_workspace_pack(rows, tiles, blocks);
    return packing_workspace_rows(rows, tiles);
}

void packing_cuda_check(const char* op, const std::vector<uint32_t>& status, Coding coding) {
    const auto tensor = [&](PackingStatus word) { return 0xFFFFFFFFu - status[word]; };
    if (status.size() < kStatusWords) fail("%s: the status has too few words", op);
    if (status[kStatusSpare])
        fail("%s: the mask of tensor %u has bits set beyond its elements; clear them", op, tensor(kStatusSpare));
    if (status[kStatusKept])
        fail("%s: the mask of tensor %u keeps another number of elements than there are values", op,
             tensor(kStatusKept));
    if (status[kStatusNan])
        fail("%s: tensor %u holds NaN, which has no magnitude; find out where it comes from", op, tensor(kStatusNan));
    if (status[kStatusNotFinite])
        fail("%s: a kept value of tensor %u is not finite in %s; %sfind out where it comes from", op,
             tensor(kStatusNotFinite), kNames[static_cast<int>(coding)], coding == Coding::f32 ? "" : "use f32, or ");
    if (status[kStatusIndex]) fail("%s: an index lies outside the tensor", op);
}

// ---- operators ------------------------------------------------------------------------------------------------------

void select_largest_cuda(const std::vector<View>& xs, int64_t k, const std::vector<View>& masks, const CudaCall& how) {
    const char* const op = "select_largest";
    std::vector<PackingRow> rows = selection_rows(op, xs, masks, how);
    int64_t total = 0;
    for (const PackingRow& row : rows) total += row.n;
    if (k < 0 || k > total) fail("%s: k is %lld, which is outside 0..%lld", op, number(k), number(total));
    run(op, rows, packing_cuda_workspace("select", sizes_of(rows), {}), how, [&](const PackingCuda& call) {
        return k ? packing_select_cuda(call, k) : packing_above_cuda(call, kInfinity + 1);  // which only finds NaN
    });
}

void select_above_cuda(const std::vector<View>& xs, uint32_t threshold, const std::vector<View>& masks,
                       const CudaCall& how) {
    const char* const op = "select_above";
    std::vector<PackingRow> rows = selection_rows(op, xs, masks, how);
    run(op, rows, packing_cuda_workspace("rows", sizes_of(rows), {}), how,
        [&](const PackingCuda& call) { return packing_above_cuda(call, threshold); });
}

void pack_many_cuda(const std::vector<PackCall>& calls, Coding coding, bool stochastic, uint64_t seed,
                    const CudaCall& how) {
    const char* const op = "pack";
    const Checker checker(op, how);
    std::vector<PackingRow> rows(calls.size());
    std::vector<int64_t> staged;
    bool straight = true;
    for (size_t i = 0; i < calls.size(); ++i) {
        const PackCall& call = calls[i];
        PackingRow& row = rows[i];
        const bool has_x = given(call.x), has_residual = given(call.residual);
        if (!has_x && !has_residual) fail("%s: tensor %zu is missing", op, i);
        if (has_x) checker.floats("x", call.x);
        if (has_residual) checker.floats("residual", call.residual);
        if (has_x && has_residual && call.x.size() != call.residual.size())
            fail("%s: x has %lld elements and residual %lld; they belong to one tensor", op, number(call.x.size()),
                 number(call.residual.size()));
        checker.written("residual", call.residual);
        row.n = has_x ? call.x.size() : call.residual.size();
        checker.mask(call.mask, row.n);
        row.kept = checker.values(call.values, call.scales, call.mask, coding, row.n);
        checker.written("values", call.values);
        row.x = data<const float>(call.x);
        row.residual = data<float>(call.residual);
        row.mask = given(call.mask) ? data<uint8_t>(call.mask) : nullptr;
        row.values = data<uint8_t>(call.values);
        row.scales = data<float>(call.scales);
        make_keys(seed + i, row.key0, row.key1);
        straight = straight && !given(call.mask) && !has_residual;
        staged.push_back(row.kept);
    }
    if (straight || coding != Coding::i8) staged.clear();
    run(op, rows, packing_cuda_workspace("pack", sizes_of(rows), staged), how,
        [&](const PackingCuda& call) { return packing_pack_cuda(call, coding, stochastic); });
}

void unpack_cuda(const View& values, const View& scales, const View& mask, Coding coding, const View& out,
                 const CudaCall& how) {
    const char* const op = "unpack";
    const Checker checker(op, how);
    checker.floats("out", out);
    checker.written("out", out);
    checker.mask(mask, out.size());
    std::vector<PackingRow> rows(1);
    rows[0].kept = checker.values(values, scales, mask, coding, out.size());
    rows[0].n = out.size();
    rows[0].mask = given(mask) ? data<uint8_t>(mask) : nullptr;
    rows[0].values = data<uint8_t>(values);
    rows[0].scales = data<float>(scales);
    rows[0].out = data<float>(out);
    run(op, rows, packing_cuda_workspace("rows", sizes_of(rows), {}), how,
        [&](const PackingCuda& call) { return packing_unpack_cuda(call, coding); });
}

void accumulate_cuda(const View& total, const View& weight_sum, const View& values, const View& scales,
                     const View& mask, Coding coding, float weight, const CudaCall& how) {
    const char* const op = "accumulate_";
    const Checker checker(op, how);
    checker.floats("total", total);
    checker.floats("weight_sum", weight_sum);
    checker.written("total", total);
    checker.written("weight_sum", weight_sum);
    if (weight_sum.size() != total.size())
        fail("%s: total has %lld elements and weight_sum %lld; they belong to one tensor", op, number(total.size()),
             number(weight_sum.size()));
    checker.mask(mask, total.size());
    std::vector<PackingRow> rows(1);
    rows[0].kept = checker.values(values, scales, mask, coding, total.size());
    rows[0].n = total.size();
    rows[0].mask = given(mask) ? data<uint8_t>(mask) : nullptr;
    rows[0].values = data<uint8_t>(values);
    rows[0].scales = data<float>(scales);
    rows[0].out = data<float>(total);
    rows[0].weight_sum = data<float>(weight_sum);
    run(op, rows, packing_cuda_workspace("rows", sizes_of(rows), {}), how,
        [&](const PackingCuda& call) { return packing_accumulate_cuda(call, coding, weight); });
}

void mask_counts_cuda(const std::vector<View>& masks, const std::vector<int64_t>& sizes, const View& counts,
                      const CudaCall& how) {
    const char* const op = "mask_count";
    const Checker checker(op, how);
    if (masks.size() != sizes.size())
        fail("%s: %zu masks and %zu sizes; give one each", op, masks.size(), sizes.size());
    checker.typed("counts", counts, DType::i64, "int64");
    if (counts.size() != static_cast<int64_t>(masks.size())) fail("%s: counts must hold one number a mask", op);
    std::vector<PackingRow> rows(masks.size());
    for (size_t i = 0; i < masks.size(); ++i) {
        if (sizes[i] < 0) fail("%s: a tensor of %lld elements; give the number of its elements", op, number(sizes[i]));
        checker.mask(masks[i], sizes[i]);
        rows[i].n = sizes[i];
        rows[i].mask = given(masks[i]) ? data<uint8_t>(masks[i]) : nullptr;
    }
    run(op, rows, packing_cuda_workspace("rows", sizes, {}), how,
        [&](const PackingCuda& call) { return packing_count_cuda(call, data<int64_t>(counts)); });
}

void mask_to_indices_cuda(const View& mask, int64_t n, const View& out, const CudaCall& how) {
    const char* const op = "mask_to_indices";
    const Checker checker(op, how);
    if (n < 0) fail("%s: a tensor of %lld elements; give the number of its elements", op, number(n));
    checker.mask(mask, n);
    checker.typed("out", out, DType::i64, "int64");
    std::vector<PackingRow> rows(1);
    rows[0].n = n;
    rows[0].kept = out.size();
    rows[0].mask = given(mask) ? data<uint8_t>(mask) : nullptr;
    run(op, rows, packing_cuda_workspace("rows", {n}, {}), how,
        [&](const PackingCuda& call) { return packing_indices_cuda(call, data<int64_t>(out)); });
}

void mask_from_indices_cuda(const View& indices, int64_t n, const View& out, const CudaCall& how) {
    const char* const op = "mask_from_indices";
    const Checker checker(op, how);
    checker.typed("indices", indices, DType::i64, "int64");
    checker.bytes("out", out);
    if (n < 0) fail("%s: a tensor of %lld elements; give the number of its elements", op, number(n));
    if (indices.dims != 1) fail("%s: indices must be one-dimensional", op);
    if (out.size() != (n + 31) / 32 * 4 || reinterpret_cast<uintptr_t>(out.data) % 4)
        fail("%s: out must be %lld aligned bytes", op, number((n + 31) / 32 * 4));
    if (n == 0 && indices.size()) fail("%s: an index lies outside the tensor", op);
    std::vector<PackingRow> rows(1);
    rows[0].n = n;
    run(op, rows, 0, how, [&](const PackingCuda& call) {
        return packing_from_indices_cuda(call, data<const int64_t>(indices), indices.size(), data<uint32_t>(out));
    });
}

#else

int64_t packing_cuda_workspace(const std::string& what, const std::vector<int64_t>&, const std::vector<int64_t>&) {
    fail_no_cuda(what.c_str());
}
void packing_cuda_check(const char* op, const std::vector<uint32_t>&, Coding) { fail_no_cuda(op); }
void select_largest_cuda(const std::vector<View>&, int64_t, const std::vector<View>&, const CudaCall&) {
    fail_no_cuda("select_largest");
}
void select_above_cuda(const std::vector<View>&, uint32_t, const std::vector<View>&, const CudaCall&) {
    fail_no_cuda("select_above");
}
void pack_many_cuda(const std::vector<PackCall>&, Coding, bool, uint64_t, const CudaCall&) { fail_no_cuda("pack"); }
void unpack_cuda(const View&, const View&, const View&, Coding, const View&, const CudaCall&) {
    fail_no_cuda("unpack");
}
void accumulate_cuda(const View&, const View&, const View&, const View&, const View&, Coding, float, const CudaCall&) {
    fail_no_cuda("accumulate_");
}
void mask_counts_cuda(const std::vector<View>&, const std::vector<int64_t>&, const View&, const CudaCall&) {
    fail_no_cuda("mask_count");
}
void mask_to_indices_cuda(const View&, int64_t, const View&, const CudaCall&) { fail_no_cuda("mask_to_indices"); }
void mask_from_indices_cuda(const View&, int64_t, const View&, const CudaCall&) { fail_no_cuda("mask_from_indices"); }

#endif

}  // namespace edgeprune
