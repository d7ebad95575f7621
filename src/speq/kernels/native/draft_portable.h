// The draft product in plain C++: what the others are compared with.
#pragma once
#include "block_decoder.h"
#include "kernels.h"

namespace speq::SPEQ_ISA {

template <class F>
void draft_rows(const SplitWeight& w, const DraftRow& x, int begin, int end, float* y) {
    const int blocks = w.blocks(), shift = w.group_shift();
    for (int rb = begin; rb < end; ++rb, y += kRowsPerBlock) {
        for (int r = 0; r < kRowsPerBlock; ++r) {
            Vec8 acc = zero();
            for (int b = 0; b < blocks; ++b) {
                const uint8_t* codes = w.codes_at(rb, b) + 32 * r;
                int dot[2][8] = {};
                for (int i = 0; i < 32; ++i) {
                    dot[0][i / 4] += w.levels[codes[i] & 15] * x.values[b * kBlock + i];
                    dot[1][i / 4] += w.levels[codes[i] >> 4] * x.values[b * kBlock + 32 + i];
                }
                for (int half = 0; half < (F::halves ? 2 : 1); ++half) {
                    const int group = F::halves ? 2 * b + half : b >> shift;
                    const float scale =
                        bf16_to_float(w.scales_at(rb)[group * kRowsPerBlock + r]) * x.scales[2 * b + half];
                    float d[8];
                    for (int l = 0; l < 8; ++l)
                        d[l] = static_cast<float>(F::halves ? dot[half][l] : dot[0][l] + dot[1][l]);
                    acc = fma(load(d), broadcast(scale), acc);
                }
            }
            y[r] = sum(acc);
        }
    }
}

}  // namespace speq::SPEQ_ISA
