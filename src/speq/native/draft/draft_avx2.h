// The AVX2 draft product: one row of weights at a time, byte products widened twice.
#pragma once
#include "gemm/block_decoder.h"
#include "gemm/row_sums.h"

namespace speq::SPEQ_ISA {

// The scales of four rows as float32.
SPEQ_INLINE __m128 four_scales(const uint16_t* scales) {
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
}

constexpr int kDraftTile = 2;

// y[token][4] of a row block for M tokens. Planes to come are asked for where `ahead` says so.
template <class F, int M>
void draft_row_block(const SplitWeight& w, const DraftRow* x, int rb, bool ahead, float* y) {
    constexpr int halves = F::halves ? 2 : 1;
    const auto vector = [](const void* p) SPEQ_LAMBDA { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); };
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const __m256i lut = _mm256_add_epi8(
        _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(w.levels))), _mm256_set1_epi8(64));
    const int blocks = w.blocks(), shift = w.group_shift();
    const uint8_t* codes = w.codes_at(rb, 0);
    const uint16_t* scales = w.scales_at(rb);
    __m256 acc[kRowsPerBlock][M];
    unroll<kRowsPerBlock>([&](auto r)
                              SPEQ_LAMBDA { unroll<M>([&](auto t) SPEQ_LAMBDA { acc[r][t] = _mm256_setzero_ps(); }); });
    for (int b = 0; b < blocks; ++b, codes += kRowsPerBlock * kBlock / 2) {
        const int group = F::halves ? 2 * b : b >> shift;
        if (ahead) {
            unroll<2>([&](auto i) SPEQ_LAMBDA { prefetch(codes + kCodesAhead + 64 * i); });
            prefetch(scales + group * kRowsPerBlock + kScalesAhead);
        }
        alignas(16) float scaled[M][halves][kRowsPerBlock];
        unroll<halves>([&](auto h) SPEQ_LAMBDA {
            const __m128 four = four_scales(scales + (group + h) * kRowsPerBlock);
            unroll<M>([&](auto t) SPEQ_LAMBDA {
                _mm_store_ps(scaled[t][h], _mm_mul_ps(four, _mm_set1_ps(x[t].scales[2 * b + h])));
            });
        });
        unroll<kRowsPerBlock>([&](auto r) SPEQ_LAMBDA {
            const __m256i c = vector(codes + 32 * r);
            const __m256i w0 = _mm256_shuffle_epi8(lut, _mm256_and_si256(c, nibble));
            const __m256i w1 = _mm256_shuffle_epi8(lut, _mm256_and_si256(_mm256_srli_epi16(c, 4), nibble));
            unroll<M>([&](auto t) SPEQ_LAMBDA {
                const auto add = [&](__m256i dot, int half) SPEQ_LAMBDA {
                    const __m256 scale = _mm256_broadcast_ss(scaled[t][half] + r);
                    acc[r][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, acc[r][t]);
                };
                const auto products = [&](__m256i weights, int half) SPEQ_LAMBDA {
                    const __m256i values = vector(x[t].values + b * kBlock + 32 * half);
                    return _mm256_madd_epi16(_mm256_maddubs_epi16(weights, values), ones);
                };
                const int32_t* offsets = x[t].offsets + halves * 8 * b;
                __m256i dot = _mm256_add_epi32(vector(offsets), products(w0, 0));
                if constexpr (F::halves) {
                    add(dot, 0);
                    dot = vector(offsets + 8);
                }
                add(_mm256_add_epi32(dot, products(w1, 1)), halves - 1);
            });
        });
    }
    sum_rows<M>([&](auto r, auto t) SPEQ_LAMBDA { return Wide{acc[r][t]}; }, y);
}

}  // namespace speq::SPEQ_ISA
