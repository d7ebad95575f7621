// The draft product in plain C++: what the others are compared with.
#pragma once
#include "core/kernels.h"
#include "gemm/block_decoder.h"

namespace speq::SPEQ_ISA {

constexpr int kDraftTile = 1;

// y[4] of a row block for one token.
template <class F, int>
void draft_row_block(const SplitWeight& w, const DraftRow* row, int rb, bool, float* y) {
    const DraftRow& x = *row;
    const int blocks = w.blocks(), shift = w.group_shift();
    uint16_t pairs[256];  // of a byte of codes: the level of its lower four bits and, eight bits up, of its upper four
    for (int i = 0; i < 256; ++i)
        pairs[i] =
            static_cast<uint16_t>(static_cast<uint8_t>(w.levels[i & 15]) | static_cast<uint8_t>(w.levels[i >> 4]) << 8);
    for (int r = 0; r < kRowsPerBlock; ++r) {
        Vec8 acc = zero();
        for (int b = 0; b < blocks; ++b) {
            const uint8_t* codes = w.codes_at(rb, b) + 32 * r;
            uint16_t levels[32];
            for (int i = 0; i < 32; ++i) levels[i] = pairs[codes[i]];
            int products[2][32], dot[2][8];
            const int8_t* values = x.values + b * kBlock;
            for (int i = 0; i < 32; ++i) {
                products[0][i] = static_cast<int8_t>(levels[i]) * values[i];
                products[1][i] = static_cast<int8_t>(levels[i] >> 8) * values[32 + i];
            }
            for (int half = 0; half < 2; ++half)
                for (int l = 0; l < 8; ++l) {
                    const int* four = products[half] + 4 * l;
                    dot[half][l] = (four[0] + four[1]) + (four[2] + four[3]);
                }
            for (int half = 0; half < (F::halves ? 2 : 1); ++half) {
                const int group = F::halves ? 2 * b + half : b >> shift;
                const float scale = bf16_to_float(w.scales_at(rb)[group * kRowsPerBlock + r]) * x.scales[2 * b + half];
                float d[8];
                for (int l = 0; l < 8; ++l) d[l] = static_cast<float>(F::halves ? dot[half][l] : dot[0][l] + dot[1][l]);
                acc = fma(load(d), broadcast(scale), acc);
            }
        }
        y[r] = sum(acc);
    }
}

}  // namespace speq::SPEQ_ISA
