// The masked kernels and operators: every variant present against double, within the bound that rounding allows:
// n * 2^-24 * sum of the products' magnitudes, n the number of additions. Buffers that must be written start as NaN;
// dropped weights do not exist; memory behind every buffer is watched by AddressSanitizer.
#include <cstring>
#include <limits>

#include "base/error.h"
#include "check.h"
#include "kernels/masked/masked.h"
#include "ops/build_info.h"
#include "ops/masked.h"

using namespace edgeprune;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kUnit = 1.0 / (1 << 24);

using Floats = std::vector<float>;

Floats random_floats(int64_t n, test::Random& random) {
    Floats data(static_cast<size_t>(n));
    for (float& x : data) x = random.real();
    return data;
}

const MaskedKernels* const kAll[] = {
#define EDGEPRUNE_ENTRY(isa) &masked_##isa,
    EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_ENTRY)
#undef EDGEPRUNE_ENTRY
};

// ---- kernels ------------------------------------------------------------------------------------------------------

// Rows of 0, 1, 2, ... kept weights, so that every remainder occurs; shifts by table and by stride.
struct KernelCase {
    std::vector<int32_t> columns, begin, end, table;
    Floats x, w;
    KeptRows kept{};

    KernelCase(int rows, int chunks, bool by_table, test::Random& random) {
        const int64_t planes = 9, plane = 16 * chunks + 5;
        for (int r = 0; r < rows; ++r) {
            begin.push_back(static_cast<int32_t>(columns.size()));
            for (int i = 0; i < r; ++i) columns.push_back(static_cast<int32_t>(random.below(planes)));
            end.push_back(static_cast<int32_t>(columns.size()));
        }
        for (int64_t p = 0; p < planes; ++p) table.push_back(static_cast<int32_t>((planes - 1 - p) * plane));
        x = random_floats(planes * plane, random);
        w = random_floats(static_cast<int64_t>(columns.size()), random);
        kept.columns = columns.data();
        kept.shift_of = by_table ? table.data() : nullptr;
        kept.column_stride = plane;
        kept.begin = begin.data();
        kept.end = end.data();
        kept.rows = rows;
        kept.x = x.data();
        kept.chunks = chunks;
        for (int c = 0; c < chunks; ++c) kept.chunk[c] = 16 * (chunks - 1 - c) + (c ? 1 : 5);
    }
};

// Weights from the last to the first, and where each of them is.
struct Backwards {
    Floats w;
    std::vector<int32_t> order;
    explicit Backwards(const Floats& weights) : w(weights.rbegin(), weights.rend()) {
        for (size_t k = weights.size(); k-- > 0;) order.push_back(static_cast<int32_t>(k));
    }
};

}  // namespace

TEST(masked_accumulate_adds_rows_of_every_length) {
    test::Random random(1);
    constexpr int rows = 23;
    for (const MaskedKernels* kernels : kAll) {
        if (!isa_present(kernels->isa)) continue;
        for (int chunks = 1; chunks <= kTileChunks; ++chunks) {
            for (int mode = 0; mode < 8; ++mode) {
                KernelCase each(rows, chunks, mode & 1, random);
                const int64_t width = 16 * chunks, stride = width + 3;
                const bool first = mode & 2;
                const Floats bias = random_floats(rows, random);
                Floats y = random_floats(rows * stride, random);
                const Floats before = y;
                if (first)
                    for (int r = 0; r < rows; ++r) std::fill_n(y.begin() + r * stride, width, kNan);
                AccumulateTask task{
                    each.kept, each.w.data(), nullptr, y.data(), stride, first, mode & 4 ? bias.data() : nullptr};
                std::vector<double> expected(static_cast<size_t>(rows * width));
                masked_accumulate_reference(task, expected.data());
                const Backwards turned(each.w);
                if (!(mode & 1) && chunks % 2) {  // the same weights in another order
                    task.w = turned.w.data();
                    task.order = turned.order.data();
                }
                kernels->accumulate(task);
                for (int r = 0; r < rows; ++r) {
                    for (int64_t i = 0; i < width; ++i)
                        CHECK(test::close(y[static_cast<size_t>(r * stride + i)],
                                          expected[static_cast<size_t>(r * width + i)], (r + 2) * kUnit * (r + 2)));
                    for (int64_t i = width; i < stride; ++i)
                        CHECK(y[static_cast<size_t>(r * stride + i)] == before[static_cast<size_t>(r * stride + i)]);
                }
            }
        }
    }
}

