// The CUDA packing operators, run on the host thread by thread, against the CPU's, bit for bit. Buffers are exactly as
// long as they must be; outputs and workspaces start poisoned.
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "check.h"
#include "kernels/packing/packing_cuda.h"
#include "ops/packing_cuda.h"
#include "packing_values.h"
#include "views.h"

using namespace edgeprune;

namespace {

constexpr int64_t kSizes[] = {0, 1, 7, 31, 32, 33, 255, 257, 4095, 4096, 4097, 20000, 70001};

template <class T>
View cpu(const std::vector<T>& x) {
    return test::view_of(x);
}
// As if the vector's memory were a GPU's, from element `from` on.
template <class T>
View gpu(const std::vector<T>& x, size_t from = 0) {
    return test::view_of(x.data() + from, test::kType<T>, {static_cast<int64_t>(x.size() - from)}, Device::cuda);
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

struct alignas(16) Sixteen {
    uint8_t byte[16];
};

// Workspace and status of one call.
struct Room {
    std::vector<Sixteen> memory;
    std::vector<int32_t> status = std::vector<int32_t>(8, 0);
    Room(const char* what, const std::vector<int64_t>& sizes, const std::vector<int64_t>& kept = {}) {
        const int64_t bytes = packing_cuda_workspace(what, sizes, kept);
        Sixteen poison;
        std::memset(poison.byte, 0xC3, sizeof poison.byte);
        memory.assign(static_cast<size_t>((bytes + 15) / 16), poison);
        bytes_ = bytes;
    }
    CudaCall call() const {
        return {test::view_of(memory.data(), DType::u8, {bytes_}, Device::cuda), gpu(status), nullptr};
    }
    uint32_t word(PackingStatus which) const { return static_cast<uint32_t>(status[which]); }
    bool clean() const { return status == std::vector<int32_t>(8, 0); }

  private:
    int64_t bytes_;
};

using test::some_mask;
using test::some_values;

int64_t kept_in(const std::vector<uint8_t>& mask) { return mask_count(cpu(mask), {}); }

}  // namespace

TEST(cuda_selection_equals_the_cpu) {
    const std::vector<std::vector<int64_t>> sets = {{1}, {33}, {4096}, {4097, 0, 5, 12289}, {31, 4095, 70001}};
    for (const auto& sizes : sets)
        for (int kind = 0; kind < 4; ++kind) {  // random, few different magnitudes, all equal, denormals and zeros
            std::vector<std::vector<float>> xs;
            int64_t total = 0;
            for (size_t i = 0; i < sizes.size(); ++i) {
                xs.push_back(some_values(sizes[i], 10 * i + static_cast<uint64_t>(kind)));
                test::Random random(i);
                for (float& x : xs.back()) {
                    if (kind == 1) x = static_cast<float>(random.below(5)) - 2.0f;
                    if (kind == 2) x = random.below(2) ? 1.5f : -1.5f;
                    if (kind == 3) x = random.below(3) ? 1e-44f * static_cast<float>(random.below(40)) : -0.0f;
                }
                total += sizes[i];
            }
            for (int64_t k : {int64_t{0}, int64_t{1}, total / 100, total / 2, total - 1, total}) {
                if (k < 0) continue;
                // The GPU's x starts one float into its memory, so that nothing is aligned.
                std::vector<std::vector<float>> moved;
                std::vector<std::vector<uint8_t>> expected, got;
                std::vector<View> from, want, device, marked;
                for (const auto& x : xs) {
                    moved.push_back(x);
                    moved.back().insert(moved.back().begin(), kind % 2 ? 1 : 4, NAN);
                    expected.emplace_back((x.size() + 7) / 8);
                    got.emplace_back((x.size() + 7) / 8, 0xA5);
                }
                for (size_t i = 0; i < xs.size(); ++i) {
                    from.push_back(cpu(xs[i]));
                    want.push_back(cpu(expected[i]));
                    device.push_back(gpu(moved[i], kind % 2 ? 1 : 4));
                    marked.push_back(gpu(got[i]));
                }
                select_largest(from, k, want, {});
                const Room room("select", sizes);
                select_largest_cuda(device, k, marked, room.call());
                CHECK(room.clean());
                for (size_t i = 0; i < xs.size(); ++i) CHECK(same(got[i], expected[i]));
                const auto threshold = static_cast<uint32_t>(k % 3 ? 0x3F000000 : 0x7F800000);
                select_above(from, threshold, want, {});
                select_above_cuda(device, threshold, marked, room.call());
                for (size_t i = 0; i < xs.size(); ++i) CHECK(same(got[i], expected[i]));
            }
        }
}

TEST(cuda_selection_reports_the_first_tensor_with_nan) {
    std::vector<float> a(5000, 1.0f), b(5000, 2.0f), c(5000, 3.0f);
    b[4999] = c[0] = std::numeric_limits<float>::quiet_NaN();
    std::vector<uint8_t> masks[3] = {std::vector<uint8_t>(625), std::vector<uint8_t>(625), std::vector<uint8_t>(625)};
    for (int64_t k : {0, 10}) {
        const Room room("select", {5000, 5000, 5000});
        select_largest_cuda({gpu(a), gpu(b), gpu(c)}, k, {gpu(masks[0]), gpu(masks[1]), gpu(masks[2])}, room.call());
        CHECK(0xFFFFFFFFu - room.word(kStatusNan) == 1);
    }
}

TEST(cuda_pack_unpack_and_accumulate_equal_the_cpu) {
    for (int64_t n : kSizes)
        for (int share : {0, 4, 300, 1000, -1}) {
            const std::vector<float> x = some_values(n, static_cast<uint64_t>(n + share) + 3);
            const std::vector<float> owed = some_values(n, static_cast<uint64_t>(n) + 5);
            const bool masked = share >= 0;
            const std::vector<uint8_t> mask = some_mask(n, share, static_cast<uint64_t>(n));
            const int64_t kept = masked ? kept_in(mask) : n;
            for (Coding coding : {Coding::f32, Coding::bf16, Coding::f16, Coding::i8})
                for (int kind = 0; kind < 3; ++kind) {  // plain, with a residual, a residual that holds the sum already
                    const bool stochastic = coding == Coding::i8 && n % 2;
                    const auto item = static_cast<size_t>(kItemBytes[static_cast<int>(coding)]);
                    const size_t scales = coding == Coding::i8 ? static_cast<size_t>((kept + 255) / 256) : 0;
                    std::vector<uint8_t> values(static_cast<size_t>(kept) * item, 1), got = values;
                    std::vector<float> by(scales, NAN), got_by = by, residual = owed, got_residual = owed;
                    std::vector<float> moved = x;
                    moved.insert(moved.begin(), 2.0f);
                    PackCall call{kind < 2 ? cpu(x) : View{}, kind ? cpu(residual) : View{},
                                  masked ? cpu(mask) : View{}, cpu(values), scales ? cpu(by) : View{}};
                    bool refused = false;
                    try {
                        pack_many({call}, coding, stochastic, 77, {});
                    } catch (const Error&) {
                        refused = true;
                    }
                    const Room room("pack", {n}, {kept});
                    PackCall on{kind < 2 ? gpu(moved, 1) : View{}, kind ? gpu(got_residual) : View{},
                                masked ? gpu(mask) : View{}, gpu(got), scales ? gpu(got_by) : View{}};
                    pack_many_cuda({on}, coding, stochastic, 77, room.call());
                    CHECK(refused == (room.word(kStatusNotFinite) != 0));
                    CHECK(!room.word(kStatusKept) && !room.word(kStatusSpare));
                    if (refused) continue;
                    CHECK(same(got, values) && same(got_by, by) && same(got_residual, residual));

                    std::vector<float> out(static_cast<size_t>(n), NAN), got_out = out;
                    const View where = masked ? cpu(mask) : View{}, there = masked ? gpu(mask) : View{};
                    const View scaled = scales ? cpu(by) : View{}, scaled_there = scales ? gpu(by) : View{};
                    unpack(cpu(values), scaled, where, coding, cpu(out), {});
                    const Room rows("rows", {n});
                    unpack_cuda(gpu(values), scaled_there, there, coding, gpu(got_out), rows.call());
                    CHECK(rows.clean() && same(out, got_out));
                    std::vector<float> total = owed, weights = x, got_total = owed, got_weights = x;
                    got_total.insert(got_total.begin(), 3.0f);  // not aligned
                    accumulate(cpu(total), cpu(weights), cpu(values), scaled, where, coding, 0.3f, {});
                    accumulate_cuda(gpu(got_total, 1), gpu(got_weights), gpu(values), scaled_there, there, coding, 0.3f,
                                    rows.call());
                    got_total.erase(got_total.begin());
                    CHECK(rows.clean() && same(total, got_total) && same(weights, got_weights));
                }
        }
}

TEST(cuda_converts_every_half_and_floats_of_all_magnitudes) {
    std::vector<uint8_t> every(2 << 16);
    for (uint32_t half = 0; half < 1 << 16; ++half) {
        every[2 * half] = static_cast<uint8_t>(half);
        every[2 * half + 1] = static_cast<uint8_t>(half >> 8);
    }
    std::vector<float> x;
    for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 30011) {
        const auto word = static_cast<uint32_t>(bits);
        x.emplace_back();
        std::memcpy(&x.back(), &word, sizeof word);
    }
    const auto n = static_cast<int64_t>(x.size());
    for (Coding coding : {Coding::f16, Coding::bf16}) {
        std::vector<float> out(1 << 16), got_out(1 << 16);
        unpack(cpu(every), {}, {}, coding, cpu(out), {});
        const Room rows("rows", {1 << 16});
        unpack_cuda(gpu(every), {}, {}, coding, gpu(got_out), rows.call());
        CHECK(same(out, got_out));
        std::vector<uint8_t> values(2 * x.size()), got(2 * x.size());
        pack_many({{cpu(x), {}, {}, cpu(values), {}}}, coding, false, 0, {});
        const Room room("pack", {n});
        pack_many_cuda({{gpu(x), {}, {}, gpu(got), {}}}, coding, false, 0, room.call());
        CHECK(same(values, got));
    }
}

