// The k largest: a sample foretells a narrow range of magnitudes that holds the k-th largest; one pass marks what lies
// above it and gathers what lies in it; the rest is decided among the few gathered. Where the sample was wrong (it
// never decides, it only saves passes), histograms narrow the range exactly.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/scratch.h"
#include "base/threads.h"
#include "ops/packing_plan.h"

namespace edgeprune {
namespace {

long long number(int64_t n) { return static_cast<long long>(n); }

constexpr int64_t kSites = 16 * 1024, kRun = 8;  // of the sample: places, and neighbours taken at each
constexpr double kSigmas = 6.0;                  // neighbours are alike: fewer independent ones than it seems
constexpr int64_t kGathered = 16 * 1024;       // candidates that a piece hands on; one with more reads its tensor again
constexpr int64_t kNotWorthAPass = 64 * 1024;  // candidates that are not worth another pass

uint32_t key_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits & kMagnitude;
}

// ---- one of many keys by rank ---------------------------------------------------------------------------------------

int shift_for(uint32_t low, uint32_t high) {
    int shift = 0;
    while (((high - low) >> shift) >= static_cast<uint32_t>(kBuckets)) ++shift;
    return shift;
}

// A range of magnitudes, how many elements lie above it, and how many in it.
struct Range {
    uint32_t low, high;
    int64_t above, inside;
};

// Narrows a range to the bucket that holds the k-th largest. buckets: four tables.
Range narrowed(const Range& range, int shift, const uint32_t* buckets, int64_t k) {
    Range next = range;
    for (int64_t b = (range.high - range.low) >> shift; b >= 0; --b) {
        int64_t held = 0;
        for (int t = 0; t < 4; ++t) held += buckets[t * kBuckets + b];
        next.inside = held;
        next.low = range.low + (static_cast<uint32_t>(b) << shift);
        next.high = std::min<uint32_t>(range.high, next.low + ((1u << shift) - 1));
        if (next.above + held >= k) break;
        next.above += held;
    }
    return next;
}

using Lists = std::vector<std::pair<const float*, int64_t>>;

// A range that holds the k-th largest of gathered values (1 <= k <= count) and at most `enough` of them, or only one
// magnitude.
Range kth_of(const PackingKernels& kernels, const Lists& lists, Range range, int64_t k, int64_t enough = 0) {
    std::vector<uint32_t> buckets(4 * kBuckets);
    while (range.low < range.high && range.inside > enough) {
        const int shift = shift_for(range.low, range.high);
        std::fill(buckets.begin(), buckets.end(), 0u);
        for (const auto& [keys, count] : lists)
            kernels.histogram(keys, count, range.low, range.high, shift, buckets.data());
        range = narrowed(range, shift, buckets.data(), k);
    }
    return range;
}

// ---- the search -----------------------------------------------------------------------------------------------------

class Selection {
  public:
    Selection(const char* op, const std::vector<View>& xs, const std::vector<View>& masks,
              const PackingOptions& options)
        : op_(op), kernels_(packing_kernels(op, options)), threads_(options.threads), xs_(xs), masks_(masks) {
        if (xs.size() != masks.size())
            fail("%s: %zu tensors and %zu masks; give one each", op, xs.size(), masks.size());
        std::vector<int64_t> sizes;
        for (size_t i = 0; i < xs.size(); ++i) {
            check_packing_floats(op, "x", xs[i]);
            check_packing_mask_room(masks[i], xs[i].size());
            sizes.push_back(xs[i].size());
            total_ += sizes.back();
        }
        pieces_ = cut(sizes);
        if (total_ < kPieceElements) threads_ = 1;
    }

    int64_t total() const { return total_; }

    // Marks everything above `high`; throws on NaN.
    SplitCounts mark_above(int32_t high) { return split(high, high, nullptr, nullptr, 0); }

    void largest(int64_t k) {
        if (k == 0) {
            mark_above(static_cast<int32_t>(kInfinity));
            return;
        }
        // A bit for every element, each tensor's starting at a multiple of 64.
        std::vector<int64_t> start;
        int64_t bytes = 0;
        for (const View& x : xs_) {
            start.push_back(bytes);
            bytes += (x.size() + 63) / 64 * 8;
        }
        auto* const maybe = reinterpret_cast<uint8_t*>(scratch(Slot::maybe, bytes / 4 + 1));
        const int64_t room = total_ <= kPieceElements ? kPieceElements : kGathered;

        Range range = foretold(k);
        float* const keys = scratch(Slot::keys, (room + kKeysSlack) * static_cast<int64_t>(pieces_.size()));
        for (;;) {
            const SplitCounts counts = split(static_cast<int32_t>(range.low), static_cast<int32_t>(range.high), maybe,
                                             start.data(), room, keys);
            const int64_t below = total_ - counts.above - counts.maybe;
            if (counts.above >= k) {
                range = {range.high + 1, kInfinity, 0, counts.above};
            } else if (counts.above + counts.maybe < k) {
                range = {0, range.low - 1, counts.above + counts.maybe, below};
            } else {
                range.above = counts.above;
                range.inside = counts.maybe;
                if (range.low == range.high || range.inside <= std::max(kNotWorthAPass, total_ / 16)) break;
            }
            while (range.low < range.high && range.inside > kNotWorthAPass) narrow(range, k);
        }
        fill(range, k, maybe, start.data(), room, keys);
    }

