// Products with kept blocks of weights on the matrix units of a GPU: half or bfloat16 words, float32 sums. A block is
// `block` outputs by `block` inputs of one tap; what it costs does not depend on how its weights are chosen, so that a
// mask of blocks does the share of the dense work that it keeps. Plain structs of device pointers, as in cuda.h.
// Pictures lie with channels last: (N, H, W, channels); a linear layer is a picture of one pixel.
#pragma once

#include <cstdint>

namespace edgeprune {

struct BlocksGeometry {
    int images, channels, rows;  // of what is read, and of what is made
    int in_size[2], out_size[2];
    int stride[2], padding[2], dilation[2], taps_w;
    bool backward;  // dx from dy: pixel h reads (h + padding - tap * dilation) / stride where that is whole
};

// Kept blocks, those of one row of blocks after the other. Word (i, j) of block b lies at
// weights[at[b] + i * step[b] + j], i being the output and j the input, whichever of them is read here.
struct BlocksPlan {
    int block;              // 32 or 64
    int kept;               // blocks
    int block_rows;         // rows / block
    const int32_t* first;   // (block_rows + 1)
    const int32_t* row;     // (kept) row of blocks
    const int32_t* source;  // (kept) block of channels
    const int32_t* tap;     // (kept)
    const int32_t *at, *step;
};

// out[n, p, r] = bias[r] + sum over kept blocks. bias float32 or null.
struct BlocksCuda {
    BlocksGeometry geometry;
    BlocksPlan plan;
    const uint16_t *in, *weights;
    const float* bias;
    uint16_t* out;
    bool bf16;
};
int masked_blocks_cuda(const BlocksCuda&, void* stream);

// dw at kept blocks from x (`in`) and dy, of the forward geometry.
struct BlockDotsCuda {
    BlocksGeometry geometry;
    BlocksPlan plan;
    const uint16_t *in, *dy;
    uint16_t* dw;
    float* partial;  // workspace, (splits, kept, block, block)
    int splits;
    bool bf16;
};
int masked_block_dots_cuda(const BlockDotsCuda&, void* stream);

}  // namespace edgeprune
