#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/threads.h"
#include "ops/packing_plan.h"

namespace edgeprune {
namespace {

#define EDGEPRUNE_ENTRY(isa) &packing_##isa,
const PackingKernels* const kVariants[] = {EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_ENTRY)};
#undef EDGEPRUNE_ENTRY

long long number(int64_t n) { return static_cast<long long>(n); }

const uint8_t* bytes_of(const View& mask) { return static_cast<const uint8_t*>(mask.data); }

}  // namespace

const PackingKernels& packing_kernels(const char* op, const PackingOptions& options) {
    return choose_variant(op, kVariants, options.variant);
}

// ---- checks -------------------------------------------------------------------------------------------------------

void check_packing_floats(const char* op, const char* name, const View& view) {
    if (view.dtype != DType::f32 || view.device != Device::cpu || !view.contiguous())
        fail("%s: %s must be contiguous float32 on the CPU", op, name);
}

void check_packing_bytes(const char* op, const char* name, const View& view) {
    if (view.dtype != DType::u8 || view.device != Device::cpu || !view.contiguous())
        fail("%s: %s must be contiguous uint8 on the CPU", op, name);
}

void check_packing_mask(const char* op, const View& mask, int64_t n) {
    if (!given(mask)) return;
    check_packing_bytes(op, "a mask", mask);
    if (mask.size() != (n + 7) / 8)
        fail("%s: a mask of %lld elements is %lld bytes, not %lld", op, number(n), number((n + 7) / 8),
             number(mask.size()));
    if (n % 8 && bytes_of(mask)[n / 8] >> (n % 8))
        fail("%s: the mask has bits set beyond its %lld elements; clear them", op, number(n));
}

// ---- pieces -------------------------------------------------------------------------------------------------------

std::vector<PackingPiece> cut(const std::vector<int64_t>& sizes) {
    std::vector<PackingPiece> pieces;
    for (size_t t = 0; t < sizes.size(); ++t)
        for (int64_t first = 0; first < sizes[t]; first += kPieceElements)
            pieces.push_back({static_cast<int>(t), first, std::min(sizes[t], first + kPieceElements), 0, 0});
    return pieces;
}

MaskPlan plan_mask(const PackingKernels& kernels, const uint8_t* mask, int64_t n, int threads, int tensor) {
    MaskPlan plan;
    plan.pieces = cut({n});
    const auto count = static_cast<int64_t>(plan.pieces.size());
    // A thread is worth waking for a megabyte of mask, not for less.
    parallel_pieces(n < 64 * kPieceElements ? 1 : threads, count, [&](int64_t i) {
        PackingPiece& piece = plan.pieces[static_cast<size_t>(i)];
        const int64_t from = piece.first / 8, to = (piece.last + 7) / 8;
        piece.last_rank = mask ? kernels.count_bits(mask + from, to - from) : piece.last - piece.first;
    });
    for (PackingPiece& piece : plan.pieces) {
        piece.tensor = tensor;
        piece.rank = plan.kept;
        plan.kept += piece.last_rank;
        piece.last_rank = plan.kept;
    }
    return plan;
}

void join_alike(MaskPlan& plan, int threads) {
    constexpr size_t each = 8;  // pieces, so that the last to finish is not waited for long
    const size_t most = plan.pieces.size() / (each * static_cast<size_t>(std::max(threads, 1)));
    if (most < 2) return;
    const auto sparse = [](const PackingPiece& p) { return few(p.last_rank - p.rank, p.last - p.first); };
    const auto together = [&](const PackingPiece& a, const PackingPiece& b) {
        return sparse(a) == sparse(b) && b.last - a.first < kLongestPiece;
    };
    std::vector<PackingPiece> joined;
    size_t parts = 0;
    for (const PackingPiece& piece : plan.pieces) {
        if (!joined.empty() && parts < most && together(joined.back(), piece)) {
            joined.back().last = piece.last;
            joined.back().last_rank = piece.last_rank;
            ++parts;
        } else {
            joined.push_back(piece);
            parts = 1;
        }
    }
    plan.pieces.swap(joined);
}

