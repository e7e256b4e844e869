// The masked kernels of the GPU, run on the host, against plain sums in double.
#include <limits>

#include "check.h"
#include "ops/masked_cuda.h"
#include "views.h"

using namespace edgeprune;

namespace {

struct Case {
    int64_t samples, inputs, outputs, size[2], taps[2], stride[2], padding[2], dilation[2], groups;
    double density;
};

// A layer, its pattern on the "device", and the exact products in double with the sums of their magnitudes.
struct Layer {
    FilterShape filter;
    int64_t out[2];
    std::vector<float> dense, weights, x, dy, bias;
    std::vector<double> y, dx, dw, y_room, dx_room, dw_room;
    std::vector<int32_t> columns, starts, t_columns, t_order, t_starts;
    SparsityPattern pattern;
};

void add_products(const Case& c, Layer& layer) {
    const FilterShape& f = layer.filter;
    const int64_t oh = layer.out[0], ow = layer.out[1], taps = f.all_taps();
    layer.y.assign(static_cast<size_t>(c.samples * f.outputs * oh * ow), 0.0), layer.y_room = layer.y;
    layer.dx.assign(layer.x.size(), 0.0), layer.dx_room = layer.dx;
    layer.dw.assign(layer.weights.size(), 0.0), layer.dw_room = layer.dw;
    for (int64_t o = 0; o < f.outputs; ++o) {
        const int64_t last = layer.starts[static_cast<size_t>(blocks_of(f.inputs, f) * f.outputs + o)];
        for (int64_t k = layer.starts[static_cast<size_t>(o)]; k < last; ++k) {
            const int64_t channel = layer.columns[static_cast<size_t>(k)] / taps;
            const int64_t tap = layer.columns[static_cast<size_t>(k)] % taps;
            const double w = layer.weights[static_cast<size_t>(k)];
            for (int64_t n = 0; n < c.samples; ++n)
                for (int64_t h = 0; h < oh; ++h)
                    for (int64_t v = 0; v < ow; ++v) {
                        const int64_t ih = h * f.stride[0] - c.padding[0] + tap / f.taps[1] * f.dilation[0];
                        const int64_t iw = v * f.stride[1] - c.padding[1] + tap % f.taps[1] * f.dilation[1];
                        if (ih < 0 || iw < 0 || ih >= c.size[0] || iw >= c.size[1]) continue;
                        const auto at_y = static_cast<size_t>(((n * f.outputs + o) * oh + h) * ow + v);
                        const auto at_x =
                            static_cast<size_t>(((n * f.inputs + channel) * c.size[0] + ih) * c.size[1] + iw);
                        const double x = layer.x[at_x], dy = layer.dy[at_y];
                        const auto at_w = static_cast<size_t>(k);
                        layer.y[at_y] += w * x, layer.y_room[at_y] += std::fabs(w * x);
                        layer.dx[at_x] += w * dy, layer.dx_room[at_x] += std::fabs(w * dy);
                        layer.dw[at_w] += x * dy, layer.dw_room[at_w] += std::fabs(x * dy);
                    }
        }
    }
}

Layer make(const Case& c, uint64_t seed) {
    test::Random random(seed);
    Layer layer;
    FilterShape& f = layer.filter;
    f.outputs = c.outputs, f.inputs = c.inputs, f.groups = c.groups;
    for (int d = 0; d < 2; ++d) {
        f.taps[d] = c.taps[d], f.stride[d] = c.stride[d], f.dilation[d] = c.dilation[d];
        layer.out[d] = (c.size[d] + 2 * c.padding[d] - (c.taps[d] - 1) * c.dilation[d] - 1) / c.stride[d] + 1;
    }
    std::vector<uint8_t> mask(static_cast<size_t>((f.weights() + 7) / 8));
    for (int64_t i = 0; i < f.weights(); ++i)
        if (random.real() * 0.5 + 0.5 < c.density) mask[static_cast<size_t>(i / 8)] |= uint8_t(1 << i % 8);
    const View bits = test::view_of(mask);
    const int64_t kept = count_kept(bits, f.weights());
    const auto many = [](int64_t n) { return std::vector<int32_t>(static_cast<size_t>(n)); };
    layer.columns = many(kept), layer.t_columns = many(kept), layer.t_order = many(kept);
    layer.starts = many((blocks_of(f.inputs, f) + 1) * f.outputs);
    layer.t_starts = many((blocks_of(f.outputs, f) + 1) * transposed_rows(f));
    const auto whole = [](std::vector<int32_t>& v) { return test::view_of(v); };
    compile_pattern(f, bits,
                    {whole(layer.columns), whole(layer.starts), whole(layer.t_columns), whole(layer.t_order),
                     whole(layer.t_starts)});
    const auto fill = [&](std::vector<float>& v, int64_t n) {
        v.resize(static_cast<size_t>(n));
        for (float& each : v) each = random.real();
    };
    fill(layer.weights, kept);
    fill(layer.x, c.samples * f.inputs * c.size[0] * c.size[1]);
    fill(layer.dy, c.samples * f.outputs * layer.out[0] * layer.out[1]);
    fill(layer.bias, f.outputs);
    add_products(c, layer);
    layer.pattern = {f,
                     kept,
                     layer.columns.data(),
                     layer.starts.data(),
                     layer.t_columns.data(),
                     layer.t_order.data(),
                     layer.t_starts.data()};
    return layer;
}

std::vector<float> poisoned(size_t size) {
    return std::vector<float>(size + 4, std::numeric_limits<float>::quiet_NaN());  // 4: to start at 16 bytes
}

float* aligned(std::vector<float>& v) {
    return v.data() + (16 - reinterpret_cast<uintptr_t>(v.data()) % 16) % 16 / sizeof(float);
}

View gpu(float* data, int64_t size) { return test::view_of(data, DType::f32, {size}, Device::cuda); }
View gpu(std::vector<float>& values) { return test::view_of(values, Device::cuda); }

// One product through arrange, plan_entries and the kernel; `shared` bytes may be small, so that blocks must be, too.
void run(const Case& c, Layer& layer, MaskedWork work, std::vector<float>& result, int64_t size, int shared,
         int only_rows) {
    const int64_t x_shape[4] = {c.samples, c.inputs, c.size[0], c.size[1]};
    const int64_t padding[2] = {c.padding[0], c.padding[1]};
    const int phases = work == MaskedWork::input_gradient ? phases_of(layer.filter) : 1;
    for (int phase = 0; phase < phases; ++phase) {
        int channels = 0;
        for (;;) {
            Arrangement a =
                arrange(layer.filter, padding, x_shape, work, phase, layer.pattern.kept, {3, shared}, channels);
            if (a.empty()) break;
            CHECK(a.channels_per_block > 0);
            if (a.channels_per_block < 1) return;
            if (only_rows) a.rows_per_thread = only_rows;
            const PlanEntries made =
                plan_entries(layer.pattern, work, phase, kCudaWarps * a.rows_per_thread, a.channels_per_block);
            if (!only_rows && shared_bytes(a, work, made.longest) > shared && a.channels_per_block > 1) {
                channels = std::max(1, a.channels_per_block * 3 / 4);
                continue;
            }
            const CudaPlan plan{made.rows_per_tile,
                                static_cast<int>(made.row_first.size()) - 1,
                                made.channels_per_block,
                                static_cast<int>(made.tile_block.size()),
                                static_cast<int>(made.order.size()),
                                made.longest,
                                made.order.data(),
                                made.column.data(),
                                reinterpret_cast<const uint32_t*>(made.segments.data()),
                                made.tile_first.data(),
                                made.tile_block.data(),
                                made.tile_row.data(),
                                made.row_first.data()};
            std::vector<float> workspace(made.order.size() * static_cast<size_t>(std::max(a.splits, 2)) + 4);
            int64_t words = static_cast<int64_t>(made.order.size()) *
                            (work == MaskedWork::weight_gradient ? (a.splits > 1 ? a.splits : 0) : 2);
            MaskedCudaCall call{gpu(layer.x), gpu(layer.weights), gpu(layer.bias), gpu(layer.dy),
                                gpu(aligned(workspace), words)};
            if (work == MaskedWork::forward) call.y = gpu(aligned(result), size);
            if (work == MaskedWork::input_gradient) call.x = gpu(aligned(result), size), call.bias = {};
            if (work == MaskedWork::weight_gradient) call.weights = gpu(aligned(result), size), call.bias = {};
            run_masked_cuda(a, plan, call, work, nullptr);
            break;
        }
    }
}

void compare(float* got, const std::vector<double>& exact, const std::vector<double>& room, int64_t terms,
             const std::vector<float>* bias, int64_t pixels, int64_t outputs) {
    for (size_t i = 0; i < exact.size(); ++i) {
        const double more = bias ? (*bias)[i / static_cast<size_t>(pixels) % static_cast<size_t>(outputs)] : 0.0;
        const double slack = (room[i] + std::fabs(more)) * static_cast<double>(terms + 1) * 0x1p-23;
        CHECK(test::close(got[i], exact[i] + more, slack));
    }
}

void check_all(const Case& c, uint64_t seed, int shared, int only_rows = 0) {
    Layer layer = make(c, seed);
    const int64_t terms =
        c.inputs * c.taps[0] * c.taps[1] + c.outputs * c.taps[0] * c.taps[1] + c.samples * layer.out[0] * layer.out[1];
    std::vector<float> y = poisoned(layer.y.size()), dx = poisoned(layer.dx.size()), dw = poisoned(layer.dw.size());
    run(c, layer, MaskedWork::forward, y, static_cast<int64_t>(layer.y.size()), shared, only_rows);
    compare(aligned(y), layer.y, layer.y_room, terms, &layer.bias, layer.out[0] * layer.out[1], c.outputs);
    run(c, layer, MaskedWork::input_gradient, dx, static_cast<int64_t>(layer.dx.size()), shared, only_rows);
    compare(aligned(dx), layer.dx, layer.dx_room, terms, nullptr, 1, 1);
    run(c, layer, MaskedWork::weight_gradient, dw, static_cast<int64_t>(layer.dw.size()), shared, only_rows);
    compare(aligned(dw), layer.dw, layer.dw_room, terms, nullptr, 1, 1);
}

Case linear(int64_t samples, int64_t inputs, int64_t outputs, double density) {
    return {samples, inputs, outputs, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1, density};
}

}  // namespace

