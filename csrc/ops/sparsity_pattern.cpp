#include "ops/sparsity_pattern.h"

#include <cstring>
#include <limits>
#include <vector>

#include "base/error.h"

namespace edgeprune {
namespace {

// A block of 64 inputs of a linear layer is 16 KB for 64 samples; of a 3x3 filter, 8 channels of a tile are about that.
constexpr int64_t kBlockOfOneTap = 64, kBlockOfTaps = 8;

int32_t* int32s(const char* name, const View& view, int64_t size) {
    if (view.dtype != DType::i32 || !view.contiguous() || view.size() != size || view.device != Device::cpu)
        fail("sparsity_pattern: %s must be %lld contiguous int32 on the CPU, got shape %s", name,
             static_cast<long long>(size), shape_text(view).c_str());
    return static_cast<int32_t*>(view.data);
}

const uint8_t* bytes(const View& mask, int64_t bits) {
    const int64_t size = (bits + 7) / 8;
    if (mask.dtype != DType::u8 || !mask.contiguous() || mask.device != Device::cpu)
        fail("sparsity_pattern: the mask must be contiguous uint8 on the CPU, one bit a weight");
    if (mask.size() != size)
        fail("sparsity_pattern: a mask of %lld bytes for %lld weights; it takes %lld",
             static_cast<long long>(mask.size()), static_cast<long long>(bits), static_cast<long long>(size));
    const auto* data = static_cast<const uint8_t*>(mask.data);
    if (bits % 8 && data[size - 1] >> (bits % 8))
        fail("sparsity_pattern: bits are set behind the last weight of the mask; it was made for another shape");
    return data;
}

// Calls visit(bit) for each set bit, in order.
template <class Visit>
void for_each_bit(const uint8_t* mask, int64_t bits, Visit visit) {
    const int64_t size = (bits + 7) / 8;
    for (int64_t at = 0; at < size; at += 8) {
        uint64_t word = 0;
        std::memcpy(&word, mask + at, static_cast<size_t>(size - at < 8 ? size - at : 8));
        for (; word; word &= word - 1) visit(at * 8 + __builtin_ctzll(word));
    }
}

}  // namespace

int64_t block_channels(const FilterShape& filter) { return filter.all_taps() == 1 ? kBlockOfOneTap : kBlockOfTaps; }

void check_filter(const char* op, const FilterShape& f) {
    if (f.outputs < 1 || f.inputs < 1 || f.groups < 1 || f.taps[0] < 1 || f.taps[1] < 1)
        fail("%s: a filter of %lld outputs, %lld inputs, %lld x %lld taps and %lld groups; all must be 1 or more", op,
             static_cast<long long>(f.outputs), static_cast<long long>(f.inputs), static_cast<long long>(f.taps[0]),
             static_cast<long long>(f.taps[1]), static_cast<long long>(f.groups));
    if (f.outputs % f.groups || f.inputs % f.groups)
        fail("%s: %lld groups do not divide %lld outputs and %lld inputs", op, static_cast<long long>(f.groups),
             static_cast<long long>(f.outputs), static_cast<long long>(f.inputs));
    for (int d = 0; d < 2; ++d)
        if (f.stride[d] < 1 || f.dilation[d] < 1 || f.stride[d] > 64 || f.dilation[d] > 1 << 16)
            fail("%s: stride %lld and dilation %lld; give 1 to 64 and 1 to 65536", op,
                 static_cast<long long>(f.stride[d]), static_cast<long long>(f.dilation[d]));
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    const int64_t sizes[] = {f.outputs, f.inputs, f.taps[0], f.taps[1], f.stride[0] * f.stride[1]};
    double product = 1;
    for (const int64_t size : sizes) product *= static_cast<double>(size);
    if (product > static_cast<double>(most))
        fail("%s: a filter of more than 2^31 weights (with its stride's phases); split the layer", op);
}

int64_t count_kept(const View& mask, int64_t bits) {
    const uint8_t* const data = bytes(mask, bits);
    int64_t kept = 0;
    for (int64_t i = 0; i < mask.size(); ++i) kept += __builtin_popcount(data[i]);
    return kept;
}

void compile_pattern(const FilterShape& f, const View& mask, const PatternOutputs& out) {
    check_filter("sparsity_pattern", f);
    const int64_t bits = f.weights(), kept = count_kept(mask, bits);
    const uint8_t* const data = bytes(mask, bits);
    const int64_t per_block = block_channels(f), taps = f.all_taps(), row_bits = f.group_inputs() * taps;
    const int64_t blocks = blocks_of(f.inputs, f), t_blocks = blocks_of(f.outputs, f), t_rows = transposed_rows(f);
    int32_t* const columns = int32s("columns", out.columns, kept);
    int32_t* const starts = int32s("starts", out.starts, (blocks + 1) * f.outputs);
    int32_t* const t_columns = int32s("t_columns", out.t_columns, kept);
    int32_t* const t_order = int32s("t_order", out.t_order, kept);
    int32_t* const t_starts = int32s("t_starts", out.t_starts, (t_blocks + 1) * t_rows);

    // What a column means, looked up instead of divided: its block, and its transposed row (for output 0's group).
    std::vector<int32_t> phase(static_cast<size_t>(taps));
    for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t h = tap / f.taps[1] * f.dilation[0] % f.stride[0],
                      w = tap % f.taps[1] * f.dilation[1] % f.stride[1];
        phase[static_cast<size_t>(tap)] = static_cast<int32_t>((h * f.stride[1] + w) * f.inputs);
    }
    std::vector<int32_t> channel_of(static_cast<size_t>(row_bits)), t_row_of(static_cast<size_t>(row_bits));
    for (int64_t c = 0; c < row_bits; ++c) {
        channel_of[static_cast<size_t>(c)] = static_cast<int32_t>(c / taps);
        t_row_of[static_cast<size_t>(c)] = phase[static_cast<size_t>(c % taps)] + static_cast<int32_t>(c / taps);
    }