TEST(cuda_packs_many_tensors_at_once) {
    const std::vector<int64_t> sizes = {5000, 0, 1, 9000, 300, 4096};
    std::vector<std::vector<float>> xs, residuals, got_residuals;
    std::vector<std::vector<uint8_t>> masks, values, got;
    std::vector<std::vector<float>> scales, got_scales;
    std::vector<int64_t> kept;
    for (size_t i = 0; i < sizes.size(); ++i) {
        xs.emplace_back();
        test::Random random(i);
        for (int64_t j = 0; j < sizes[i]; ++j) xs.back().push_back(random.real());
        residuals.emplace_back(xs.back().rbegin(), xs.back().rend());
        masks.push_back(some_mask(sizes[i], 400, i));
        kept.push_back(i == 3 ? sizes[i] : kept_in(masks[i]));
        values.emplace_back(kept[i]);
        scales.emplace_back((kept[i] + 255) / 256);
    }
    got = values;
    got_scales = scales;
    got_residuals = residuals;
    std::vector<PackCall> on_cpu, on_gpu;
    for (size_t i = 0; i < sizes.size(); ++i) {
        const bool feedback = i != 4;
        on_cpu.push_back({cpu(xs[i]), feedback ? cpu(residuals[i]) : View{}, i == 3 ? View{} : cpu(masks[i]),
                          cpu(values[i]), cpu(scales[i])});
        on_gpu.push_back({gpu(xs[i]), feedback ? gpu(got_residuals[i]) : View{}, i == 3 ? View{} : gpu(masks[i]),
                          gpu(got[i]), gpu(got_scales[i])});
    }
    pack_many(on_cpu, Coding::i8, true, 5, {});
    const Room room("pack", sizes, kept);
    pack_many_cuda(on_gpu, Coding::i8, true, 5, room.call());
    CHECK(room.clean());
    for (size_t i = 0; i < sizes.size(); ++i) {
        CHECK(same(got[i], values[i]));
        CHECK(same(got_scales[i], scales[i]));
        CHECK(same(got_residuals[i], residuals[i]));
    }
}

