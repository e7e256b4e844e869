#include "ops/gaps.h"

#include "base/error.h"
#include "kernels/gaps/gaps.h"
#include "ops/packing_plan.h"

namespace edgeprune {
namespace {

#define EDGEPRUNE_ENTRY(isa) &gaps_##isa,
const GapsKernels* const kVariants[] = {EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_ENTRY)};
#undef EDGEPRUNE_ENTRY

long long number(int64_t n) { return static_cast<long long>(n); }

const uint8_t* bytes_of(const View& view) { return static_cast<const uint8_t*>(view.data); }

}  // namespace

GapPlan plan_gaps(const View& mask, int64_t n, const PackingOptions& options) {
    const char* const op = "encode_gaps";
    const int64_t kept = mask_kept(op, mask, n, options);
    if (!mask.data || kept == 0) return {kept, 0, 0};
    const GapsKernels& kernels = choose_variant(op, kVariants, options.variant);
    // Beyond this parameter codes only grow: the quotients add up to less than one for each kept element.
    int last = 0;
    while (last < kMaxRice && n >> last > kept) ++last;
    uint64_t bits[kMaxRice + 1];
    kernels.measure(bytes_of(mask), n, last, bits);
    int best = 0;
    for (int p = 1; p <= last; ++p)
        if (bits[p] < bits[best]) best = p;
    uint64_t length = bits[best];
    const uint64_t shortest = 6 * static_cast<uint64_t>((n + 7) / 8);  // of the byte code, for any mask
    if (shortest < length) {
        const uint64_t bytes = kernels.measure_bytes(bytes_of(mask), n);
        if (bytes < length) {
            best = kByteCode;
            length = bytes;
        }
    }
    return {kept, best, static_cast<int64_t>((length + 7) / 8)};
}

void encode_gaps(const View& mask, int64_t n, const GapPlan& plan, const View& out, const PackingOptions& options) {
    const char* const op = "encode_gaps";
    check_packing_mask(op, mask, n);
    check_packing_bytes(op, "out", out);
    if (out.size() != plan.bytes || out.read_only) fail("%s: out must be %lld bytes", op, number(plan.bytes));
    if (plan.bytes == 0) return;
    choose_variant(op, kVariants, options.variant)
        .encode(bytes_of(mask), n, plan.parameter, static_cast<uint8_t*>(out.data), plan.bytes);
}

void decode_gaps(const View& data, int64_t count, int64_t n, int64_t parameter, const View& mask,
                 const PackingOptions& options) {
    const char* const op = "decode_gaps";
    check_packing_bytes(op, "data", data);
    if ((parameter < 0 || parameter > kMaxRice) && parameter != kByteCode)
        fail("%s: parameter %lld is unknown; 0..%d and %d are known", op, number(parameter), kMaxRice, kByteCode);
    if (count < 0 || count > n)
        fail("%s: %lld kept elements among %lld cannot be; the message is damaged", op, number(count), number(n));
    check_packing_bytes(op, "mask", mask);
    if (mask.size() != (n + 7) / 8 || mask.read_only)
        fail("%s: the mask must be %lld bytes that may be written", op, number((n + 7) / 8));
    const GapsKernels& kernels = choose_variant(op, kVariants, options.variant);
    switch (kernels.decode(bytes_of(data), data.size(), count, n, static_cast<int>(parameter),
                           static_cast<uint8_t*>(mask.data))) {
        case GapError::none:
            return;
        case GapError::truncated:
            fail("%s: the data end before %lld kept elements are read; the message is damaged", op, number(count));
        case GapError::outside:
            fail("%s: a kept element lies beyond the %lld there are; the message is damaged", op, number(n));
        case GapError::count:
            fail("%s: the data do not keep %lld of %lld elements; the message is damaged", op, number(count),
                 number(n));
        case GapError::leftover:
            fail("%s: something is left over after %lld kept elements; the message is damaged", op, number(count));
    }
}

}  // namespace edgeprune
