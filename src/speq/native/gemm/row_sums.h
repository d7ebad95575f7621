// The sums of the lanes of accumulators, each in the order of sum(), for the four rows of a row block at once.
#pragma once
#include <algorithm>

#include "gemm/pair.h"

namespace speq::SPEQ_ISA {

#if SPEQ_AVX512

// y[token][row] for Tokens <= 4; accumulators of rows 0 and 1 in a[0], of rows 2 and 3 in a[1].
template <int Tokens>
SPEQ_INLINE void sum_few(const Wide (&a)[kWides][Tokens], float* y) {
    const auto fold = []<int Low, int High>(__m512 a, __m512 b, Index<Low>, Index<High>) SPEQ_LAMBDA {
        return _mm512_add_ps(_mm512_shuffle_ps(a, b, Low), _mm512_shuffle_ps(a, b, High));
    };
    __m512 s[4];  // row r in 128-bit lane r
    unroll<4>([&](auto t) SPEQ_LAMBDA {
        constexpr int token = t < Tokens ? t : 0;
        const __m512 first = a[0][token].v, second = a[1][token].v;
        s[t] = _mm512_add_ps(_mm512_shuffle_f32x4(first, second, 0x88), _mm512_shuffle_f32x4(first, second, 0xdd));
    });
    constexpr Index<0x44> front;
    constexpr Index<0xee> back;
    const __m512 low = fold(s[0], s[1], front, back), high = fold(s[2], s[3], front, back);
    const __m512 sums = fold(low, high, Index<0x88>{}, Index<0xdd>{});
    const __m512i by_token = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_mask_storeu_ps(y, static_cast<__mmask16>((1u << 4 * Tokens) - 1), _mm512_permutexvar_ps(by_token, sums));
}

#elif SPEQ_AVX2

template <int Tokens>
SPEQ_INLINE void sum_few(const Wide (&a)[kWides][Tokens], float* y) {
    unroll<Tokens>([&](auto t) SPEQ_LAMBDA {
        const auto halves = [](Wide a, Wide b) SPEQ_LAMBDA {  // one row in either half
            return _mm256_add_ps(_mm256_permute2f128_ps(a.v, b.v, 0x20), _mm256_permute2f128_ps(a.v, b.v, 0x31));
        };
        const __m256 low = halves(a[0][t], a[1][t]), high = halves(a[2][t], a[3][t]);
        __m256 s = _mm256_add_ps(_mm256_shuffle_ps(low, high, 0x44), _mm256_shuffle_ps(low, high, 0xee));
        s = _mm256_add_ps(s, _mm256_movehdup_ps(s));
        const __m128 even = _mm256_castps256_ps128(s), odd = _mm256_extractf128_ps(s, 1);  // rows 0 and 2, 1 and 3
        _mm_storeu_ps(y + t * kRowsPerBlock, _mm_movelh_ps(_mm_unpacklo_ps(even, odd), _mm_unpackhi_ps(even, odd)));
    });
}

#else

template <int Tokens>
SPEQ_INLINE void sum_few(const Wide (&a)[kWides][Tokens], float* y) {
    for (int t = 0; t < Tokens; ++t)
        for (int r = 0; r < kRowsPerBlock; ++r) y[t * kRowsPerBlock + r] = sum(a[r][t]);
}

#endif

// y[token][row] for the accumulators acc(vector of rows, token) of M tokens.
template <int M, class Accumulators>
SPEQ_INLINE void sum_rows(Accumulators&& acc, float* y) {
    unroll<(M + 3) / 4>([&](auto group) SPEQ_LAMBDA {
        constexpr int first = 4 * group, count = std::min(4, M - first);
        Wide a[kWides][count];
        unroll<kWides>([&](auto i) SPEQ_LAMBDA {
            unroll<count>([&](auto t) SPEQ_LAMBDA { a[i][t] = acc(i, Index<first + t>{}); });
        });
        sum_few(a, y + first * kRowsPerBlock);
    });
}

}  // namespace speq::SPEQ_ISA
