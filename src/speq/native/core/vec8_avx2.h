// Vec8 as one AVX2 register.
#pragma once
#include <cstdint>

#include "core/instruction_set.h"

namespace speq::SPEQ_ISA {

struct Vec8 {
    __m256 v;
};
SPEQ_INLINE Vec8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
SPEQ_INLINE void store(float* p, Vec8 a) { _mm256_storeu_ps(p, a.v); }
SPEQ_INLINE Vec8 broadcast(float x) { return {_mm256_set1_ps(x)}; }
SPEQ_INLINE Vec8 zero() { return {_mm256_setzero_ps()}; }
SPEQ_INLINE Vec8 add(Vec8 a, Vec8 b) { return {_mm256_add_ps(a.v, b.v)}; }
SPEQ_INLINE Vec8 mul(Vec8 a, Vec8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
SPEQ_INLINE Vec8 div(Vec8 a, Vec8 b) { return {_mm256_div_ps(a.v, b.v)}; }
SPEQ_INLINE Vec8 max(Vec8 a, Vec8 b) { return {_mm256_max_ps(a.v, b.v)}; }
SPEQ_INLINE Vec8 min(Vec8 a, Vec8 b) { return {_mm256_min_ps(a.v, b.v)}; }
SPEQ_INLINE Vec8 fma(Vec8 a, Vec8 b, Vec8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
SPEQ_INLINE Vec8 fma_short(Vec8 a, Vec8 b, Vec8 c) { return fma(a, b, c); }
SPEQ_INLINE Vec8 load_fp16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
SPEQ_INLINE void store_fp16(uint16_t* p, Vec8 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
// ((0+4)+(2+6)) + ((1+5)+(3+7))
SPEQ_INLINE float sum(Vec8 a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
SPEQ_INLINE float largest(Vec8 a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
// v[i][j] becomes v[j][i]
SPEQ_INLINE void transpose(Vec8 (&v)[8]) {
    __m256 a[8], b[8];
    unroll<4>([&](auto i) SPEQ_LAMBDA {
        a[2 * i] = _mm256_unpacklo_ps(v[2 * i].v, v[2 * i + 1].v);
        a[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i].v, v[2 * i + 1].v);
    });
    unroll<2>([&](auto i) SPEQ_LAMBDA {
        b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
        b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
        b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
        b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
    });
    unroll<4>([&](auto i) SPEQ_LAMBDA {
        v[i] = {_mm256_permute2f128_ps(b[i], b[i + 4], 0x20)};
        v[i + 4] = {_mm256_permute2f128_ps(b[i], b[i + 4], 0x31)};
    });
}
// y[4 j + i] += rows[i][j] for j < count
SPEQ_INLINE void add_transposed(const Vec8 (&rows)[4], int count, float* y) {
    const __m256 a = _mm256_unpacklo_ps(rows[0].v, rows[1].v), b = _mm256_unpackhi_ps(rows[0].v, rows[1].v);
    const __m256 c = _mm256_unpacklo_ps(rows[2].v, rows[3].v), d = _mm256_unpackhi_ps(rows[2].v, rows[3].v);
    const __m256 t[4] = {_mm256_shuffle_ps(a, c, 0x44), _mm256_shuffle_ps(a, c, 0xee),  // columns j and j + 4
                         _mm256_shuffle_ps(b, d, 0x44), _mm256_shuffle_ps(b, d, 0xee)};
    const auto add_to = [](float* p, __m128 v) SPEQ_LAMBDA { _mm_storeu_ps(p, _mm_add_ps(_mm_loadu_ps(p), v)); };
    unroll<4>([&](auto j) SPEQ_LAMBDA {
        if (j < count) add_to(y + 4 * j, _mm256_castps256_ps128(t[j]));
        if (j + 4 < count) add_to(y + 4 * j + 16, _mm256_extractf128_ps(t[j], 1));
    });
}
SPEQ_INLINE Vec8 round_to_integer(Vec8 a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integral n in [-126, 127]
SPEQ_INLINE Vec8 power_of_two(Vec8 n) {
    const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
    return {_mm256_castsi256_ps(bits)};
}

}  // namespace speq::SPEQ_ISA
