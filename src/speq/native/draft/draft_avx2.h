// The AVX2 draft product: one row at a time, byte products widened twice.
#pragma once
#include "gemm/block_decoder.h"
#include "gemm/row_sums.h"

namespace speq::SPEQ_ISA {

// The scales of four rows as float32.
SPEQ_INLINE __m128 four_scales(const uint16_t* scales) {
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
}

template <class F>
void draft_rows(const SplitWeight& w, const DraftRow& x, int begin, int end, float* y) {
    constexpr int halves = F::halves ? 2 : 1;
    const auto vector = [](const void* p) SPEQ_LAMBDA { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); };
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const __m256i lut = _mm256_add_epi8(
        _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(w.levels))), _mm256_set1_epi8(64));
    const int blocks = w.blocks(), shift = w.group_shift();
    const uint8_t* codes = w.codes_at(begin, 0);
    prefetch_first(codes, w.scales_at(begin));
    for (int rb = begin; rb < end; ++rb, y += kRowsPerBlock) {
        const uint16_t* scales = w.scales_at(rb);
        __m256 acc[kRowsPerBlock];
        for (auto& a : acc) a = _mm256_setzero_ps();
        for (int b = 0; b < blocks; ++b, codes += kRowsPerBlock * kBlock / 2) {
            const int group = F::halves ? 2 * b : b >> shift;
            unroll<2>([&](auto i) SPEQ_LAMBDA { prefetch(codes + kCodesAhead + 64 * i); });
            prefetch(scales + group * kRowsPerBlock + kScalesAhead);
            const __m256i x0 = vector(x.values + b * kBlock), x1 = vector(x.values + b * kBlock + 32);
            alignas(16) float scaled[halves][kRowsPerBlock];
            unroll<halves>([&](auto h) SPEQ_LAMBDA {
                const __m128 four = four_scales(scales + (group + h) * kRowsPerBlock);
                _mm_store_ps(scaled[h], _mm_mul_ps(four, _mm_set1_ps(x.scales[2 * b + h])));
            });
            const __m256i start = vector(x.offsets + halves * 8 * b);
            unroll<kRowsPerBlock>([&](auto r) SPEQ_LAMBDA {
                const __m256i c = vector(codes + 32 * r);
                const __m256i p0 = _mm256_maddubs_epi16(_mm256_shuffle_epi8(lut, _mm256_and_si256(c, nibble)), x0);
                const __m256i p1 = _mm256_maddubs_epi16(
                    _mm256_shuffle_epi8(lut, _mm256_and_si256(_mm256_srli_epi16(c, 4), nibble)), x1);
                __m256i dot = _mm256_add_epi32(start, _mm256_madd_epi16(p0, ones));
                if constexpr (F::halves) {
                    acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_broadcast_ss(scaled[0] + r), acc[r]);
                    dot = vector(x.offsets + halves * 8 * b + 8);
                }
                dot = _mm256_add_epi32(dot, _mm256_madd_epi16(p1, ones));
                acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_broadcast_ss(scaled[halves - 1] + r), acc[r]);
            });
        }
        sum_rows<1>([&](auto r, auto) SPEQ_LAMBDA { return Wide{acc[r]}; }, y);
    }
}

}  // namespace speq::SPEQ_ISA