TEST(masked_cuda_linear) {
    uint64_t seed = 1;
    for (const auto& [samples, inputs, outputs, density] :
         {std::tuple<int64_t, int64_t, int64_t, double>{9, 40, 33, 0.3},
          {127, 20, 5, 0.5},
          {128, 65, 36, 0.2},
          {129, 33, 130, 0.1},
          {31, 300, 64, 1.0},
          {65, 7, 9, 0.0}})
        check_all(linear(samples, inputs, outputs, density), seed++, 100 * 1024);
}

TEST(masked_cuda_conv) {
    uint64_t seed = 10;
    const Case cases[] = {
        {2, 8, 5, {8, 8}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 0.3},
        {3, 5, 7, {9, 7}, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1, 0.4},
        {1, 4, 4, {17, 16}, {5, 2}, {3, 2}, {3, 0}, {1, 2}, 1, 0.5},
        {5, 12, 6, {6, 5}, {2, 3}, {1, 1}, {0, 2}, {1, 1}, 3, 0.5},
        {2, 12, 24, {6, 6}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 12, 0.6},
        {9, 6, 6, {7, 7}, {1, 1}, {2, 1}, {0, 0}, {1, 1}, 1, 0.5},
        {1, 2, 2, {1, 1}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 0.7},
        {1, 3, 3, {5, 140}, {3, 3}, {1, 1}, {1, 1}, {2, 1}, 1, 0.5},
        {40, 3, 4, {2, 3}, {2, 2}, {3, 3}, {1, 2}, {1, 1}, 1, 0.8},
    };
    for (const Case& c : cases) check_all(c, seed++, 100 * 1024);
}

