// The compiled form of a mask: which weights of a linear layer or a convolution are kept, in the orders in which the
// forward pass and the input gradient walk them.
#pragma once

#include <cstdint>

#include "base/view.h"

namespace edgeprune {

// A filter bank of `outputs` rows, each over inputs / groups channels of taps_h x taps_w. A linear layer has one tap.
struct FilterShape {
    int64_t outputs = 0, inputs = 0, groups = 1;
    int64_t taps[2] = {1, 1};
    int64_t stride[2] = {1, 1};
    int64_t dilation[2] = {1, 1};

    int64_t group_inputs() const { return inputs / groups; }
    int64_t group_outputs() const { return outputs / groups; }
    int64_t all_taps() const { return taps[0] * taps[1]; }
    int64_t weights() const { return outputs * group_inputs() * all_taps(); }
    bool strided() const { return stride[0] > 1 || stride[1] > 1; }
};

// Compact weights are numbered row by row, as in the dense tensor. Rows are walked in blocks of channels that fit the
// first-level cache, so each row's start in each block is noted.
//
//   columns      (kept,)                 channel * taps + tap; the channel counts over all groups
//   starts       (blocks + 1, outputs)   first kept weight of the row in the block; the last line ends the rows
// and the same transposed, for the input gradient, where a row is one input channel at one phase of the stride
// (phase of a tap = tap * dilation mod stride, rows first) and a channel is an output:
//   t_columns    (kept,)                 output * taps + tap
//   t_order      (kept,)                 its number among the compact weights
//   t_starts     (t_blocks + 1, phases * inputs)
struct SparsityPattern {
    FilterShape filter;
    int64_t kept = 0;
    const int32_t *columns = nullptr, *starts = nullptr;
    const int32_t *t_columns = nullptr, *t_order = nullptr, *t_starts = nullptr;
};

// Channels in a block of `starts`: the smallest piece of a row that is walked at once.
int64_t block_channels(const FilterShape& filter);
inline int64_t blocks_of(int64_t channels, const FilterShape& filter) {
    return (channels + block_channels(filter) - 1) / block_channels(filter);
}
inline int64_t transposed_rows(const FilterShape& filter) {
    return filter.inputs * filter.stride[0] * filter.stride[1];
}

struct PatternOutputs {
    View columns, starts, t_columns, t_order, t_starts;  // int32, contiguous, shaped as above
};

// Throws unless sizes are positive, groups divide channels, and everything fits 32 bits.
void check_filter(const char* op, const FilterShape& filter);

// Number of set bits among the first `bits`; throws when `mask` (uint8, least significant bit first) is too short or
// has spare bits set.
int64_t count_kept(const View& mask, int64_t bits);

// Fills the five tensors, whose sizes `count_kept` gave. Two passes over the mask, one over the kept weights.
void compile_pattern(const FilterShape& filter, const View& mask, const PatternOutputs& out);

}  // namespace edgeprune