TEST(cuda_more_tensors_than_one_launch_has_room_for_in_packing) {
    constexpr size_t kTensors = 700;
    std::vector<std::vector<float>> xs;
    std::vector<std::vector<uint8_t>> expected, got;
    std::vector<View> from, want, device, marked;
    std::vector<int64_t> sizes;
    for (size_t i = 0; i < kTensors; ++i) {
        sizes.push_back(i == 350 ? 9000 : static_cast<int64_t>(i % 11));
        xs.push_back(some_values(sizes.back(), i));
        expected.emplace_back((xs.back().size() + 7) / 8);
        got.push_back(expected.back());
    }
    for (size_t i = 0; i < kTensors; ++i) {
        from.push_back(cpu(xs[i]));
        want.push_back(cpu(expected[i]));
        device.push_back(gpu(xs[i]));
        marked.push_back(gpu(got[i]));
    }
    select_largest(from, 2000, want, {});
    const Room room("select", sizes);
    select_largest_cuda(device, 2000, marked, room.call());
    CHECK(room.clean());
    for (size_t i = 0; i < kTensors; ++i) CHECK(same(got[i], expected[i]));
    std::vector<int64_t> counts(kTensors);
    const Room rows("rows", sizes);
    mask_counts_cuda(marked, sizes, gpu(counts), rows.call());
    int64_t all = 0;
    for (size_t i = 0; i < kTensors; ++i) {
        CHECK(counts[i] == kept_in(got[i]));
        all += counts[i];
    }
    CHECK(all == 2000);
}

