// The AVX-512 draft product: two rows at a time, and VNNI, which sums four byte products into an int32.
#pragma once
#include "gemm/block_decoder.h"
#include "gemm/row_sums.h"

namespace speq::SPEQ_ISA {

constexpr int kDraftTile = 8;

// y[token][4] of a row block for M tokens. Planes to come are asked for where `ahead` says so.
template <class F, int M>
void draft_row_block(const SplitWeight& w, const DraftRow* x, int rb, bool ahead, float* y) {
    constexpr int halves = F::halves ? 2 : 1;
    const auto both = [](const void* p) SPEQ_LAMBDA { return _mm512_loadu_si512(p); };  // 32 bytes for either row
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i lut = _mm512_add_epi8(
        _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(w.levels))), _mm512_set1_epi8(64));
    const int blocks = w.blocks(), shift = w.group_shift();
    const uint8_t* codes = w.codes_at(rb, 0);
    const uint16_t* scales = w.scales_at(rb);
    __m512 acc[kWides][M];
    unroll<kWides>([&](auto i)
                       SPEQ_LAMBDA { unroll<M>([&](auto t) SPEQ_LAMBDA { acc[i][t] = _mm512_setzero_ps(); }); });
    for (int b = 0; b < blocks; ++b, codes += kRowsPerBlock * kBlock / 2) {
        const int group = F::halves ? 2 * b : b >> shift;
        if (ahead) {
            unroll<2>([&](auto i) SPEQ_LAMBDA { prefetch(codes + kCodesAhead + 64 * i); });
            prefetch(scales + group * kRowsPerBlock + kScalesAhead);
        }
        unroll<kWides>([&](auto i) SPEQ_LAMBDA {
            const __m512i c = _mm512_loadu_si512(codes + 64 * i);
            const __m512i w0 = _mm512_shuffle_epi8(lut, _mm512_and_si512(c, nibble));
            const __m512i w1 = _mm512_shuffle_epi8(lut, _mm512_and_si512(_mm512_srli_epi16(c, 4), nibble));
            __m512 scale[halves];
            unroll<halves>([&](auto h) SPEQ_LAMBDA {
                scale[h] = row_scales<i>(four_scales(scales + (group + h) * kRowsPerBlock));
            });
            unroll<M>([&](auto t) SPEQ_LAMBDA {
                const auto add = [&](__m512i dot, int half) SPEQ_LAMBDA {
                    const __m512 scaled = _mm512_mul_ps(scale[half], _mm512_set1_ps(x[t].scales[2 * b + half]));
                    acc[i][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scaled, acc[i][t]);
                };
                const int8_t* values = x[t].values + b * kBlock * kWideRows;
                const int32_t* offsets = x[t].offsets + halves * 16 * b;
                __m512i dot = _mm512_dpbusd_epi32(both(offsets), w0, both(values));
                if constexpr (F::halves) {
                    add(dot, 0);
                    dot = both(offsets + 16);
                }
                add(_mm512_dpbusd_epi32(dot, w1, both(values + 64)), halves - 1);
            });
        });
    }
    sum_rows<M>([&](auto i, auto t) SPEQ_LAMBDA { return Wide{acc[i][t]}; }, y);
}

}  // namespace speq::SPEQ_ISA
