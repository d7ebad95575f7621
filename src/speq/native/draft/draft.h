// The draft product: int8 activations times the 4-bit codes' table values, one scale a group. It need not be exact,
// only fast; still it gives the same bits on every path.
//
// Codes become unsigned bytes level + 64 in 0..128; activations are int8 in -127..127, so that two products fit an
// int16 (2 * 128 * 127 = 32512), which is how far the AVX2 multiply-add goes before widening. Sums begin at what takes
// the 64 back.
#pragma once
#include "core/simd.h"

namespace speq::SPEQ_ISA {

// How far ahead the planes are asked for.
constexpr int kCodesAhead = 6144;  // bytes, 48 blocks
constexpr int kScalesAhead = 256;  // scales, 64 groups

// Asks for what the loops over blocks take for asked.
SPEQ_INLINE void prefetch_first(const uint8_t* codes, const uint16_t* scales) {
    for (int i = 0; i < kCodesAhead; i += 64) prefetch(codes + i);
    for (int i = 0; i < kScalesAhead; i += 32) prefetch(scales + i);
}

}  // namespace speq::SPEQ_ISA

#if SPEQ_AVX512
#include "draft/draft_avx512.h"
#elif SPEQ_AVX2
#include "draft/draft_avx2.h"
#else
#include "draft/draft_portable.h"
#endif

namespace speq::SPEQ_ISA {

// y[row_block - begin][token][4] for row blocks begin..end-1. As many tokens as their accumulators leave room for share
// the work of decoding; a token's sums are the same in any company.
template <class F>
void draft_rows(const SplitWeight& w, const DraftRow* x, int tokens, int begin, int end, float* y) {
    prefetch_first(w.codes_at(begin, 0), w.scales_at(begin));
    for (int rb = begin; rb < end; ++rb)
        for (int token = 0; token < tokens;) {
            const int left = tokens - token, tiles = (left + kDraftTile - 1) / kDraftTile;
            const int size = (left + tiles - 1) / tiles;
            unroll<kDraftTile>([&](auto i) SPEQ_LAMBDA {
                if (size == i + 1) draft_row_block<F, i + 1>(w, x + token, rb, token == 0, y);
            });
            token += size;
            y += size * kRowsPerBlock;
        }
}

}  // namespace speq::SPEQ_ISA
