// The masked kernels: every variant present against double, within the bound that rounding allows:
// n * 2^-24 * sum of the products' magnitudes, n the number of additions. Buffers that must be written start as NaN;
// dropped weights do not exist; memory behind every buffer is watched by AddressSanitizer.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"
#include "kernels/masked/masked.h"
#include "masked_values.h"

using namespace edgeprune;

namespace {

const MaskedKernels* const kAll[] = {
#define EDGEPRUNE_ENTRY(isa) &masked_##isa,
    EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_ENTRY)
#undef EDGEPRUNE_ENTRY
};

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

TEST(masked_interleaving_in_lines_there_and_back) {
    test::Random random(6);
    for (const MaskedKernels* kernels : kAll) {
        if (!isa_present(kernels->isa)) continue;
        for (int64_t images : {3, 8, 13, 16}) {
            for (int64_t line : {1, 2, 4, 7, 8, 14, 16}) {
                for (int64_t first : {0, 1, 3}) {
                    for (int64_t count : {1, 7, 8, 9, 28, 49}) {
                        const int64_t width = 16, lines = (first + count) / line + 1;
                        // by rows with a gap, and by turns: positions of a line further apart than lines
                        for (bool turns : {false, true}) {
                            const int64_t step = turns ? lines * width + 2 : width;
                            const int64_t line_step = turns ? width : line * width + 3, image = count + 3;
                            Floats plain = random_floats(images * image, random);
                            Floats packed(static_cast<size_t>(lines * line_step + line * step + width), kNan);
                            Floats expected = packed;
                            InterleaveTask task{plain.data(), image, 1,    images,    packed.data(), step,
                                                width,        count, line, line_step, first};
                            kernels->interleave(task);
                            task.packed = expected.data();
                            masked_interleave_reference(task);
                            CHECK(std::memcmp(packed.data(), expected.data(), packed.size() * sizeof(float)) == 0);
                            Floats back = random_floats(images * image, random), back_expected = back;
                            task.plain = back.data();
                            kernels->deinterleave(task);
                            task.plain = back_expected.data();
                            masked_deinterleave_reference(task);
                            CHECK(back == back_expected);
                            for (int64_t n = 0; n < images; ++n)
                                CHECK(std::equal(back.begin() + n * image, back.begin() + n * image + count,
                                                 plain.begin() + n * image));
                        }
                    }
                }
            }
        }
    }
}

TEST(masked_rows_are_copied_and_nothing_beside_them) {
    test::Random random(5);
    for (const MaskedKernels* kernels : kAll) {
        if (!isa_present(kernels->isa)) continue;
        for (int64_t count : {1, 3, 4, 7, 8, 15, 16, 17, 31, 49, 64}) {
            const int64_t rows = 3, from_step = count + 5, to_step = count + 2;
            const Floats from = random_floats(rows * from_step, random);
            Floats to(static_cast<size_t>(rows * to_step), kNan);
            kernels->copy_rows({from.data(), from_step, to.data(), to_step, rows, count});
            for (int64_t i = 0; i < rows * to_step; ++i) {
                const int64_t r = i / to_step, at = i % to_step;
                const float got = to[static_cast<size_t>(i)];
                CHECK(at < count ? got == from[static_cast<size_t>(r * from_step + at)] : std::isnan(got));
            }
        }
    }
}
