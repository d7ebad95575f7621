// Vectors of 16-bit floats.
#pragma once
#include "core/half.h"
#include "core/simd.h"

namespace speq::SPEQ_ISA {

#if SPEQ_AVX2

// out[j * stride + i] = rows[i][d + j] as float32, for 16 rows and 8 columns
SPEQ_INLINE void transpose_fp16(const uint16_t* const (&rows)[16], int d, float* out, int stride) {
    __m256i a[8], b[8];
    unroll<8>([&](auto i) SPEQ_LAMBDA {  // rows i and i + 8 in the two lanes
        const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + d));
        const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i + 8] + d));
        a[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    });
    unroll<4>([&](auto i) SPEQ_LAMBDA {
        b[i] = _mm256_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
        b[i + 4] = _mm256_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
    });
    unroll<4>([&](auto i) SPEQ_LAMBDA {  // columns 0, 1 of the first four rows in a[0], of the others in a[1], ...
        a[2 * i] = _mm256_unpacklo_epi32(b[2 * i], b[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(b[2 * i], b[2 * i + 1]);
    });
    unroll<8>([&](auto j) SPEQ_LAMBDA {
        constexpr int from = j / 4 * 4 + j / 2 % 2;
        const __m256i column =
            j % 2 ? _mm256_unpackhi_epi64(a[from], a[from + 2]) : _mm256_unpacklo_epi64(a[from], a[from + 2]);
#if SPEQ_AVX512
        _mm512_storeu_ps(out + j * stride, _mm512_cvtph_ps(column));
#else
        _mm256_storeu_ps(out + j * stride, _mm256_cvtph_ps(_mm256_castsi256_si128(column)));
        _mm256_storeu_ps(out + j * stride + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(column, 1)));
#endif
    });
}

#else

SPEQ_INLINE void transpose_fp16(const uint16_t* const (&rows)[16], int d, float* out, int stride) {
    for (int j = 0; j < 8; ++j)
        for (int i = 0; i < 16; ++i) out[j * stride + i] = fp16_to_float(rows[i][d + j]);
}

#endif

}  // namespace speq::SPEQ_ISA