TEST(masked_dots_sum_tiles_of_every_width) {
    test::Random random(2);
    constexpr int rows = 14;
    for (const MaskedKernels* kernels : kAll) {
        if (!isa_present(kernels->isa)) continue;
        for (int chunks = 1; chunks <= kernels->dots_chunks; ++chunks) {
            for (int mode = 0; mode < 2; ++mode) {
                KernelCase each(rows, chunks, mode & 1, random);
                const int64_t width = 16 * chunks, stride = width + 7;
                const Floats dy = random_floats(rows * stride, random);
                Floats dw = random_floats(static_cast<int64_t>(each.columns.size()), random);
                DotsTask task{each.kept, dy.data(), stride, dw.data()};
                std::vector<double> expected(dw.size());
                masked_dots_reference(task, expected.data());
                kernels->dots(task);
                for (size_t k = 0; k < dw.size(); ++k)
                    CHECK(test::close(dw[k], expected[k], static_cast<double>((width + 2) * (width + 1)) * kUnit));
            }
        }
    }
}

TEST(masked_one_sample_kernels) {
    test::Random random(3);
    constexpr int rows = 19;
    for (const MaskedKernels* kernels : kAll) {
        if (!isa_present(kernels->isa)) continue;
        KernelCase each(rows, 1, false, random);
        const Floats bias = random_floats(rows, random), dy = random_floats(rows, random);
        for (const float* start : {static_cast<const float*>(nullptr), bias.data()}) {
            Floats y(rows, kNan);
            GatherRowsTask task{each.columns.data(), each.begin.data(), each.end.data(), rows,
                                each.w.data(),       each.x.data(),     start,           y.data()};
            std::vector<double> expected(rows);
            masked_gather_rows_reference(task, expected.data());
            kernels->gather_rows(task);
            for (size_t r = 0; r < rows; ++r)
                CHECK(test::close(y[r], expected[r], static_cast<double>((r + 2) * (r + 1)) * kUnit));
        }
        Floats dw(each.columns.size(), kNan);
        kernels->outer_rows(
            {each.columns.data(), each.begin.data(), each.end.data(), rows, dy.data(), each.x.data(), dw.data()});
        for (size_t r = 0; r < rows; ++r)
            for (int32_t k = each.begin[r]; k < each.end[r]; ++k)
                CHECK(dw[static_cast<size_t>(k)] ==
                      dy[r] * each.x[static_cast<size_t>(each.columns[static_cast<size_t>(k)])]);
    }
}

TEST(masked_few_samples_are_so_many_single_ones) {
    test::Random random(6);
    constexpr int rows = 19, inputs = 9;
    for (const MaskedKernels* kernels : kAll) {
        if (!isa_present(kernels->isa)) continue;
        KernelCase each(rows, 1, false, random);
        const Backwards turned(each.w);
        const Floats x = random_floats(inputs * kFew, random), bias = random_floats(rows, random);
        for (int mode = 0; mode < 8; ++mode) {
            const bool first = mode & 1, ordered = mode & 2;
            Floats y = random_floats(rows * kFew, random);
            const Floats before = y;
            if (first) std::fill(y.begin(), y.end(), kNan);
            Floats w = ordered ? turned.w : each.w;
            kernels->few_products({each.columns.data(), ordered ? turned.order.data() : nullptr, each.begin.data(),
                                   each.end.data(), rows, w.data(), x.data(), y.data(), first,
                                   mode & 4 ? bias.data() : nullptr});
            for (size_t l = 0; l < kFew; ++l) {
                Floats one(inputs), unused(rows);
                for (size_t i = 0; i < inputs; ++i) one[i] = x[i * kFew + l];
                std::vector<double> expected(rows);
                masked_gather_rows_reference(
                    {each.columns.data(), each.begin.data(), each.end.data(), rows, each.w.data(), one.data(),
                     first && mode & 4 ? bias.data() : nullptr, unused.data()},
                    expected.data());
                for (size_t r = 0; r < rows; ++r) {
                    const double start = first ? 0.0 : static_cast<double>(before[r * kFew + l]);
                    CHECK(test::close(y[r * kFew + l], expected[r] + start,
                                      static_cast<double>((r + 3) * (r + 2)) * kUnit));
                }
            }
        }
        const Floats y = random_floats(rows * kFew, random);
        Floats dw(each.columns.size(), kNan);
        kernels->few_dots({each.columns.data(), nullptr, each.begin.data(), each.end.data(), rows, dw.data(), x.data(),
                           const_cast<float*>(y.data()), false, nullptr});
        for (size_t r = 0; r < rows; ++r)
            for (auto k = static_cast<size_t>(each.begin[r]); k < static_cast<size_t>(each.end[r]); ++k) {
                double expected = 0;
                for (size_t l = 0; l < kFew; ++l)
                    expected += static_cast<double>(y[r * kFew + l]) *
                                static_cast<double>(x[static_cast<size_t>(each.columns[k]) * kFew + l]);
                CHECK(test::close(dw[k], expected, 100 * kUnit));
            }
    }
}

