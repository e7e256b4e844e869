#include "ops/packing.h"

#include <atomic>

#include "base/error.h"
#include "base/threads.h"
#include "ops/packing_plan.h"

namespace edgeprune {
namespace {

long long number(int64_t n) { return static_cast<long long>(n); }

constexpr const char* kNames[] = {"f32", "bf16", "f16", "i8"};
constexpr int64_t kAlone = 64 * 1024;       // elements that are not worth waking anybody for
constexpr int64_t kBeyondCaches = 2 << 20;  // floats of output that leave the caches to others

template <class Run>
void run_pieces(int threads, const std::vector<PackingPiece>& pieces, Run&& run) {
    const bool alone = pieces.size() < 2 || static_cast<int64_t>(pieces.size()) * kPieceElements < kAlone;
    parallel_pieces(alone ? 1 : threads, static_cast<int64_t>(pieces.size()),
                    [&](int64_t i) { run(pieces[static_cast<size_t>(i)]); });
}

// Lengths of values and scales for `kept` elements.
void check_values(const char* op, const View& values, const View& scales, Coding coding, int64_t kept) {
    check_packing_bytes(op, "values", values);
    const int64_t bytes = kept * kItemBytes[static_cast<int>(coding)];
    if (values.size() != bytes)
        fail("%s: %lld bytes of values, but %lld kept elements in %s are %lld", op, number(values.size()), number(kept),
             kNames[static_cast<int>(coding)], number(bytes));
    const bool scaled = given(scales);
    if (scaled) check_packing_floats(op, "scales", scales);
    const int64_t blocks = coding == Coding::i8 ? (kept + kScaleBlock - 1) / kScaleBlock : 0;
    if ((scaled ? scales.size() : 0) != blocks)
        fail("%s: %lld scales, but %lld kept elements in %s need %lld", op, number(scaled ? scales.size() : 0),
             number(kept), kNames[static_cast<int>(coding)], number(blocks));
}

const uint8_t* mask_of(const View& mask) { return static_cast<const uint8_t*>(mask.data); }

PackedValues packed_values(const View& values, const View& scales, const View& mask, Coding coding, int64_t n,
                           int64_t kept) {
    return {static_cast<const uint8_t*>(values.data),
            static_cast<const float*>(scales.data),
            mask_of(mask),
            n,
            kept,
            coding};
}

}  // namespace

Coding coding_named(const char* op, const std::string& name) {
    for (int i = 0; i < 4; ++i)
        if (name == kNames[i]) return static_cast<Coding>(i);
    fail("%s: dtype '%s' is unknown; known are f32, bf16, f16, i8", op, name.c_str());
}

void make_keys(uint64_t seed, uint32_t& key0, uint32_t& key1) {
    uint64_t z = seed + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    key0 = static_cast<uint32_t>(z);
    key1 = static_cast<uint32_t>(z >> 32);
}

void pack_many(const std::vector<PackCall>& calls, Coding coding, bool stochastic, uint64_t seed,
               const PackingOptions& options) {
    const char* const op = "pack";
    const PackingKernels& kernels = packing_kernels(op, options);
    std::vector<PackTask> tasks(calls.size());
    std::vector<PackingPiece> pieces;
    for (size_t i = 0; i < calls.size(); ++i) {
        const PackCall& call = calls[i];
        const bool has_x = given(call.x), has_residual = given(call.residual);
        if (has_x) check_packing_floats(op, "x", call.x);
        if (has_residual) check_packing_floats(op, "residual", call.residual);
        if (has_x && has_residual && call.x.size() != call.residual.size())
            fail("%s: x has %lld elements and residual %lld; they belong to one tensor", op, number(call.x.size()),
                 number(call.residual.size()));
        if (has_residual && call.residual.read_only) fail("%s: residual is read-only", op);
        const int64_t n = has_x ? call.x.size() : call.residual.size();
        check_packing_mask(op, call.mask, n);
        MaskPlan plan = plan_mask(kernels, mask_of(call.mask), n, options.threads, static_cast<int>(i));
        check_values(op, call.values, call.scales, coding, plan.kept);
        if (coding == Coding::i8) {
            align_to_blocks(plan, mask_of(call.mask), n);
            for (const PackingPiece& piece : plan.pieces)
                if (piece.last - piece.first >= kLongestPiece)
                    fail("%s: tensor %zu keeps less than %lld of more than 2^31 elements; int8 needs more, use bf16",
                         op, i, number(kScaleBlock));
        }
        // What a residual is added up in should still be in the second cache afterwards: a joined piece would not be.
        if (!has_residual) join_alike(plan, options.threads);
        pieces.insert(pieces.end(), plan.pieces.begin(), plan.pieces.end());
        tasks[i] = {static_cast<const float*>(call.x.data),
                    static_cast<float*>(call.residual.data),
                    mask_of(call.mask),
                    n,
                    coding,
                    static_cast<uint8_t*>(call.values.data),
                    static_cast<float*>(call.scales.data),
                    plan.kept,
                    stochastic,
                    0,
                    0};
        make_keys(seed + i, tasks[i].key0, tasks[i].key1);
    }
    std::atomic<int> bad{-1};
    run_pieces(options.threads, pieces, [&](const PackingPiece& piece) {
        const PackTask& task = tasks[static_cast<size_t>(piece.tensor)];
        if (!kernels.pack(task, piece.first, piece.last, piece.rank, piece.last_rank)) bad = piece.tensor;
    });
    if (bad >= 0)
        fail("%s: a kept value of tensor %d is not finite in %s; %sfind out where it comes from", op, bad.load(),
             kNames[static_cast<int>(coding)], coding == Coding::f32 ? "" : "use f32, or ");
}

void unpack(const View& values, const View& scales, const View& mask, Coding coding, const View& out,
            const PackingOptions& options) {
    const char* const op = "unpack";
    const PackingKernels& kernels = packing_kernels(op, options);
    check_packing_floats(op, "out", out);
    if (out.read_only) fail("%s: out is read-only", op);
    const int64_t n = out.size();
    check_packing_mask(op, mask, n);
    const MaskPlan plan = plan_mask(kernels, mask_of(mask), n, options.threads);
    check_values(op, values, scales, coding, plan.kept);
    const bool aligned = reinterpret_cast<uintptr_t>(out.data) % 64 == 0;
    const UnpackTask task = {packed_values(values, scales, mask, coding, n, plan.kept), static_cast<float*>(out.data),
                             n >= kBeyondCaches && aligned};
    run_pieces(options.threads, plan.pieces,
               [&](const PackingPiece& piece) { kernels.unpack(task, piece.first, piece.last, piece.rank); });
}

void accumulate(const View& total, const View& weight_sum, const View& values, const View& scales, const View& mask,
                Coding coding, float weight, const PackingOptions& options) {
    const char* const op = "accumulate_";
    const PackingKernels& kernels = packing_kernels(op, options);
    check_packing_floats(op, "total", total);
    check_packing_floats(op, "weight_sum", weight_sum);
    if (total.read_only || weight_sum.read_only) fail("%s: total or weight_sum is read-only", op);
    const int64_t n = total.size();
    if (weight_sum.size() != n)
        fail("%s: total has %lld elements and weight_sum %lld; they belong to one tensor", op, number(n),
             number(weight_sum.size()));
    check_packing_mask(op, mask, n);
    const MaskPlan plan = plan_mask(kernels, mask_of(mask), n, options.threads);
    check_values(op, values, scales, coding, plan.kept);
    const AccumulateTask task = {packed_values(values, scales, mask, coding, n, plan.kept),
                                 static_cast<float*>(total.data), static_cast<float*>(weight_sum.data), weight};
    run_pieces(options.threads, plan.pieces, [&](const PackingPiece& piece) {
        kernels.accumulate(task, piece.first, piece.last, piece.rank, piece.last_rank);
    });
}

void add_many(const std::vector<View>& xs, const std::vector<View>& sums, const PackingOptions& options) {
    const char* const op = "pack_with_feedback_";
    const PackingKernels& kernels = packing_kernels(op, options);
    if (xs.size() != sums.size()) fail("%s: %zu tensors and %zu residuals; give one each", op, xs.size(), sums.size());
    std::vector<int64_t> sizes;
    for (size_t i = 0; i < xs.size(); ++i) {
        check_packing_floats(op, "x", xs[i]);
        check_packing_floats(op, "residual", sums[i]);
        if (xs[i].size() != sums[i].size() || sums[i].read_only)
            fail("%s: x has %lld elements and residual %lld; they belong to one tensor that may be written", op,
                 number(xs[i].size()), number(sums[i].size()));
        sizes.push_back(xs[i].size());
    }
    run_pieces(options.threads, cut(sizes), [&](const PackingPiece& piece) {
        const auto t = static_cast<size_t>(piece.tensor);
        kernels.add(static_cast<const float*>(xs[t].data) + piece.first,
                    static_cast<float*>(sums[t].data) + piece.first, piece.last - piece.first);
    });
}

}  // namespace edgeprune
