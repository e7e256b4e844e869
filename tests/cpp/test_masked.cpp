// The masked operators, with the bound and the precautions of test_masked_kernels.cpp.
#include <cstring>

#include "base/error.h"
#include "check.h"
#include "masked_values.h"
#include "ops/build_info.h"
#include "ops/masked.h"
#include "views.h"

using namespace edgeprune;
using test::view_of;

namespace {

struct Layer {
    FilterShape filter;
    int64_t padding[2];
    int64_t images, size[2];
    double density;
};

const std::vector<Layer>& layers() {
    static const std::vector<Layer> all = {
        {{5, 7, 1}, {0, 0}, 1, {1, 1}, 0.4},
        {{70, 130, 1}, {0, 0}, 17, {1, 1}, 0.1},
        {{33, 65, 1}, {0, 0}, 65, {1, 1}, 0.2},
        {{3, 2, 1, {3, 3}}, {1, 1}, 2, {5, 6}, 0.5},
        {{9, 10, 1, {3, 3}}, {1, 1}, 9, {4, 4}, 0.3},
        {{4, 17, 1, {3, 3}}, {1, 1}, 1, {9, 33}, 0.2},
        {{6, 4, 2, {3, 2}}, {2, 0}, 7, {6, 7}, 0.5},
        {{12, 12, 12, {3, 3}}, {1, 1}, 8, {7, 7}, 0.7},
        {{5, 6, 1, {3, 3}, {2, 2}}, {1, 1}, 3, {9, 8}, 0.5},
        {{5, 6, 1, {3, 3}, {2, 3}, {2, 1}}, {3, 2}, 6, {9, 11}, 0.5},
        {{4, 6, 1, {1, 1}, {2, 2}}, {0, 0}, 10, {7, 5}, 0.5},
        {{5, 6, 1, {3, 3}}, {1, 1}, 9, {7, 7}, 0.5},                  // lines shorter than a square
        {{5, 6, 1, {3, 3}}, {0, 2}, 8, {9, 14}, 0.5},                 // cropped rows, whole ones
        {{5, 6, 1, {3, 3}, {2, 2}}, {1, 1}, 19, {15, 14}, 0.5},       // pixels in two planes by turns
        {{5, 6, 1, {4, 2}, {1, 2}}, {0, 0}, 8, {11, 19}, 0.5},        // one phase of rows, two of columns
        {{5, 6, 1, {2, 3}, {3, 2}, {1, 2}}, {4, 5}, 8, {8, 9}, 0.5},  // one phase is never read
        {{5, 6, 1, {3, 3}}, {3, 3}, 8, {8, 8}, 0.5},                  // more padding than reach
        {{5, 7, 1}, {0, 0}, 3, {7, 7}, 0.5},       // pixels side by side: tiles of two and three pictures
        {{70, 130, 1}, {0, 0}, 2, {4, 4}, 0.1},    // fewer than a tile
        {{6, 4, 2}, {0, 0}, 9, {16, 16}, 0.5},     // more tiles than threads, parts of a weight gradient
        {{300, 40, 1}, {0, 0}, 17, {1, 17}, 0.2},  // blocks of channels, a row's last pixel alone
        {{8, 9, 1}, {0, 0}, 4, {5, 3}, 0.5},       // too few pixels side by side
        {{3, 3, 1, {5, 1}}, {0, 3}, 8, {5, 1}, 1.0},
        {{3, 3, 1, {3, 3}}, {1, 1}, 4, {4, 4}, 0.0},
    };
    return all;
}

struct Compiled {
    std::vector<uint8_t> bits;
    std::vector<int32_t> columns, starts, t_columns, t_order, t_starts;
    std::vector<int64_t> kept;  // positions in the dense weight
    SparsityPattern pattern;

