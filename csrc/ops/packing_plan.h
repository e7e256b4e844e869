// Shared by the packing operators: the table of variants, checks of one view, and tensors cut into pieces with ranks.
#pragma once

#include <vector>

#include "ops/packing.h"

namespace edgeprune {

const PackingKernels& packing_kernels(const char* op, const PackingOptions& options);

// A view that stands for nothing, as Python's None, was never filled in.
inline bool given(const View& view) { return view.data || view.dims; }

// Two 32-bit keys of the random numbers from a seed: neighbouring seeds give unrelated ones.
void make_keys(uint64_t seed, uint32_t& key0, uint32_t& key1);

void check_packing_floats(const char* op, const char* name, const View& view);
void check_packing_bytes(const char* op, const char* name, const View& view);
// A mask of n elements, or no data.
void check_packing_mask(const char* op, const View& mask, int64_t n);

// Elements that a thread takes at a time: 256 KB of floats, a quarter of the second-level cache.
constexpr int64_t kPieceElements = 64 * 1024;
constexpr int64_t kLongestPiece = int64_t{1} << 31;  // kernels count within a piece in 32 bits

// A piece of one tensor; `rank` of its first element and the one behind its last (0 where no mask was counted).
struct PackingPiece {
    int tensor;
    int64_t first, last, rank, last_rank;
};

// Cuts tensors of the given sizes into pieces of kPieceElements, without ranks.
std::vector<PackingPiece> cut(const std::vector<int64_t>& sizes);

// A mask that was checked, cut into pieces with ranks; a null mask keeps all.
struct MaskPlan {
    std::vector<PackingPiece> pieces;
    int64_t kept = 0;
};
MaskPlan plan_mask(const PackingKernels& kernels, const uint8_t* mask, int64_t n, int threads, int tensor = 0);

// Joins neighbouring pieces, those of few kept elements with each other and the others too, while that leaves eight for
// each thread. The plan is of one tensor.
void join_alike(MaskPlan& plan, int threads);

// Moves the ends of pieces to where the rank is a multiple of kScaleBlock, so that no block of int8 is cut.
void align_to_blocks(MaskPlan& plan, const uint8_t* mask, int64_t n);

}  // namespace edgeprune
