#include "ops/accumulate_exact.h"

#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/isa.h"
#include "base/threads.h"
#include "kernels/accumulate_exact/accumulate_exact.h"

namespace edgeprune {
namespace {

#define EDGEPRUNE_ENTRY(isa) &accumulate_exact_##isa,
const ExactKernels* const kVariants[] = {EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_ENTRY)};
#undef EDGEPRUNE_ENTRY

const char* const kOp = "accumulate_exact";
constexpr int64_t kPieceBytes = 8 * 1024;  // of the mask: 512 KiB of words, a second-level cache

void check_flat(const View& view, DType dtype, const char* name, const char* type) {
    if (view.dtype != dtype || view.device != Device::cpu || view.dims != 1 || !view.contiguous())
        fail("%s: %s must be a contiguous one-dimensional %s tensor on the CPU", kOp, name, type);
}

int64_t kept_in(const uint8_t* mask, int64_t first, int64_t last) {
    int64_t kept = 0;
    for (int64_t i = first; i < last; ++i) kept += __builtin_popcount(mask[i]);
    return kept;
}

}  // namespace

void accumulate_exact(const ExactCall& call, double factor, int64_t weight, int bits, const CpuOptions& options) {
    check_flat(call.words, DType::i64, "words", "int64");
    check_flat(call.values, DType::f32, "values", "float32");
    if (call.words.read_only) fail("%s: words is read-only", kOp);
    if (bits < 1 || bits > kExactMaxBits || weight < 1 || weight >= int64_t{1} << bits)
        fail("%s: a weight of %lld does not fit a lane of %d bits; lanes have 1 to %d", kOp,
             static_cast<long long>(weight), bits, kExactMaxBits);
    const int64_t n = call.words.size(), bytes = (n + 7) / 8, held = call.values.size();
    const auto* mask = static_cast<const uint8_t*>(call.mask.data);
    if (call.mask.dims) {
        check_flat(call.mask, DType::u8, "mask", "uint8");
        if (call.mask.size() != bytes)
            fail("%s: the mask has not one bit for each word; make it of the same size", kOp);
        if (n % 8 && mask[bytes - 1] >> (n % 8)) fail("%s: the mask keeps an element beyond the words", kOp);
    } else {
        mask = nullptr;
    }
    std::vector<int64_t> ranks;  // of each piece's first kept element
    int64_t kept = 0;
    for (int64_t at = 0; at < bytes; at += kPieceBytes) {
        ranks.push_back(kept);
        const int64_t end = at + kPieceBytes < bytes ? at + kPieceBytes : bytes;
        kept += mask ? kept_in(mask, at, end) : 8 * (end - at);
    }
    if (!mask) kept = n;
    if (kept != held)
        fail("%s: %lld values for %lld kept elements", kOp, static_cast<long long>(held), static_cast<long long>(kept));
    const auto* values = static_cast<const float*>(call.values.data);
    const double limit = std::ldexp(1.0, 62 - bits);
    bool inside = std::isfinite(factor);
    for (int64_t i = 0; i < held; ++i) inside &= std::fabs(static_cast<double>(values[i]) * factor) < limit;
    if (!inside) fail("%s: a value is not finite or too large for its lane; nothing was added", kOp);

    const ExactKernels& kernels = choose_variant(kOp, kVariants, options.variant);
    const ExactTask task{static_cast<int64_t*>(call.words.data), mask, values, n, factor, weight, bits};
    parallel_pieces(options.threads, static_cast<int64_t>(ranks.size()), [&](int64_t piece) {
        const int64_t first = piece * kPieceBytes;
        const int64_t last = first + kPieceBytes < bytes ? first + kPieceBytes : bytes;
        kernels.add(task, first, last, ranks[static_cast<size_t>(piece)]);
    });
}

}  // namespace edgeprune