    Compiled(const FilterShape& f, double density, test::Random& random) {
        bits.assign(static_cast<size_t>((f.weights() + 7) / 8), 0);
        for (int64_t i = 0; i < f.weights(); ++i) {
            if (static_cast<double>(random.below(1000)) >= density * 1000) continue;
            bits[static_cast<size_t>(i / 8)] |= static_cast<uint8_t>(1 << i % 8);
            kept.push_back(i);
        }
        columns.resize(kept.size());
        t_columns = t_order = columns;
        starts.resize(static_cast<size_t>((blocks_of(f.inputs, f) + 1) * f.outputs));
        t_starts.resize(static_cast<size_t>((blocks_of(f.outputs, f) + 1) * transposed_rows(f)));
        compile_pattern(f, view_of(bits),
                        {view_of(columns), view_of(starts), view_of(t_columns), view_of(t_order), view_of(t_starts)});
        pattern = {f,
                   static_cast<int64_t>(kept.size()),
                   columns.data(),
                   starts.data(),
                   t_columns.data(),
                   t_order.data(),
                   t_starts.data()};
    }
};

// Calls visit(compact weight, index in x, index in y) for every product of the layer.
template <class Visit>
void for_each_product(const Layer& layer, const Compiled& compiled, const int64_t* out, Visit visit) {
    const FilterShape& f = layer.filter;
    for (size_t k = 0; k < compiled.kept.size(); ++k) {
        const int64_t at = compiled.kept[k], taps = f.all_taps(), o = at / (f.group_inputs() * taps);
        const int64_t c = at / taps % f.group_inputs() + o / f.group_outputs() * f.group_inputs();
        const int64_t th = at % taps / f.taps[1], tw = at % f.taps[1];
        for (int64_t n = 0; n < layer.images; ++n)
            for (int64_t u = 0; u < out[0]; ++u)
                for (int64_t v = 0; v < out[1]; ++v) {
                    const int64_t i = u * f.stride[0] + th * f.dilation[0] - layer.padding[0];
                    const int64_t j = v * f.stride[1] + tw * f.dilation[1] - layer.padding[1];
                    if (i < 0 || j < 0 || i >= layer.size[0] || j >= layer.size[1]) continue;
                    visit(k, static_cast<size_t>(((n * f.inputs + c) * layer.size[0] + i) * layer.size[1] + j),
                          static_cast<size_t>(((n * f.outputs + o) * out[0] + u) * out[1] + v));
                }
    }
}

struct Sums {
    std::vector<double> value, magnitude, terms;
    explicit Sums(size_t n) : value(n), magnitude(n), terms(n) {}
    void add(size_t i, double product) {
        value[i] += product;
        magnitude[i] += std::fabs(product);
        terms[i] += 1;
    }
    void check(const Floats& got) const {
        for (size_t i = 0; i < got.size(); ++i)
            CHECK(test::close(got[i], value[i], (terms[i] + 1) * kUnit * magnitude[i]));
    }
};

}  // namespace