TEST(cuda_masks_count_list_and_return) {
    for (int64_t n : kSizes)
        for (int share : {0, 10, 1000}) {
            const std::vector<uint8_t> mask = some_mask(n, share, static_cast<uint64_t>(n));
            const int64_t kept = kept_in(mask);
            std::vector<int64_t> counts(2, -1), where(static_cast<size_t>(kept), -1), got = where;
            const Room room("rows", {n, n});
            mask_counts_cuda({gpu(mask), View{}}, {n, n}, gpu(counts), room.call());
            CHECK(n == 0 || (counts[0] == kept && counts[1] == n));
            mask_to_indices(cpu(mask), n, cpu(where), {});
            mask_to_indices_cuda(gpu(mask), n, gpu(got), room.call());
            CHECK(room.clean() && same(where, got));
            std::vector<uint32_t> again(static_cast<size_t>((n + 31) / 32), 0);
            mask_from_indices_cuda(
                gpu(where), n,
                test::view_of(again.data(), DType::u8, {static_cast<int64_t>(4 * again.size())}, Device::cuda),
                room.call());
            CHECK(room.clean() && (mask.empty() || std::memcmp(again.data(), mask.data(), mask.size()) == 0));
        }
}

TEST(cuda_reports_masks_that_do_not_fit) {
    const std::vector<float> x = some_values(9001, 1);
    std::vector<uint8_t> mask = some_mask(9001, 300, 2);
    const int64_t kept = kept_in(mask);
    for (int64_t room_for : {kept - 1, kept + 1}) {  // values lie exactly in their buffer: sanitizers see a step beyond
        std::vector<uint8_t> values(static_cast<size_t>(4 * room_for));
        std::vector<float> out(9001);
        const Room room("pack", {9001});
        pack_many_cuda({{gpu(x), {}, gpu(mask), gpu(values), {}}}, Coding::f32, false, 0, room.call());
        CHECK(room.word(kStatusKept) == 0xFFFFFFFFu);
        const Room rows("rows", {9001});
        unpack_cuda(gpu(values), {}, gpu(mask), Coding::f32, gpu(out), rows.call());
        CHECK(rows.word(kStatusKept) == 0xFFFFFFFFu);
    }
    mask[1125] |= 128;
    const Room room("rows", {9001});
    std::vector<int64_t> count(1);
    mask_counts_cuda({gpu(mask)}, {9001}, gpu(count), room.call());
    CHECK(room.word(kStatusSpare) == 0xFFFFFFFFu);
    bool said = false;
    try {
        packing_cuda_check("mask_count", {0, 0, 0, room.word(kStatusSpare), 0, 0, 0, 0}, Coding::f32);
    } catch (const Error& error) {
        said = std::strstr(error.what(), "bits set beyond") != nullptr;
    }
    CHECK(said);
}