void align_to_blocks(MaskPlan& plan, const uint8_t* mask, int64_t n) {
    std::vector<PackingPiece> aligned;
    int64_t first = 0, rank = 0;
    for (const PackingPiece& piece : plan.pieces) {
        int64_t element = piece.last, at = piece.last_rank;
        // Forward over the mask, at most until 255 more are kept; a word at a time, then a byte, then a bit.
        while (element < n && at % kScaleBlock) {
            if (mask && element % 8 == 0 && n - element >= 64) {
                uint64_t word;
                std::memcpy(&word, mask + element / 8, 8);
                const int held = __builtin_popcountll(word);
                if (at % kScaleBlock + held < kScaleBlock) {
                    element += 64;
                    at += held;
                    continue;
                }
            }
            if (mask && element % 8 == 0) {
                const int held = __builtin_popcount(mask[element / 8]);
                if (at % kScaleBlock + held < kScaleBlock) {
                    element = std::min(n, element + 8);
                    at += held;
                    continue;
                }
            }
            at += packing_kept_reference(mask, element);
            ++element;
        }
        if (element <= first) continue;  // the piece before took all of this one
        aligned.push_back({piece.tensor, first, element, rank, at});
        first = element;
        rank = at;
    }
    plan.pieces.swap(aligned);
}

// ---- operators ----------------------------------------------------------------------------------------------------

int64_t mask_count(const View& mask, const PackingOptions& options) {
    check_packing_bytes("mask_count", "mask", mask);
    const PackingKernels& kernels = packing_kernels("mask_count", options);
    return plan_mask(kernels, bytes_of(mask), 8 * mask.size(), options.threads).kept;
}

int64_t mask_kept(const char* op, const View& mask, int64_t n, const PackingOptions& options) {
    if (n < 0) fail("%s: a tensor of %lld elements; give the number of its elements", op, number(n));
    check_packing_mask(op, mask, n);
    return plan_mask(packing_kernels(op, options), bytes_of(mask), n, options.threads).kept;
}

void mask_to_indices(const View& mask, int64_t n, const View& out, const PackingOptions& options) {
    const char* const op = "mask_to_indices";
    if (n < 0) fail("%s: a tensor of %lld elements; give the number of its elements", op, number(n));
    check_packing_mask(op, mask, n);
    const MaskPlan plan = plan_mask(packing_kernels(op, options), bytes_of(mask), n, options.threads);
    if (out.dtype != DType::i64 || out.device != Device::cpu || !out.contiguous() || out.size() != plan.kept)
        fail("%s: out must be %lld contiguous int64 on the CPU", op, number(plan.kept));
    const uint8_t* const bytes = bytes_of(mask);
    auto* const indices = static_cast<int64_t*>(out.data);
    const int threads = plan.kept < kPieceElements ? 1 : options.threads;
    parallel_pieces(threads, static_cast<int64_t>(plan.pieces.size()), [&](int64_t i) {
        const PackingPiece& piece = plan.pieces[static_cast<size_t>(i)];
        int64_t* to = indices + piece.rank;
        for (int64_t at = piece.first; at < piece.last; at += 64) {
            uint64_t word = ~uint64_t{0};
            const int64_t left = piece.last - at;
            if (bytes) {
                word = 0;
                std::memcpy(&word, bytes + at / 8, static_cast<size_t>(left >= 64 ? 8 : (left + 7) / 8));
            } else if (left < 64) {
                word >>= 64 - left;
            }
            for (; word; word &= word - 1) *to++ = at + __builtin_ctzll(word);
        }
    });
}

void mask_from_indices(const View& indices, int64_t n, const View& out) {
    const char* const op = "mask_from_indices";
    if (indices.dtype != DType::i64 || indices.device != Device::cpu || indices.dims != 1 || !indices.contiguous())
        fail("%s: indices must be a one-dimensional contiguous int64 tensor on the CPU", op);
    if (n < 0) fail("%s: a tensor of %lld elements; give the number of its elements", op, number(n));
    check_packing_bytes(op, "out", out);
    if (out.size() != (n + 7) / 8) fail("%s: out must be %lld bytes", op, number((n + 7) / 8));
    const auto* const index = static_cast<const int64_t*>(indices.data);
    const int64_t count = indices.size();
    for (int64_t i = 0; i < count; ++i)
        if (index[i] < 0 || index[i] >= n)
            fail("%s: the index %lld lies outside 0..%lld", op, number(index[i]), number(n - 1));
    auto* const mask = static_cast<uint8_t*>(out.data);
    std::memset(mask, 0, static_cast<size_t>(out.size()));
    for (int64_t i = 0; i < count; ++i) mask[index[i] / 8] |= static_cast<uint8_t>(1u << (index[i] % 8));
}

}  // namespace edgeprune
