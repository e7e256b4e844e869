// The CUDA channels operators, run on the host thread by thread, against the reference.
#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "kernels/channels/channels_cuda.h"
#include "ops/channels_tasks.h"

using namespace edgeprune;

namespace {

using Shape = std::vector<int64_t>;

struct Tensor {
    Shape shape, stride;
    std::vector<float> data;
    size_t from = 0;  // first element: not 0 to be out of line

    Tensor(Shape s, uint64_t seed, bool turned = false, size_t lead = 0) : shape(std::move(s)), from(lead) {
        int64_t size = 1;
        stride.resize(shape.size());
        for (size_t i = 0; i < shape.size(); ++i) {  // turned: the first dimension is the fastest
            const size_t d = turned ? i : shape.size() - 1 - i;
            stride[d] = size;
            size *= shape[d];
        }
        test::Random random(seed);
        data.resize(lead + static_cast<size_t>(size));
        for (float& x : data) x = random.real();
        for (size_t i = 0; i < lead; ++i) data[i] = NAN;
    }
    View view() const {
        View result;
        result.data = const_cast<float*>(data.data()) + from;
        result.dtype = DType::f32;
        result.device = Device::cuda;
        result.dims = static_cast<int>(shape.size());
        for (size_t d = 0; d < shape.size(); ++d) {
            result.shape[d] = shape[d];
            result.stride[d] = stride[d];
        }
        return result;
    }
};

const std::vector<Shape> kShapes = {{},
                                    {1},
                                    {0, 3},
                                    {3, 0},
                                    {7},
                                    {5000},
                                    {5, 15},
                                    {64, 33},
                                    {33, 64},
                                    {300, 40},
                                    {130, 260},
                                    {9000, 2},
                                    {12, 6, 3},
                                    {40, 20, 9},
                                    {16, 64, 1, 1},
                                    {16, 24, 2, 2},
                                    {24, 60, 2, 4},
                                    {2, 3, 2, 3, 2, 2, 2, 3}};

std::vector<int64_t> kept_of(int64_t size, int64_t per_mille, test::Random& random) {
    std::vector<int64_t> kept;
    for (int64_t i = 0; i < size; ++i)
        if (random.below(1000) < per_mille) kept.push_back(i);
    return kept;
}

const int64_t kNothing = 0;

std::vector<Index> index_of(const std::vector<std::vector<int64_t>>& kept, const Shape& shape, unsigned which) {
    std::vector<Index> index(shape.size());
    for (size_t d = 0; d < shape.size(); ++d)
        if (which >> d & 1) index[d] = {kept[d].empty() ? &kNothing : kept[d].data(), (int64_t)kept[d].size()};
    return index;
}

Shape shape_of(const Shape& whole, const std::vector<Index>& index) {
    Shape shape = whole;
    for (size_t d = 0; d < shape.size(); ++d)
        if (index[d].data) shape[d] = index[d].size;
    return shape;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

}  // namespace

TEST(cuda_gather_and_scatter_equal_the_cpu) {
    uint64_t seed = 1;
    for (bool turned : {false, true})
        for (size_t lead : {size_t{0}, size_t{1}})
            for (unsigned which : {0u, 1u, 2u, 3u, 255u}) {
                // Every shape in one call: batches of many.
                std::vector<Tensor> xs, outs, expected, totals, counts, want_totals, want_counts;
                std::vector<std::vector<std::vector<int64_t>>> kept;
                for (const Shape& shape : kShapes) {
                    test::Random random(++seed);
                    xs.emplace_back(shape, seed, turned, lead);
                    totals.emplace_back(shape, seed + 100, turned, lead);
                    counts.emplace_back(shape, seed + 200, false, lead);
                    kept.emplace_back();
                    for (int64_t size : shape) kept.back().push_back(kept_of(size, seed % 3 ? 500 : 950, random));
                    const Shape part = shape_of(shape, index_of(kept.back(), shape, which));
                    outs.emplace_back(part, seed + 300, false, lead);
                    expected.push_back(outs.back());
                }
                want_totals = totals;
                want_counts = counts;
                std::vector<GatherCall> calls, on_gpu;
                std::vector<ScatterCall> adds, adds_on_gpu;
                const auto on_cpu = [](View view) {
                    view.device = Device::cpu;
                    return view;
                };
                for (size_t i = 0; i < xs.size(); ++i) {
                    const std::vector<Index> index = index_of(kept[i], kShapes[i], which);
                    calls.push_back({on_cpu(xs[i].view()), index, on_cpu(expected[i].view())});
                    on_gpu.push_back({xs[i].view(), index, outs[i].view()});
                    adds.push_back({on_cpu(want_totals[i].view()), on_cpu(want_counts[i].view()),
                                    on_cpu(expected[i].view()), index});
                    adds_on_gpu.push_back({totals[i].view(), counts[i].view(), expected[i].view(), index});
                }
                gather_many(calls, {});
                gather_many_cuda(on_gpu, nullptr);
                scatter_accumulate_many(adds, 0.7f, {});
                scatter_accumulate_many_cuda(adds_on_gpu, 0.7f, nullptr);
                for (size_t i = 0; i < xs.size(); ++i) {
                    CHECK(same(outs[i].data, expected[i].data));
                    CHECK(same(totals[i].data, want_totals[i].data));
                    CHECK(same(counts[i].data, want_counts[i].data));
                }
            }
}

TEST(cuda_gather_shows_indices_outside_and_takes_any_order) {
    const Tensor x({40, 50, 3}, 5);
    const std::vector<int64_t> rows = {39, 0, 0, 40, -1, 7, 7, 8, 9, 10}, columns = {49, 2, 50, 2};
    const std::vector<Index> index = {{rows.data(), 10}, {columns.data(), 4}, {}};
    Tensor out({10, 4, 3}, 1);
    gather_many_cuda({{x.view(), index, out.view()}}, nullptr);
    for (int64_t i = 0; i < 10; ++i)
        for (int64_t j = 0; j < 4; ++j)
            for (int64_t k = 0; k < 3; ++k) {
                const float got = out.data[static_cast<size_t>((i * 4 + j) * 3 + k)];
                const int64_t r = rows[static_cast<size_t>(i)], c = columns[static_cast<size_t>(j)];
                if (r < 0 || r >= 40 || c >= 50) {
                    CHECK(std::isnan(got));
                } else {
                    CHECK(got == x.data[static_cast<size_t>((r * 50 + c) * 3 + k)]);
                }
            }
}

TEST(cuda_norms_equal_the_reference_and_themselves) {
    std::vector<Tensor> xs;
    std::vector<int> dims;
    const std::vector<Shape> shapes = {{1},      {7},      {5000},      {3, 40000},  {40000, 3},
                                       {64, 33}, {33, 64}, {40, 20, 9}, {20, 9, 40}, {300, 2, 50},
                                       {0, 3},   {3, 0},   {5, 1, 700}};
    for (const Shape& shape : shapes)
        for (size_t d = 0; d < shape.size(); ++d) {
            xs.emplace_back(shape, xs.size(), false, xs.size() % 2 ? 0 : 1);
            dims.push_back(static_cast<int>(d));
        }
    for (int p : {1, 2}) {
        std::vector<NormsCall> calls;
        std::vector<Tensor> outs;
        for (size_t i = 0; i < xs.size(); ++i) outs.emplace_back(Shape{xs[i].shape[static_cast<size_t>(dims[i])]}, 1);
        for (size_t i = 0; i < xs.size(); ++i) calls.push_back({xs[i].view(), dims[i], p, outs[i].view()});
        std::vector<double> room(static_cast<size_t>(channel_norms_workspace(calls) / 8), NAN);
        View workspace;
        workspace.data = room.data();
        workspace.dtype = DType::u8;
        workspace.device = Device::cuda;
        workspace.dims = 1;
        workspace.shape[0] = static_cast<int64_t>(8 * room.size());
        workspace.stride[0] = 1;
        channel_norms_many_cuda(calls, workspace, nullptr);
        const std::vector<Tensor> before = outs;
        for (size_t i = 0; i < xs.size(); ++i) {
            std::vector<double> expected(outs[i].data.size());
            channels_norms_reference(make_task(calls[i]), expected.data());
            // Sums of n terms in double, rounded to float once.
            for (size_t c = 0; c < expected.size(); ++c)
                CHECK(test::close(outs[i].data[c], expected[c], 6e-8 * expected[c]));
        }
        // One tensor alone: the order of the sums does not depend on its company.
        for (size_t i = 0; i < xs.size(); ++i) {
            channel_norms_many_cuda({calls[i]}, workspace, nullptr);
            CHECK(same(outs[i].data, before[i].data));
        }
    }
}

TEST(cuda_finish_keeps_the_bits_of_the_base) {
    std::vector<Tensor> bases, totals, counts, outs;
    std::vector<FinishCall> calls;
    for (int64_t n : {1, 3, 4, 5, 4095, 4096, 4097, 9001}) {
        const auto seed = static_cast<uint64_t>(n);
        bases.emplace_back(Shape{n}, seed, false, seed % 3);
        totals.emplace_back(Shape{n}, seed + 1);
        counts.emplace_back(Shape{n}, seed + 2);
        outs.emplace_back(Shape{n}, seed + 3);
        for (size_t i = 0; i < counts.back().data.size(); i += 3) counts.back().data[i] = i % 2 ? NAN : 0.0f;
        bases.back().data[bases.back().from] = -0.0f;
    }
    for (size_t i = 0; i < bases.size(); ++i)
        calls.push_back({bases[i].view(), totals[i].view(), counts[i].view(), outs[i].view()});
    merge_finish_many_cuda(calls, nullptr);
    for (size_t i = 0; i < bases.size(); ++i)
        for (size_t j = 0; j < outs[i].data.size(); ++j) {
            const float count = counts[i].data[j];
            const float expected = count > 0.0f ? totals[i].data[j] / count : bases[i].data[bases[i].from + j];
            CHECK(std::memcmp(&expected, &outs[i].data[j], sizeof expected) == 0);
        }
}

TEST(cuda_tasks_with_long_offsets_go_the_plain_way) {
    const Tensor x({40, 50, 3}, 5), part({3, 2, 3}, 6);
    const std::vector<int64_t> rows = {39, 0, 7}, columns = {2, 49};
    Tensor out({3, 2, 3}, 1), expected = out, totals = x, counts({40, 50, 3}, 7), want = totals, want_counts = counts;
    const std::vector<Index> index = {{rows.data(), 3}, {columns.data(), 2}, {}};
    for (int64_t limit : {int64_t{40}, int64_t{1} << 40}) {  // what an index might be decides, not what it is
        AxisLimits limits = {};
        const GatherTask gather = make_task(GatherCall{x.view(), index, out.view()}, false, limits.of);
        limits.of[0] = limit;
        CHECK(channels_gather_cuda(&gather, &limits, 1, nullptr) == 0);
        channels_gather_reference(make_task(GatherCall{x.view(), index, expected.view()}, false, nullptr));
        CHECK(same(out.data, expected.data));
        const ScatterTask scatter =
            make_task(ScatterCall{totals.view(), counts.view(), part.view(), index}, 0.5f, false, limits.of);
        limits.of[0] = limit;
        CHECK(channels_scatter_cuda(&scatter, &limits, 1, nullptr) == 0);
        for (int64_t i = 0; i < 18; ++i) {
            const auto at = static_cast<size_t>(
                (rows[static_cast<size_t>(i / 6)] * 50 + columns[static_cast<size_t>(i / 3 % 2)]) * 3 + i % 3);
            want.data[at] += 0.5f * part.data[static_cast<size_t>(i)];
            want_counts.data[at] += 0.5f;
        }
        CHECK(same(totals.data, want.data) && same(counts.data, want_counts.data));
    }
}

TEST(cuda_more_tensors_than_one_launch_has_room_for) {
    constexpr int64_t kTensors = 1300;
    std::vector<Tensor> xs, outs, totals, counts, norms, merged;
    std::vector<GatherCall> gathers;
    std::vector<ScatterCall> scatters;
    std::vector<NormsCall> measures;
    std::vector<FinishCall> ends;
    const std::vector<int64_t> kept = {0, 2};
    for (int64_t i = 0; i < kTensors; ++i) {
        const Shape shape = {3, 1 + i % 5}, part = {2, 1 + i % 5};
        xs.emplace_back(shape, static_cast<uint64_t>(i));
        outs.emplace_back(part, 1);
        for (std::vector<Tensor>* const each : {&totals, &counts, &merged}) each->emplace_back(shape, 2);
        norms.emplace_back(Shape{3}, 3);
        totals.back().data.assign(totals.back().data.size(), 0.0f);
        counts.back().data = totals.back().data;
    }
    for (size_t i = 0; i < xs.size(); ++i) {
        const std::vector<Index> index = {{kept.data(), 2}, {}};
        gathers.push_back({xs[i].view(), index, outs[i].view()});
        scatters.push_back({totals[i].view(), counts[i].view(), outs[i].view(), index});
        measures.push_back({xs[i].view(), 0, 1, norms[i].view()});
        ends.push_back({xs[i].view(), totals[i].view(), counts[i].view(), merged[i].view()});
    }
    gather_many_cuda(gathers, nullptr);
    scatter_accumulate_many_cuda(scatters, 2.0f, nullptr);
    merge_finish_many_cuda(ends, nullptr);
    std::vector<double> room(static_cast<size_t>(channel_norms_workspace(measures) / 8) + 1, NAN);
    View workspace;
    workspace.data = room.data();
    workspace.dtype = DType::u8;
    workspace.device = Device::cuda;
    workspace.dims = 1;
    workspace.shape[0] = static_cast<int64_t>(8 * room.size());
    workspace.stride[0] = 1;
    channel_norms_many_cuda(measures, workspace, nullptr);
    for (size_t i = 0; i < xs.size(); ++i) {
        CHECK(same(merged[i].data, xs[i].data));  // 2x / 2 where held, the base elsewhere
        double expected[3];
        channels_norms_reference(make_task(measures[i]), expected);
        for (size_t c = 0; c < 3; ++c) CHECK(test::close(norms[i].data[c], expected[c], 6e-8 * expected[c]));
        CHECK(counts[i].data[0] == 2.0f && counts[i].data.back() == 2.0f);
    }
}