TEST(masked_layers_match_their_definition) {
    test::Random random(5);
    for (const Layer& layer : layers()) {
        const FilterShape& f = layer.filter;
        Compiled compiled(f, layer.density, random);
        int64_t out[2];
        for (int d = 0; d < 2; ++d)
            out[d] = (layer.size[d] + 2 * layer.padding[d] - (f.taps[d] - 1) * f.dilation[d] - 1) / f.stride[d] + 1;
        Floats x = random_floats(layer.images * f.inputs * layer.size[0] * layer.size[1], random);
        Floats dy = random_floats(layer.images * f.outputs * out[0] * out[1], random);
        Floats w = random_floats(compiled.pattern.kept, random), bias = random_floats(f.outputs, random);
        Sums y_sums(dy.size()), dx_sums(x.size()), dw_sums(w.size());
        for (size_t i = 0; i < dy.size(); ++i)
            y_sums.add(i, bias[i / static_cast<size_t>(out[0] * out[1]) % static_cast<size_t>(f.outputs)]);
        for_each_product(layer, compiled, out, [&](size_t k, size_t i, size_t o) {
            y_sums.add(o, static_cast<double>(w[k]) * x[i]);
            dx_sums.add(i, static_cast<double>(w[k]) * dy[o]);
            dw_sums.add(k, static_cast<double>(dy[o]) * x[i]);
        });
        for (const std::string& variant : present_variants()) {
            Floats first[3];
            for (int threads : {1, 3}) {
                Floats y(dy.size(), kNan), dx(x.size(), kNan), dw(w.size(), kNan);
                MaskedCall call;
                call.pattern = compiled.pattern;
                call.padding[0] = layer.padding[0];
                call.padding[1] = layer.padding[1];
                call.x = view_of(x, {layer.images, f.inputs, layer.size[0], layer.size[1]});
                call.y = view_of(y, {layer.images, f.outputs, out[0], out[1]});
                call.weights = view_of(w);
                call.bias = view_of(bias);
                masked_forward(call, {threads, variant});
                call.y.data = dy.data();
                call.x.data = dx.data();
                call.bias = {};
                masked_input_gradient(call, {threads, variant});
                call.x.data = x.data();
                call.weights = view_of(dw);
                masked_weight_gradient(call, {threads, variant});
                y_sums.check(y);
                dx_sums.check(dx);
                dw_sums.check(dw);
                if (threads == 1) {
                    first[0] = y, first[1] = dx, first[2] = dw;
                } else {  // the same bits whatever the number of threads
                    CHECK(first[0] == y && first[1] == dx && first[2] == dw);
                }
            }
        }
    }
}

TEST(masked_refuses_what_does_not_fit) {
    test::Random random(6);
    const FilterShape filter{4, 3, 1, {3, 3}};
    Compiled compiled(filter, 0.5, random);
    Floats x(2 * 3 * 5 * 5), y(2 * 4 * 3 * 3), w(compiled.kept.size()), bias(4);
    MaskedCall good;
    good.pattern = compiled.pattern;
    good.x = view_of(x, {2, 3, 5, 5});
    good.y = view_of(y, {2, 4, 3, 3});
    good.weights = view_of(w);
    good.bias = view_of(bias);
    masked_forward(good, {});
    const auto refused = [&](const char* word, auto change) {
        MaskedCall call = good;
        change(call);
        std::string said;
        try {
            masked_forward(call, {});
        } catch (const Error& error) {
            said = error.what();
        }
        test::check(said.find(word) != std::string::npos, (word + (": " + said)).c_str(), __FILE__, __LINE__);
    };
    refused("x has shape", [&](MaskedCall& call) { call.x = view_of(x, {2, 2, 5, 5}); });
    refused("y has shape", [&](MaskedCall& call) { call.y = view_of(y, {2, 4, 3, 2}); });
    refused("contiguous", [](MaskedCall& call) { call.x.stride[3] = 2; });
    refused("float32", [](MaskedCall& call) { call.weights.dtype = DType::i64; });
    refused("compact weights", [](MaskedCall& call) { call.weights.shape[0] -= 1; });
    refused("bias has shape", [](MaskedCall& call) { call.bias.shape[0] = 3; });
    refused("smaller than the filter", [&](MaskedCall& call) { call.x = view_of(x, {2, 3, 2, 5}); });
    refused("negative", [](MaskedCall& call) { call.padding[0] = -1; });
    refused("divide", [](MaskedCall& call) { call.pattern.filter.groups = 2; });
    refused("2^31", [](MaskedCall& call) { call.pattern.filter.outputs = int64_t{1} << 40; });

    std::vector<uint8_t> bits(compiled.bits);
    CHECK(count_kept(view_of(bits), filter.weights()) == compiled.pattern.kept);
    for (size_t size : {bits.size() - 1, bits.size() + 1}) {
        std::vector<uint8_t> other(size);
        bool threw = false;
        try {
            count_kept(view_of(other), filter.weights());
        } catch (const Error&) {
            threw = true;
        }
        CHECK(threw);
    }
}
