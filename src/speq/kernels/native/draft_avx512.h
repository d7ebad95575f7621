// The AVX-512 draft product: two rows at a time, and VNNI, which sums four byte products into an int32.
#pragma once
#include "block_decoder.h"
#include "draft_scales.h"

namespace speq::SPEQ_ISA {

template <class F>
void draft_rows(const SplitWeight& w, const DraftRow& x, int begin, int end, float* y) {
    const __m512i nibble = _mm512_set1_epi8(15), none = _mm512_setzero_si512();
    const __m512i lut = _mm512_add_epi8(
        _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(w.levels))), _mm512_set1_epi8(64));
    const int blocks = w.blocks(), shift = w.group_shift();
    const uint8_t* codes = w.codes_at(begin, 0);
    for (int rb = begin; rb < end; ++rb, y += kRowsPerBlock) {
        const uint16_t* scales = w.scales_at(rb);
        __m512 acc[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        __m128 offset = _mm_setzero_ps();
        for (int b = 0; b < blocks; ++b, codes += kRowsPerBlock * kBlock / 2) {
            const __m512i x0 =
                _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.values + b * kBlock)));
            const __m512i x1 = _mm512_broadcast_i64x4(
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.values + b * kBlock + 32)));
            _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetch), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetch + 64), _MM_HINT_T0);
            const int group = F::halves ? 2 * b : b >> shift;
            offset = add_offset<F>(scales, group, x, b, offset);
            unroll<2>([&](auto i) SPEQ_LAMBDA {
                const __m512i c = _mm512_loadu_si512(codes + 64 * i);
                const __m512i w0 = _mm512_shuffle_epi8(lut, _mm512_and_si512(c, nibble));
                const __m512i w1 = _mm512_shuffle_epi8(lut, _mm512_and_si512(_mm512_srli_epi16(c, 4), nibble));
                const uint16_t* at = scales + group * kRowsPerBlock + 2 * i;
                const __m512 s0 = _mm512_mul_ps(row_scales(at), _mm512_set1_ps(x.scales[2 * b]));
                const __m512i d0 = _mm512_dpbusd_epi32(none, w0, x0);
                if constexpr (F::halves) {
                    const __m512 s1 =
                        _mm512_mul_ps(row_scales(at + kRowsPerBlock), _mm512_set1_ps(x.scales[2 * b + 1]));
                    acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d0), s0, acc[i]);
                    acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(none, w1, x1)), s1, acc[i]);
                } else {
                    acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(d0, w1, x1)), s0, acc[i]);
                }
            });
        }
        alignas(16) float o[4];
        _mm_store_ps(o, offset);
        unroll<2>([&](auto i) SPEQ_LAMBDA { wide_sum(Wide{acc[i]}, y + 2 * i); });
        for (int r = 0; r < kRowsPerBlock; ++r) y[r] += o[r];
    }
}

}  // namespace speq::SPEQ_ISA