  private:
    void check_packing_mask_room(const View& mask, int64_t n) const {
        check_packing_bytes(op_, "a mask", mask);
        if (mask.size() != (n + 7) / 8 || mask.read_only)
            fail("%s: a mask of %lld elements is %lld bytes that may be written, not %lld", op_, number(n),
                 number((n + 7) / 8), number(mask.size()));
    }

    const float* data(int tensor) const { return static_cast<const float*>(xs_[static_cast<size_t>(tensor)].data); }

    // The range that holds the k-th largest if the sample is to be believed; all of it for small inputs.
    Range foretold(int64_t k) const {
        Range all = {0, kInfinity, 0, total_};
        if (total_ < 16 * kSites) return all;
        float* const sample = scratch(Slot::keys, kSites * kRun);
        int64_t held = 0, begin = 0;
        size_t t = 0;
        for (int64_t site = 0; site < kSites; ++site) {
            const int64_t at = static_cast<int64_t>(static_cast<double>(total_) / kSites * static_cast<double>(site));
            while (t < xs_.size() && at >= begin + xs_[t].size()) begin += xs_[t++].size();
            if (t == xs_.size()) break;
            const int64_t run = std::min(kRun, begin + xs_[t].size() - at);
            for (int64_t i = 0; i < run; ++i) {
                const float value = data(static_cast<int>(t))[at - begin + i];
                sample[held++] = key_of(value) > kInfinity ? 0.0f : value;  // NaN is found by the pass over all
            }
        }
        const double share = static_cast<double>(k) / static_cast<double>(total_);
        const double middle = share * static_cast<double>(held);
        const double room = kSigmas * std::sqrt(middle * (1.0 - share)) + 4.0;
        const int64_t before = static_cast<int64_t>(middle - room), after = static_cast<int64_t>(middle + room) + 1;
        const Lists lists = {{sample, held}};
        const Range whole = {0, kInfinity, 0, held};
        const auto enough = static_cast<int64_t>(room / 8.0);  // the ends need not be exact
        if (before >= 1) all.high = kth_of(kernels_, lists, whole, before, enough).high;
        if (after <= held) all.low = kth_of(kernels_, lists, whole, after, enough).low;
        return all;
    }

    SplitCounts split(int32_t low, int32_t high, uint8_t* maybe, const int64_t* start, int64_t room,
                      float* keys = nullptr) {
        std::vector<SplitCounts> counts(pieces_.size());
        parallel_pieces(threads_, static_cast<int64_t>(pieces_.size()), [&](int64_t i) {
            const PackingPiece& piece = pieces_[static_cast<size_t>(i)];
            const auto t = static_cast<size_t>(piece.tensor);
            const SplitTask task = {data(piece.tensor),
                                    xs_[t].size(),
                                    static_cast<uint8_t*>(masks_[t].data),
                                    maybe ? maybe + start[t] : nullptr,
                                    low,
                                    high};
            counts[static_cast<size_t>(i)] = kernels_.split(
                task, piece.first, piece.last, keys ? keys + i * (room + kKeysSlack) : nullptr, keys ? room : -1);
        });
        SplitCounts sum = {};
        for (size_t i = 0; i < counts.size(); ++i) {
            if (counts[i].nan)
                fail("%s: tensor %d holds NaN, which has no magnitude; find out where it comes from", op_,
                     pieces_[i].tensor);
            pieces_[i].rank = sum.maybe;
            sum.above += counts[i].above;
            sum.maybe += counts[i].maybe;
            pieces_[i].last_rank = sum.maybe;
        }
        return sum;
    }

    // One pass that leaves about 1 / kBuckets of the range.
    void narrow(Range& range, int64_t k) const {
        const int shift = shift_for(range.low, range.high);
        const int64_t parts = std::min<int64_t>(std::max(threads_, 1), static_cast<int64_t>(pieces_.size()));
        std::vector<uint32_t> buckets(static_cast<size_t>(parts * 4 * kBuckets));
        parallel_pieces(threads_, parts, [&](int64_t part) {
            const auto n = static_cast<int64_t>(pieces_.size());
            for (int64_t i = n * part / parts; i < n * (part + 1) / parts; ++i) {
                const PackingPiece& piece = pieces_[static_cast<size_t>(i)];
                kernels_.histogram(data(piece.tensor) + piece.first, piece.last - piece.first, range.low, range.high,
                                   shift, buckets.data() + part * 4 * kBuckets);
            }
        });
        for (int64_t i = 4 * kBuckets; i < parts * 4 * kBuckets; ++i)
            buckets[static_cast<size_t>(i % (4 * kBuckets))] += buckets[static_cast<size_t>(i)];
        range = narrowed(range, shift, buckets.data(), k);
    }

