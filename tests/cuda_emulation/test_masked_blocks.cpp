// Kept blocks on the matrix units, run on the host, against plain sums in double of the rounded words.
#include <numeric>

#include "base/cuda_mma.h"
#include "check.h"
#include "ops/masked_blocks.h"

using namespace edgeprune;

namespace {

int gpu = 0;  // where the views below lie

View on_gpu(View view) {
    view.device = Device::cuda, view.device_index = gpu, view.dims = 1, view.stride[0] = 1;
    return view;
}

template <bool Bf16>
struct Words {
    std::vector<uint16_t> storage;
    size_t size;
    uint16_t* data;
    explicit Words(size_t n) : storage(n + 8, 0xffff), size(n) {  // NaN: what was not written shows
        data = storage.data() + (16 - reinterpret_cast<uintptr_t>(storage.data()) % 16) % 16 / 2;
    }
    void fill(test::Random& random) {
        for (size_t i = 0; i < size; ++i) data[i] = to_word<Bf16>(random.real());
    }
    double operator[](int64_t i) const { return from_word<Bf16>(data[i]); }
    View view() const {
        View view;
        view.data = data, view.dtype = Bf16 ? DType::bf16 : DType::f16, view.shape[0] = static_cast<int64_t>(size);
        return on_gpu(view);
    }
};

View ints(const std::vector<int32_t>& values) {
    View view;
    view.data = const_cast<int32_t*>(values.data()), view.dtype = DType::i32;
    view.shape[0] = static_cast<int64_t>(values.size());
    return on_gpu(view);
}

View floats(std::vector<float>& values) {
    View view;
    view.data = values.data(), view.dtype = DType::f32, view.shape[0] = static_cast<int64_t>(values.size());
    return on_gpu(view);
}

struct Case {
    int block;
    int64_t samples, inputs, outputs, size[2], taps[2], stride[2], padding[2], dilation[2];
    double density;
    int splits;
};

struct Kept {
    int64_t row, source, tap;
};

// Kept blocks by `row` (or by `source`): what edgeprune/ops/masked_blocks.py makes, words lying block after block.
std::array<std::vector<int32_t>, 6> plan_of(const std::vector<Kept>& kept, bool backward, int64_t rows, int block) {
    std::vector<size_t> order(kept.size());
    std::iota(order.begin(), order.end(), size_t{0});
    const auto row = [&](size_t b) { return backward ? kept[b].source : kept[b].row; };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return row(a) < row(b); });
    std::array<std::vector<int32_t>, 6> plan;
    plan[0].push_back(0);
    size_t next = 0;
    for (int64_t r = 0; r < rows / block; ++r) {
        for (; next < order.size() && row(order[next]) == r; ++next) {
            const size_t b = order[next];
            plan[1].push_back(static_cast<int32_t>(r));
            plan[2].push_back(static_cast<int32_t>(backward ? kept[b].row : kept[b].source));
            plan[3].push_back(static_cast<int32_t>(kept[b].tap));
            plan[4].push_back(static_cast<int32_t>(static_cast<int>(b) * block * block));
            plan[5].push_back(block);
        }
        plan[0].push_back(static_cast<int32_t>(next));
    }
    return plan;
}