    // ---- forward, and how many fall to each block of each transposed row ----
    std::memset(t_starts, 0, static_cast<size_t>(t_rows * (t_blocks + 1)) * sizeof(int32_t));
    int64_t k = 0, row = 0, row_first = 0, open = 0;  // the row's blocks before `open` have their start
    int64_t group_channel = 0;                        // first channel of the row's group
    const auto close = [&](int64_t upto) {
        for (; open <= upto; ++open) starts[open * f.outputs + row] = static_cast<int32_t>(k);
    };
    for_each_bit(data, bits, [&](int64_t bit) {
        while (bit >= row_first + row_bits) {
            close(blocks);
            ++row, open = 0, row_first += row_bits;
            group_channel = row / f.group_outputs() * f.group_inputs();
        }
        const int64_t column = bit - row_first;
        close((group_channel + channel_of[static_cast<size_t>(column)]) / per_block);
        columns[k] = static_cast<int32_t>(group_channel * taps + column);
        const int64_t t_row = t_row_of[static_cast<size_t>(column)] + group_channel;
        ++t_starts[(row / per_block + 1) * t_rows + t_row];
        ++k;
    });
    for (; row < f.outputs; ++row, open = 0) close(blocks);

    // ---- transposed: counts become starts, then every kept weight finds its place, outputs rising ----
    int32_t before = 0;
    std::vector<int32_t> next(static_cast<size_t>(t_rows));
    for (int64_t r = 0; r < t_rows; ++r) {
        next[static_cast<size_t>(r)] = before;
        for (int64_t b = 0; b <= t_blocks; ++b) before = t_starts[b * t_rows + r] += before;
    }
    for (int64_t o = 0; o < f.outputs; ++o) {
        const int64_t first = o / f.group_outputs() * f.group_inputs();
        for (int32_t i = starts[o]; i < starts[blocks * f.outputs + o]; ++i) {
            const int64_t column = columns[i] - first * taps;
            const int32_t place = next[static_cast<size_t>(t_row_of[static_cast<size_t>(column)] + first)]++;
            t_columns[place] = static_cast<int32_t>(o * taps + column % taps);
            t_order[place] = i;
        }
    }
}

}  // namespace edgeprune
