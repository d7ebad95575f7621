// The AVX-512 block decoder: two rows at a time, one in each half of a register.
#pragma once
#include "format.h"
#include "pair.h"
#include "split.h"

namespace speq::SPEQ_ISA {

struct Table {
    __m512i low,
        high;  // byte i: low / high byte of sign << 15 | T[c] for code i; a row's table in both of its 128-bit lanes
};

// The BF16 scales of two neighbouring rows as float32, eight lanes each.
SPEQ_INLINE __m512 row_scales(const uint16_t* scales) {
    int both;
    std::memcpy(&both, scales, sizeof both);
    const __m512i shift = _mm512_setr_epi32(16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i bits = _mm512_sllv_epi32(_mm512_set1_epi32(both), shift);
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

template <class F>
class TableMaker {
  public:
    SPEQ_INLINE explicit TableMaker(const SplitWeight& w) : edges_(_mm512_broadcast_f32x8(_mm256_load_ps(w.edges))) {
        const __m128i drops = _mm_load_si128(reinterpret_cast<const __m128i*>(w.drops));
        drops16_ = _mm256_broadcastsi128_si256(drops);
        drops32_ = _mm512_slli_epi32(_mm512_cvtepu16_epi32(drops16_), 16);
        if constexpr (!F::table_per_group)
            constant_ = spread(_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(w.table))));
    }
    // Of the rows whose scales stand at scales[0..1].
    SPEQ_INLINE Table make(const uint16_t* scales) const {
        if constexpr (!F::table_per_group) return constant_;
        const __m512 t = _mm512_mul_ps(edges_, row_scales(scales));
        if constexpr (F::dtype == DType::fp16) {
            return spread(_mm256_subs_epu16(_mm512_cvtps_ph(t, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC), drops16_));
        } else {
            __m512i i = _mm512_sub_epi32(_mm512_castps_si512(t), drops32_);
            i = _mm512_max_epi32(i, _mm512_setzero_si512());
            const __m128i pick = _mm_setr_epi8(3, 7, 11, 15, 2, 6, 10, 14, -1, -1, -1, -1, -1, -1, -1, -1);
            i = _mm512_shuffle_epi8(i, _mm512_broadcast_i32x4(pick));
            const __m512i low = _mm512_setr_epi32(1, 5, 1, 5, 1, 5, 1, 5, 9, 13, 9, 13, 9, 13, 9, 13);
            const __m512i high = _mm512_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4, 8, 12, 8, 12, 8, 12, 8, 12);
            return {_mm512_permutexvar_epi32(low, i), _mm512_or_si512(_mm512_permutexvar_epi32(high, i), sign())};
        }
    }

  private:
    static SPEQ_INLINE __m512i sign() {
        return _mm512_broadcast_i32x4(_mm_set_epi64x(static_cast<long long>(0x8080808080808080ull), 0));
    }
    // t: eight 16-bit entries for each row, one row in each lane.
    static SPEQ_INLINE Table spread(__m256i t) {
        const __m128i pick = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
        const __m512i bytes = _mm512_castsi256_si512(_mm256_shuffle_epi8(t, _mm256_broadcastsi128_si256(pick)));
        const __m512i low = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2), bytes);
        const __m512i high = _mm512_permutexvar_epi64(_mm512_setr_epi64(1, 1, 1, 1, 3, 3, 3, 3), bytes);
        return {low, _mm512_or_si512(high, sign())};
    }
    __m512 edges_;
    __m256i drops16_;
    __m512i drops32_;
    Table constant_{};
};

// Column l of a row's eight lanes in the lower 16 bits, column l + 8 in the upper.
SPEQ_INLINE Pair<DType::bf16>::Weights bf16_pair(__m512i weights) {
#if SPEQ_AVX512BF16
    return {weights};
#else
    return widen_bf16(weights);
#endif
}
SPEQ_INLINE FloatPair fp16_pair(__m512i weights) {
    return {Wide{_mm512_cvtph_ps(_mm512_castsi512_si256(weights))},
            Wide{_mm512_cvtph_ps(_mm512_extracti64x4_epi64(weights, 1))}};
}

// 32 weights of two rows, whose codes, low and high residual bytes stand in one byte each, to two pairs.
template <class F, int First, class Emit>
SPEQ_INLINE void decode_half(__m512i codes, __m512i low, __m512i high, const Table& t, Emit&& emit) {
    const __m512i t_low = _mm512_shuffle_epi8(t.low, codes), t_high = _mm512_shuffle_epi8(t.high, codes);
    __m512i a = _mm512_add_epi16(_mm512_unpacklo_epi8(t_low, t_high), _mm512_unpacklo_epi8(low, high));
    __m512i b = _mm512_add_epi16(_mm512_unpackhi_epi8(t_low, t_high), _mm512_unpackhi_epi8(low, high));
    if constexpr (F::dtype == DType::bf16) {
        emit(Index<First + 0>{}, bf16_pair(a));
        emit(Index<First + 1>{}, bf16_pair(b));
    } else {
        // Lanes 0, 1 are of the first row, 2, 3 of the second: pair those that hold the same columns.
        const __m512i pair = _mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7);
        a = _mm512_permutexvar_epi64(pair, a);
        b = _mm512_permutexvar_epi64(pair, b);
        emit(Index<First + 0>{}, fp16_pair(a));
        emit(Index<First + 1>{}, fp16_pair(b));
    }
}

template <class F, class Emit>
SPEQ_INLINE void decode_block(const uint8_t* codes, const uint8_t* tile, int row, const Table& first,
                              const Table& second, Emit&& emit) {
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i c = _mm512_loadu_si512(codes + 32 * row);
    __m512i high0, high1;
    if constexpr (F::residual_bits == 12) {
        const __m512i h = _mm512_loadu_si512(tile + 256 + 32 * row);
        high0 = _mm512_and_si512(h, nibble);
        high1 = _mm512_and_si512(_mm512_srli_epi16(h, 4), nibble);
    } else {
        const __m512i pair = _mm512_set1_epi8(3);
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + 256 + 16 * row));
        __m512i h = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3), _mm512_castsi256_si512(bytes));
        h = _mm512_srlv_epi32(h, _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0, 2, 2, 2, 2));
        high0 = _mm512_and_si512(h, pair);
        high1 = _mm512_and_si512(_mm512_srli_epi16(h, 4), pair);
    }
    decode_half<F, 0>(_mm512_and_si512(c, nibble), _mm512_loadu_si512(tile + 32 * row), high0, first, emit);
    decode_half<F, 2>(_mm512_and_si512(_mm512_srli_epi16(c, 4), nibble), _mm512_loadu_si512(tile + 128 + 32 * row),
                      high1, second, emit);
}

}  // namespace speq::SPEQ_ISA