template <bool Bf16>
void check_all(const Case& c, uint64_t seed) {
    test::Random random(seed);
    const int64_t taps = c.taps[0] * c.taps[1];
    std::vector<Kept> kept;
    for (int64_t o = 0; o < c.outputs / c.block; ++o)
        for (int64_t i = 0; i < c.inputs / c.block; ++i)
            for (int64_t t = 0; t < taps; ++t)
                if (random.real() * 0.5 + 0.5 < c.density) kept.push_back({o, i, t});
    int64_t out[2];
    for (int d = 0; d < 2; ++d)
        out[d] = (c.size[d] + 2 * c.padding[d] - (c.taps[d] - 1) * c.dilation[d] - 1) / c.stride[d] + 1;
    const int64_t x_pixels = c.samples * c.size[0] * c.size[1], y_pixels = c.samples * out[0] * out[1];
    const auto words = static_cast<size_t>(kept.size()) * static_cast<size_t>(c.block * c.block);
    Words<Bf16> x(static_cast<size_t>(x_pixels * c.inputs)), dy(static_cast<size_t>(y_pixels * c.outputs)), w(words);
    Words<Bf16> y(dy.size), dx(x.size), dw(words);
    x.fill(random), dy.fill(random), w.fill(random);
    std::vector<float> bias(static_cast<size_t>(c.outputs));
    for (float& b : bias) b = random.real();

    std::vector<double> exact_y(y.size), room_y(y.size), exact_dx(x.size), room_dx(x.size), exact_dw(words),
        room_dw(words);
    for (size_t b = 0; b < kept.size(); ++b)
        for (int64_t n = 0; n < c.samples; ++n)
            for (int64_t h = 0; h < out[0]; ++h)
                for (int64_t v = 0; v < out[1]; ++v) {
                    const int64_t ih = h * c.stride[0] - c.padding[0] + kept[b].tap / c.taps[1] * c.dilation[0];
                    const int64_t iw = v * c.stride[1] - c.padding[1] + kept[b].tap % c.taps[1] * c.dilation[1];
                    if (ih < 0 || iw < 0 || ih >= c.size[0] || iw >= c.size[1]) continue;
                    const int64_t to = ((n * out[0] + h) * out[1] + v) * c.outputs + kept[b].row * c.block;
                    const int64_t from = ((n * c.size[0] + ih) * c.size[1] + iw) * c.inputs + kept[b].source * c.block;
                    for (int64_t i = 0; i < c.block; ++i)
                        for (int64_t j = 0; j < c.block; ++j) {
                            const auto at =
                                b * static_cast<size_t>(c.block * c.block) + static_cast<size_t>(i * c.block + j);
                            const auto sy = static_cast<size_t>(to + i), sx = static_cast<size_t>(from + j);
                            const double wv = w[static_cast<int64_t>(at)], xv = x[from + j], dv = dy[to + i];
                            exact_y[sy] += wv * xv, room_y[sy] += std::fabs(wv * xv);
                            exact_dx[sx] += wv * dv, room_dx[sx] += std::fabs(wv * dv);
                            exact_dw[at] += xv * dv, room_dw[at] += std::fabs(xv * dv);
                        }
                }

    BlocksCall call{};
    call.filter.outputs = c.outputs, call.filter.inputs = c.inputs;
    for (int d = 0; d < 2; ++d) {
        call.filter.taps[d] = c.taps[d], call.filter.stride[d] = c.stride[d], call.filter.dilation[d] = c.dilation[d];
        call.padding[d] = c.padding[d], call.x_shape[2 + d] = c.size[d];
    }
    call.x_shape[0] = c.samples, call.x_shape[1] = c.inputs, call.block = c.block;
    const auto with = [&](const std::array<std::vector<int32_t>, 6>& plan) {
        for (size_t i = 0; i < 6; ++i) call.plan[i] = ints(plan[i]);
    };
    const auto close = [](const Words<Bf16>& got, const std::vector<double>& exact, const std::vector<double>& room) {
        const double word = Bf16 ? 0x1p-8 : 0x1p-11;  // the result is rounded to a word
        for (size_t i = 0; i < exact.size(); ++i)
            CHECK(test::close(got[static_cast<int64_t>(i)], exact[i],
                              std::fabs(exact[i]) * word + room[i] * 0x1p-12 + 0x1p-24));
    };
    const auto forward = plan_of(kept, false, c.outputs, c.block), backward = plan_of(kept, true, c.inputs, c.block);
    with(forward);
    call.x = x.view(), call.weights = w.view(), call.y = y.view(), call.bias = floats(bias);
    run_masked_blocks(call, false, nullptr);
    for (size_t i = 0; i < exact_y.size(); ++i) exact_y[i] += bias[i % bias.size()], room_y[i] += 1.0;
    close(y, exact_y, room_y);
    with(backward);
    call.x = dx.view(), call.y = dy.view(), call.bias = {};
    run_masked_blocks(call, true, nullptr);
    close(dx, exact_dx, room_dx);
    with(forward);
    std::vector<float> partial(words * static_cast<size_t>(c.splits));
    call.x = x.view(), call.weights = dw.view(), call.partial = floats(partial);
    run_masked_block_dots(call, c.splits, nullptr);
    close(dw, exact_dw, room_dw);
}

}  // namespace

TEST(masked_blocks_words) {  // the host's conversions are those of the hardware: every word comes back as it was
    for (int word = 0; word < 0x7c00; ++word) CHECK(to_word<false>(from_word<false>(uint16_t(word))) == word);
    for (int word = 0; word < 0x7f80; ++word) CHECK(to_word<true>(from_word<true>(uint16_t(word))) == word);
    CHECK(to_word<false>(1.0f + 0x1p-11f) == 0x3c00 && to_word<false>(1.0f + 0x1.8p-10f) == 0x3c02);
    CHECK(to_word<true>(1.0f + 0x1p-8f) == 0x3f80 && to_word<false>(-65520.0f) == 0xfc00);
}

TEST(masked_blocks_linear) {
    const auto linear = [](int block, int64_t samples, int64_t inputs, int64_t outputs, double density, int splits) {
        return Case{block, samples, inputs, outputs, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, density, splits};
    };
    check_all<false>(linear(64, 130, 192, 128, 0.5, 2), 1);
    check_all<true>(linear(64, 33, 256, 64, 0.6, 1), 2);
    check_all<false>(linear(32, 129, 96, 64, 0.5, 3), 3);
    check_all<true>(linear(32, 1, 160, 32, 1.0, 1), 4);
    check_all<false>(linear(32, 65, 64, 96, 0.3, 1), 5);
    for (gpu = 0; gpu < 2; ++gpu)  // 256 positions a block of threads, where its shared memory allows
        check_all<false>(linear(64, 1600, 64, 128, 0.9, 4), 6);
    gpu = 0;
}

TEST(masked_blocks_conv) {
    check_all<false>({64, 2, 64, 64, {7, 6}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0.4, 2}, 10);
    check_all<true>({32, 3, 64, 32, {7, 5}, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 0.5, 1}, 11);
    check_all<false>({32, 1, 32, 64, {9, 8}, {2, 3}, {2, 1}, {0, 2}, {2, 1}, 0.6, 3}, 12);
    check_all<true>({64, 1, 64, 128, {5, 5}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 0.7, 1}, 13);
}