TEST(masked_interleaving_there_and_back) {
    test::Random random(4);
    for (const MaskedKernels* kernels : kAll) {
        if (!isa_present(kernels->isa)) continue;
        for (int64_t width : {1, 8, 16, 64}) {
            for (int64_t images : {int64_t{1}, width / 2 + 1, width - 1, width}) {
                if (images < 1 || images > width) continue;
                for (int64_t count : {1, 7, 8, 9, 16, 17, 33}) {
                    for (int64_t step : {1, 2}) {
                        const int64_t image = count * step + 3;
                        Floats plain = random_floats(images * image, random);
                        Floats packed(static_cast<size_t>(count * (width + 1)), kNan), expected = packed;
                        InterleaveTask task{plain.data(), image, step, images, packed.data(), width + 1, width, count};
                        kernels->interleave(task);
                        task.packed = expected.data();
                        masked_interleave_reference(task);
                        CHECK(std::memcmp(packed.data(), expected.data(), packed.size() * sizeof(float)) == 0);
                        Floats back = random_floats(images * image, random);
                        Floats back_expected = back;
                        task.plain = back.data();
                        kernels->deinterleave(task);
                        task.plain = back_expected.data();
                        masked_deinterleave_reference(task);
                        CHECK(back == back_expected);
                    }
                }
            }
        }
    }
}

// ---- operators ----------------------------------------------------------------------------------------------------

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
        {{3, 3, 1, {5, 1}}, {0, 3}, 8, {5, 1}, 1.0},
        {{3, 3, 1, {3, 3}}, {1, 1}, 4, {4, 4}, 0.0},
    };
    return all;
}

View view_of(Floats& data, std::vector<int64_t> shape) {
    View view;
    view.data = data.data();
    view.dtype = DType::f32;
    view.dims = static_cast<int>(shape.size());
    int64_t stride = 1;
    for (int d = view.dims - 1; d >= 0; --d) {
        view.shape[d] = shape[static_cast<size_t>(d)];
        view.stride[d] = stride;
        stride *= view.shape[d];
    }
    return view;
}

template <class T>
View flat_view(std::vector<T>& data, DType dtype) {
    View view;
    view.data = data.data();
    view.dtype = dtype;
    view.dims = 1;
    view.shape[0] = static_cast<int64_t>(data.size());
    view.stride[0] = 1;
    return view;
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
        compile_pattern(
            f, flat_view(bits, DType::u8),
            {flat_view(columns, DType::i32), flat_view(starts, DType::i32), flat_view(t_columns, DType::i32),
             flat_view(t_order, DType::i32), flat_view(t_starts, DType::i32)});
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
                call.weights = flat_view(w, DType::f32);
                call.bias = flat_view(bias, DType::f32);
                masked_forward(call, {threads, variant});
                call.y.data = dy.data();
                call.x.data = dx.data();
                call.bias = {};
                masked_input_gradient(call, {threads, variant});
                call.x.data = x.data();
                call.weights = flat_view(dw, DType::f32);
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
    good.weights = flat_view(w, DType::f32);
    good.bias = flat_view(bias, DType::f32);
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
    CHECK(count_kept(flat_view(bits, DType::u8), filter.weights()) == compiled.pattern.kept);
    for (size_t size : {bits.size() - 1, bits.size() + 1}) {
        std::vector<uint8_t> other(size);
        bool threw = false;
        try {
            count_kept(flat_view(other, DType::u8), filter.weights());
        } catch (const Error&) {
            threw = true;
        }
        CHECK(threw);
    }
}
