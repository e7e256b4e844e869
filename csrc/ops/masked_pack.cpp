#include "ops/masked_pack.h"

#include <algorithm>
#include <cstring>

#include "base/threads.h"

namespace edgeprune {
namespace {

// A channel that stays cached while all of it is zeroed, and then its pixels are written.
constexpr int64_t kSmallFloats = 4 * 1024;

void zero(float* at, int64_t floats) { std::memset(at, 0, static_cast<size_t>(floats) * sizeof(float)); }

// Calls visit(where in a channel of the first picture, which sample, how many) for the samples of each picture.
template <class Visit>
void for_each_run(const Images& images, int64_t first, int64_t count, Visit visit) {
    for (int64_t s = 0, run; s < count; s += run) {
        const int64_t picture = (first + s) / images.side, pixel = (first + s) % images.side;
        run = std::min(images.side - pixel, count - s);
        visit(picture * images.channels * images.side + pixel, s, run);
    }
}

// Where one phase of the pixels of a row lies: columns [from, upto) of its plane, the first of them pixel `pixel`.
struct Span {
    int64_t from = 0, upto = 0, pixel = 0;
};

// Column j of a phase is pixel j * stride + phase - lead of a row of `pixels`.
std::vector<Span> spans_of(const Planes& p, int64_t pixels) {
    std::vector<Span> spans;
    const int64_t columns = p.row / p.width;
    for (int64_t b = 0; b < p.phases[1]; ++b) {
        const int64_t left = p.used_phase[1][b] - p.lead[1];
        const int64_t from = left >= 0 ? 0 : std::min(columns, (-left + p.stride[1] - 1) / p.stride[1]);
        const int64_t inside = pixels - 1 - left;
        const int64_t upto = inside < 0 ? from : std::clamp(inside / p.stride[1] + 1, from, columns);
        spans.push_back({from, upto, from * p.stride[1] + left});
    }
    return spans;
}

// Zeroes a row of a plane but for the pixels of `span`.
void zero_beside(float* row, const Planes& p, const Span& span) {
    zero(row, span.from * p.width);
    zero(row + span.upto * p.width, p.row - span.upto * p.width);
}

// A group of images on its way into planes.
struct Packing {
    const Images& images;
    const Planes& planes;
    const MaskedKernels& kernels;
    std::vector<Span> spans;  // of the phases of a row
    InterleaveTask task;      // with what all moves have in common
};

// Whether a channel is one small plane and all its pixels have their place there: then one task moves them.
bool moved_whole(const Packing& to) {
    const Planes& p = to.planes;
    const Images& in = to.images;
    return p.width > 1 && p.channel <= kSmallFloats && p.stride[0] * p.stride[1] == 1 && p.lead[0] >= 0 &&
           in.size[0] + p.lead[0] <= p.height && to.spans[0].upto - to.spans[0].from == in.size[1];
}

void move_whole(Packing& to, float* pixels, float* channel) {
    const Planes& p = to.planes;
    InterleaveTask& task = to.task;
    task.plain = pixels;
    task.plain_step = 1;
    task.packed = channel + p.lead[0] * p.row + p.lead[1] * p.width;
    task.count = to.images.pixels();
    task.line = to.images.size[1];
    task.line_step = p.row;
    to.kernels.interleave(task);
}

// Whether the pixels of a row go to two planes by turns: then one task moves those of both.
bool moved_in_pairs(const Packing& to) {
    const Planes& p = to.planes;
    return p.width > 1 && p.stride[1] == 2 && p.phases[1] == 2 && p.used_phase[1][0] == 0 && p.lead[1] >= 0;
}

void move_pairs(Packing& to, float* pixels, float* row) {
    InterleaveTask& task = to.task;
    task.plain = pixels;
    task.plain_step = 1;
    task.packed = row;
    task.packed_step = to.planes.plane;
    task.count = 0;
    for (const Span& span : to.spans) task.count += span.upto - span.from;
    task.line = 2;
    task.line_step = to.planes.width;
    task.first = to.planes.lead[1];
    to.kernels.interleave(task);
}

void move_phases(Packing& to, float* pixels, float* row) {
    InterleaveTask& task = to.task;
    task.plain_step = to.planes.stride[1];
    for (const Span& span : to.spans) {
        task.plain = pixels + span.pixel;
        task.packed = row + span.from * to.planes.width;
        task.count = span.upto - span.from;
        if (task.count > 0) to.kernels.interleave(task);
        row += to.planes.plane;
    }
}

void pack_channel(Packing& to, float* pixels, float* channel) {
    const Planes& p = to.planes;
    const int64_t used = p.phases[0] * p.phases[1] * p.plane;
    const bool small = p.channel <= kSmallFloats, whole = moved_whole(to), pairs = moved_in_pairs(to);
    // Tiles that hang over the end of a plane read what is between channels, too.
    zero(channel + (small ? 0 : used), p.channel - (small ? 0 : used));
    if (whole) return move_whole(to, pixels, channel);
    for (int64_t a = 0; a < p.phases[0]; ++a) {
        for (int64_t r = 0; r < p.height; ++r) {
            // Row r of the plane is row r * stride + phase - lead of the image.
            const int64_t i = r * p.stride[0] + p.used_phase[0][a] - p.lead[0];
            const bool inside = i >= 0 && i < to.images.size[0];
            float* const row = channel + a * p.phases[1] * p.plane + r * p.row;
            for (int64_t b = 0; !small && b < p.phases[1]; ++b)
                zero_beside(row + b * p.plane, p, inside ? to.spans[static_cast<size_t>(b)] : Span{});
            if (!inside) continue;
            (pairs ? move_pairs : move_phases)(to, pixels + i * to.images.size[1], row);
        }
    }
}

}  // namespace

void pack_side(const Images& images, int64_t first, int64_t count, int64_t c0, int64_t c1, const MaskedKernels& kernels,
               float* packed, int64_t step, int64_t width) {
    for_each_run(images, first, count, [&](int64_t at, int64_t sample, int64_t run) {
        kernels.copy_rows({images.data + at + c0 * images.side, images.side, packed + sample, step, c1 - c0, run});
    });
    if (count < width)
        for (int64_t c = 0; c < c1 - c0; ++c) zero(packed + c * step + count, width - count);
}

void unpack_side(const Images& images, int64_t first, int64_t count, int64_t c0, int64_t c1,
                 const MaskedKernels& kernels, const float* packed, int64_t step) {
    auto* const out = const_cast<float*>(images.data);
    for_each_run(images, first, count, [&](int64_t at, int64_t sample, int64_t run) {
        kernels.copy_rows({packed + sample, step, out + at + c0 * images.side, images.side, c1 - c0, run});
    });
}

void pack_images(const Images& images, int64_t group, const Planes& p, int64_t first, int64_t last,
                 const MaskedKernels& kernels, float* packed) {
    const int64_t image = group * p.width, count = std::min(p.width, images.count - image);
    auto* const source = const_cast<float*>(images.data) + image * images.image();
    if (last == p.channels) zero(packed + p.channels * p.channel, p.slack);
    if (images.side > 1)
        return pack_side(images, image, count, first, last, kernels, packed + first * p.channel, p.channel, p.width);
    InterleaveTask task{};
    task.plain_image = images.image();
    task.images = count;
    task.width = p.width;
    if (images.pixels() == 1 && p.height == 1 && p.row == p.width && p.lead[0] == 0 && p.lead[1] == 0) {
        task.plain = source + first;
        task.plain_step = 1;
        task.packed = packed + first * p.channel;
        task.packed_step = p.channel;
        task.count = last - first;
        return kernels.interleave(task);
    }
    task.packed_step = p.width;
    Packing to{images, p, kernels, spans_of(p, images.size[1]), task};
    for (int64_t c = first; c < last; ++c) pack_channel(to, source + c * images.pixels(), packed + c * p.channel);
}

void pack_groups(const Images& images, const Planes& planes, int64_t group, int64_t groups,
                 const MaskedKernels& kernels, int threads, float* packed) {
    const int64_t shares =
        threads == 1 ? 1 : std::min<int64_t>(planes.channels, groups >= 2 * threads ? 1 : 4 * threads);
    parallel_pieces(threads, groups * shares, [&](int64_t piece) {
        const int64_t g = piece / shares, share = piece % shares;
        pack_images(images, group + g, planes, planes.channels * share / shares, planes.channels * (share + 1) / shares,
                    kernels, packed + g * planes.floats());
    });
}

}  // namespace edgeprune