    // Of the candidates in `maybe`, those above the k-th largest and the first ones equal to it.
    void fill(Range range, int64_t k, const uint8_t* maybe, const int64_t* start, int64_t room, const float* keys) {
        const auto pieces = static_cast<int64_t>(pieces_.size());
        std::vector<std::vector<float>> again(pieces_.size());  // of pieces with more candidates than room
        Lists lists(pieces_.size());
        const bool all_equal = range.low == range.high;
        for (int64_t i = 0; i < pieces; ++i) {
            const PackingPiece& piece = pieces_[static_cast<size_t>(i)];
            lists[static_cast<size_t>(i)] = {keys + i * (room + kKeysSlack), piece.last_rank - piece.rank};
            if (all_equal || piece.last_rank - piece.rank <= room) continue;
            std::vector<float>& own = again[static_cast<size_t>(i)];
            own.reserve(static_cast<size_t>(piece.last_rank - piece.rank + kKeysSlack));
            const float* const x = data(piece.tensor);
            const uint8_t* const bits = maybe + start[piece.tensor];
            for (int64_t e = piece.first; e < piece.last; ++e)
                if (packing_kept_reference(bits, e)) own.push_back(x[e]);
            own.resize(own.size() + kKeysSlack);
            lists[static_cast<size_t>(i)].first = own.data();
        }
        if (!all_equal) range = kth_of(kernels_, lists, range, k);
        const uint32_t kth = range.low;

        // How many equal ones each piece may take: the first k - above of all.
        std::vector<int64_t> quota(pieces_.size());
        int64_t left = k - range.above;
        for (size_t i = 0; i < pieces_.size(); ++i) {
            int64_t equal = lists[i].second;
            if (!all_equal) {
                equal = 0;
                for (int64_t j = 0; j < lists[i].second; ++j) equal += key_of(lists[i].first[j]) == kth;
            }
            quota[i] = std::min(left, equal);
            left -= quota[i];
        }
        parallel_pieces(threads_, pieces, [&](int64_t i) {
            const PackingPiece& piece = pieces_[static_cast<size_t>(i)];
            const auto t = static_cast<size_t>(piece.tensor);
            const float* key = lists[static_cast<size_t>(i)].first;
            if (piece.rank == piece.last_rank) return;
            int64_t equal = quota[static_cast<size_t>(i)];
            if (all_equal && !equal) return;
            auto* const mask = static_cast<uint8_t*>(masks_[t].data);
            const int64_t mask_bytes = (xs_[t].size() + 7) / 8;
            uint64_t take = 0;
            // Without branches, for none of the answers can be foretold; a bit of 0 takes nothing.
            const auto decide = [&](uint64_t bit, uint32_t magnitude) {
                const auto tie = static_cast<int64_t>((magnitude == kth) & (equal > 0) & (bit != 0));
                equal -= tie;
                take |= bit & (0 - static_cast<uint64_t>(tie | static_cast<int64_t>(magnitude > kth)));
            };
            for (int64_t at = piece.first / 8; at < (piece.last + 7) / 8; at += 8) {
                const auto size = static_cast<size_t>(std::min<int64_t>(8, mask_bytes - at));
                uint64_t word = 0, marked = 0;
                std::memcpy(&word, maybe + start[t] + at, size);
                std::memcpy(&marked, mask + at, size);
                take = 0;
                if (all_equal) {
                    for (; word; word &= word - 1) decide(word & (0 - word), kth);
                } else {
                    const int set = __builtin_popcountll(word);
                    const uint64_t rest = word & (word - 1);
                    decide(word & (0 - word), key_of(key[0]));
                    decide(rest & (0 - rest), key_of(key[1]));
                    word = rest & (rest - 1);
                    for (int j = 2; j < set; ++j, word &= word - 1) decide(word & (0 - word), key_of(key[j]));
                    key += set;
                }
                marked |= take;
                std::memcpy(mask + at, &marked, size);
            }
        });
    }

    const char* op_;
    const PackingKernels& kernels_;
    int threads_;
    const std::vector<View>& xs_;
    const std::vector<View>& masks_;
    std::vector<PackingPiece> pieces_;  // ranks count candidates
    int64_t total_ = 0;
};

}  // namespace

void select_largest(const std::vector<View>& xs, int64_t k, const std::vector<View>& masks,
                    const PackingOptions& options) {
    Selection selection("select_largest", xs, masks, options);
    if (k < 0 || k > selection.total())
        fail("select_largest: k is %lld, which is outside 0..%lld", number(k), number(selection.total()));
    selection.largest(k);
}

void select_above(const std::vector<View>& xs, uint32_t threshold, const std::vector<View>& masks,
                  const PackingOptions& options) {
    Selection("select_above", xs, masks, options).mark_above(static_cast<int32_t>(threshold) - 1);
}

}  // namespace edgeprune
