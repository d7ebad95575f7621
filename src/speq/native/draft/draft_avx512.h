// The AVX-512 draft product: two rows at a time, and VNNI, which sums four byte products into an int32.
#pragma once
#include "gemm/block_decoder.h"
#include "gemm/row_sums.h"

namespace speq::SPEQ_ISA {

template <class F>
void draft_rows(const SplitWeight& w, const DraftRow& x, int begin, int end, float* y) {
    constexpr int halves = F::halves ? 2 : 1;
    const auto both = [](const void* p) SPEQ_LAMBDA { return _mm512_loadu_si512(p); };  // 32 bytes for either row
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i lut = _mm512_add_epi8(
        _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(w.levels))), _mm512_set1_epi8(64));
    const int blocks = w.blocks(), shift = w.group_shift();
    const uint8_t* codes = w.codes_at(begin, 0);
    prefetch_first(codes, w.scales_at(begin));
    for (int rb = begin; rb < end; ++rb, y += kRowsPerBlock) {
        const uint16_t* scales = w.scales_at(rb);
        __m512 acc[kWides] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int b = 0; b < blocks; ++b, codes += kRowsPerBlock * kBlock / 2) {
            const int group = F::halves ? 2 * b : b >> shift;
            unroll<2>([&](auto i) SPEQ_LAMBDA { prefetch(codes + kCodesAhead + 64 * i); });
            prefetch(scales + group * kRowsPerBlock + kScalesAhead);
            const int8_t* values = x.values + b * kBlock * kWideRows;
            const __m512i x0 = both(values), x1 = both(values + 64);
            const auto scaled = [&](int half, auto i) SPEQ_LAMBDA {
                const __m512i four = four_scales(scales + (group + half) * kRowsPerBlock);
                return _mm512_mul_ps(row_scales<i>(four), _mm512_set1_ps(x.scales[2 * b + half]));
            };
            const int32_t* offsets = x.offsets + halves * 16 * b;
            const __m512i start = both(offsets);
            unroll<kWides>([&](auto i) SPEQ_LAMBDA {
                const __m512i c = _mm512_loadu_si512(codes + 64 * i);
                const __m512i w0 = _mm512_shuffle_epi8(lut, _mm512_and_si512(c, nibble));
                const __m512i w1 = _mm512_shuffle_epi8(lut, _mm512_and_si512(_mm512_srli_epi16(c, 4), nibble));
                __m512i dot = _mm512_dpbusd_epi32(start, w0, x0);
                if constexpr (F::halves) {
                    acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scaled(0, i), acc[i]);
                    dot = both(offsets + 16);
                }
                dot = _mm512_dpbusd_epi32(dot, w1, x1);
                acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scaled(halves - 1, i), acc[i]);
            });
        }
        sum_rows<1>([&](auto i, auto) SPEQ_LAMBDA { return Wide{acc[i]}; }, y);
    }
}

}  // namespace speq::SPEQ_ISA