TEST(masked_cuda_small_shared_memory) {  // many blocks of channels, and every number of rows a thread can have
    check_all(linear(130, 200, 40, 0.3), 30, 26 * 1024);
    check_all({2, 16, 9, {8, 8}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 0.4}, 31, 26 * 1024);
    for (const int rows : {4, 8, 16}) {
        check_all(linear(50, 30, 150, 0.3), 32, 100 * 1024, rows);
        check_all({2, 6, 70, {6, 6}, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1, 0.4}, 33, 100 * 1024, rows);
    }
}

TEST(masked_cuda_many_rows_and_positions) {  // of a thread: the forms that larger layers take
    uint64_t seed = 50;
    for (const auto& [samples, outputs, size] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 100, 6}, {2, 100, 6}, {1, 256, 6}, {4, 100, 6}})
        check_all({samples, 3, outputs, {size, size}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 0.1}, seed++, 100 * 1024);
    check_all(linear(200, 3, 100, 0.1), seed++, 100 * 1024);
}

TEST(masked_cuda_few_samples) {
    for (const int64_t samples : {1, 2, 8}) {
        const Case c = linear(samples, 70, 33, 0.3);
        Layer layer = make(c, 40);
        const FilterShape& f = layer.filter;
        FewCall call{};
        call.columns = layer.columns.data(), call.begin = layer.starts.data();
        call.end = call.begin + blocks_of(f.inputs, f) * f.outputs;
        call.x = gpu(layer.x), call.weights = gpu(layer.weights), call.bias = gpu(layer.bias);
        std::vector<float> y = poisoned(layer.y.size()), dx = poisoned(layer.dx.size()), dw = poisoned(layer.dw.size());
        call.y = gpu(aligned(y), static_cast<int64_t>(layer.y.size()));
        run_few_cuda(f, call, MaskedWork::forward, nullptr);
        compare(aligned(y), layer.y, layer.y_room, 104, &layer.bias, 1, c.outputs);
        call.y = gpu(layer.dy), call.weights = gpu(aligned(dw), static_cast<int64_t>(layer.dw.size()));
        run_few_cuda(f, call, MaskedWork::weight_gradient, nullptr);
        compare(aligned(dw), layer.dw, layer.dw_room, samples, nullptr, 1, 1);
        call.columns = layer.t_columns.data(), call.order = layer.t_order.data(), call.begin = layer.t_starts.data();
        call.end = call.begin + blocks_of(f.outputs, f) * f.inputs;
        call.x = gpu(aligned(dx), static_cast<int64_t>(layer.dx.size())), call.weights = gpu(layer.weights);
        run_few_cuda(f, call, MaskedWork::input_gradient, nullptr);
        compare(aligned(dx), layer.dx, layer.dx_room, 104, nullptr, 1, 1);
    }
}
