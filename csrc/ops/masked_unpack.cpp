// Sums on their way out of the packed layout.
#include <algorithm>

#include "ops/masked_sweep.h"

namespace edgeprune {
namespace {

// Row `phase` of the pixels that grid row `u` stands for, or -1 where that is outside of the image.
int64_t image_row(const Sweep& s, int64_t u, int64_t phase) {
    const int64_t i = (s.first[0] + u) * s.stride[0] + phase - s.padding[0];
    return i < s.out_size[0] ? i : -1;
}

// A row of a channel and phase by itself. `out` is the group's first image.
void unpack_phases(const Sweep& s, InterleaveTask task, const Sums& sums, float* out) {
    const int64_t width = s.planes.width;
    task.plain_step = s.stride[1];
    for (int64_t r = sums.r0; r < sums.r1; ++r) {
        const int64_t phase = r / s.out_channels, channel = r % s.out_channels;
        const int64_t down = phase / s.stride[1], across = phase % s.stride[1];
        const int64_t left = s.first[1] * s.stride[1] + across - s.padding[1];  // pixel of grid column 0
        const int64_t from = left >= 0 ? 0 : pieces_of(-left, s.stride[1]);
        const int64_t upto = std::min(s.grid.size[1], pieces_of(s.out_size[1] - left, s.stride[1]));
        if (upto <= from) continue;
        task.count = upto - from;
        for (int64_t u = sums.row; u < sums.row + sums.rows; ++u) {
            const int64_t i = image_row(s, u, down);
            if (i < 0) continue;
            task.plain = out + (channel * s.out_size[0] + i) * s.out_size[1] + from * s.stride[1] + left;
            task.packed = sums.data + (r - sums.r0) * sums.step + (u - sums.row) * s.grid.row + from * width;
            s.kernels->deinterleave(task);
        }
    }
}

// Both phases of a row together: pixel 0 lies in the first or the second.
void unpack_pairs(const Sweep& s, InterleaveTask task, const Sums& sums, float* out) {
    task.plain_step = 1;
    task.count = s.out_size[1];
    task.packed_step = s.out_channels * sums.step;
    task.line = 2;
    task.line_step = s.planes.width;
    task.first = s.padding[1] - 2 * s.first[1];
    for (int64_t c = 0; c < s.out_channels; ++c) {
        for (int64_t u = sums.row; u < sums.row + sums.rows; ++u) {
            for (int64_t phase = 0; phase < s.stride[0]; ++phase) {
                const int64_t i = image_row(s, u, phase);
                if (i < 0) continue;
                task.plain = out + (c * s.out_size[0] + i) * s.out_size[1];
                task.packed = sums.data + (2 * phase * s.out_channels + c) * sums.step + (u - sums.row) * s.grid.row;
                s.kernels->deinterleave(task);
            }
        }
    }
}

// All rows of a channel together: the grid is the image.
void unpack_whole(const Sweep& s, InterleaveTask task, const Sums& sums, float* out) {
    task.plain_step = 1;
    task.count = sums.rows * s.out_size[1];
    task.line = s.out_size[1];
    task.line_step = s.grid.row;
    for (int64_t r = sums.r0; r < sums.r1; ++r) {
        task.plain = out + (r * s.out_size[0] + sums.row) * s.out_size[1];
        task.packed = sums.data + (r - sums.r0) * sums.step;
        s.kernels->deinterleave(task);
    }
}

}  // namespace

void unpack_sums(const Sweep& s, int64_t group, const Sums& sums) {
    const int64_t width = s.planes.width, image = group * width, count = std::min(width, s.in.count - image);
    if (s.in.side > 1) {
        const Images out{s.out, s.in.count, s.out_channels, {1, 1}, s.in.side};
        return unpack_side(out, image, count, sums.r0, sums.r1, *s.kernels, sums.data, sums.step);
    }
    const int64_t pixels = s.out_size[0] * s.out_size[1];
    float* const out = s.out + image * s.out_channels * pixels;
    const bool strided = s.stride[0] * s.stride[1] > 1;
    InterleaveTask task{};
    task.plain_image = s.out_channels * pixels;
    task.images = count;
    task.packed_step = width;
    task.width = width;
    if (pixels == 1 && !strided) {
        task.plain = out + sums.r0;
        task.plain_step = 1;
        task.packed = sums.data;
        task.packed_step = sums.step;
        task.count = sums.r1 - sums.r0;
        return s.kernels->deinterleave(task);
    }
    const bool same = s.grid.size[0] == s.out_size[0] && s.grid.size[1] == s.out_size[1];
    if (width > 1 && !strided && same) return unpack_whole(s, task, sums, out);
    if (width > 1 && s.stride[1] == 2 && sums.r1 - sums.r0 == s.rows) return unpack_pairs(s, task, sums, out);
    unpack_phases(s, task, sums, out);
}

}  // namespace edgeprune
