// The AVX2 draft product: one row at a time, byte products widened twice.
#pragma once
#include "block_decoder.h"
#include "draft_scales.h"

namespace speq::SPEQ_ISA {

template <class F>
void draft_rows(const SplitWeight& w, const DraftRow& x, int begin, int end, float* y) {
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const __m256i lut = _mm256_add_epi8(
        _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(w.levels))), _mm256_set1_epi8(64));
    const int blocks = w.blocks(), shift = w.group_shift();
    const uint8_t* codes = w.codes_at(begin, 0);
    for (int rb = begin; rb < end; ++rb, y += kRowsPerBlock) {
        const uint16_t* scales = w.scales_at(rb);
        __m256 acc[kRowsPerBlock];
        for (auto& a : acc) a = _mm256_setzero_ps();
        __m128 offset = _mm_setzero_ps();
        for (int b = 0; b < blocks; ++b, codes += kRowsPerBlock * kBlock / 2) {
            const __m256i x0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.values + b * kBlock));
            const __m256i x1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.values + b * kBlock + 32));
            _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetch), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetch + 64), _MM_HINT_T0);
            const int group = F::halves ? 2 * b : b >> shift;
            offset = add_offset<F>(scales, group, x, b, offset);
            alignas(16) float s0[4], s1[4];
            _mm_store_ps(s0, _mm_mul_ps(group_scales(scales, group), _mm_set1_ps(x.scales[2 * b])));
            if constexpr (F::halves)
                _mm_store_ps(s1, _mm_mul_ps(group_scales(scales, group + 1), _mm_set1_ps(x.scales[2 * b + 1])));
#pragma GCC unroll 4
            for (int r = 0; r < kRowsPerBlock; ++r) {
                const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * r));
                const __m256i p0 = _mm256_maddubs_epi16(_mm256_shuffle_epi8(lut, _mm256_and_si256(c, nibble)), x0);
                const __m256i p1 = _mm256_maddubs_epi16(
                    _mm256_shuffle_epi8(lut, _mm256_and_si256(_mm256_srli_epi16(c, 4), nibble)), x1);
                if constexpr (F::halves) {
                    const __m256 d0 = _mm256_cvtepi32_ps(_mm256_madd_epi16(p0, ones));
                    const __m256 d1 = _mm256_cvtepi32_ps(_mm256_madd_epi16(p1, ones));
                    acc[r] = _mm256_fmadd_ps(d0, _mm256_broadcast_ss(s0 + r), acc[r]);
                    acc[r] = _mm256_fmadd_ps(d1, _mm256_broadcast_ss(s1 + r), acc[r]);
                } else {
                    const __m256i d = _mm256_add_epi32(_mm256_madd_epi16(p0, ones), _mm256_madd_epi16(p1, ones));
                    acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(d), _mm256_broadcast_ss(s0 + r), acc[r]);
                }
            }
        }
        alignas(16) float o[4];
        _mm_store_ps(o, offset);
        for (int r = 0; r < kRowsPerBlock; ++r) y[r] = sum(Vec8{acc[r]}) + o[r];
    }
}

}  // namespace speq::SPEQ_ISA
