// The AVX-512 block decoder: two rows at a time, one in each half of a register.
#pragma once
#include <cstring>

#include "core/split.h"
#include "gemm/format.h"
#include "gemm/pair.h"

namespace speq::SPEQ_ISA {

struct Table {
    __m512i low,
        high;  // byte i: low / high byte of sign << 15 | T[c] for code i; a row's table in both of its 128-bit lanes
};

// The BF16 scales of rows 2 pair and 2 pair + 1 of four as float32, eight lanes each.
template <int Pair>
SPEQ_INLINE __m512 row_scales(__m512i four) {
    constexpr int z = 0x80808080, a = 4 * Pair;
    constexpr int row0 = (a + 1) << 24 | a << 16 | (z & 0xffff), row1 = (a + 3) << 24 | (a + 2) << 16 | (z & 0xffff);
    const __m512i pick = _mm512_setr_epi32(row0, row0, row0, row0, row0, row0, row0, row0,  //
                                           row1, row1, row1, row1, row1, row1, row1, row1);
    return _mm512_castsi512_ps(_mm512_shuffle_epi8(four, pick));
}

// The scales of a row block's four rows, in every 64 bits.
SPEQ_INLINE __m512i four_scales(const uint16_t* scales) {
    long long four;
    std::memcpy(&four, scales, sizeof four);
    return _mm512_set1_epi64(four);
}

template <class F>
class TableMaker {
  public:
    SPEQ_INLINE explicit TableMaker(const SplitWeight& w) : edges_(_mm512_broadcast_f32x8(_mm256_load_ps(w.edges))) {
        drops_ = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(w.drops)));
        if constexpr (!F::table_per_group)
            spread(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(w.table))), constant_);
    }
    // Makes the tables of a row block, whose scales of a group stand at `scales`.
    SPEQ_INLINE void make(const uint16_t* scales, Table (&out)[kWides]) const {
        const __m512i four = four_scales(scales);
        const __m512 a = _mm512_mul_ps(edges_, row_scales<0>(four)), b = _mm512_mul_ps(edges_, row_scales<1>(four));
        __m512i t;  // eight 16-bit entries for each row, one row in each 128-bit lane
        if constexpr (F::dtype == DType::fp16) {
            const auto to_fp16 = [](__m512 v)
                                     SPEQ_LAMBDA { return _mm512_cvtps_ph(v, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); };
            t = _mm512_inserti64x4(_mm512_castsi256_si512(to_fp16(a)), to_fp16(b), 1);
        } else {
            t = _mm512_permutex2var_epi16(_mm512_castps_si512(a), _mm512_load_si512(kUpper), _mm512_castps_si512(b));
        }
        spread(_mm512_subs_epu16(t, drops_), out);
    }
    const Table& constant(int wide) const { return constant_[wide]; }

  private:
    // The upper halves of the floats of two vectors.
    alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    static SPEQ_INLINE void spread(__m512i t, Table (&out)[kWides]) {
        const __m128i pick = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
        const __m512i sign = _mm512_broadcast_i32x4(_mm_set_epi64x(static_cast<long long>(0x8080808080808080ull), 0));
        const __m512i bytes = _mm512_shuffle_epi8(t, _mm512_broadcast_i32x4(pick));
        unroll<kWides>([&](auto i) SPEQ_LAMBDA {
            constexpr int a = 4 * i, b = a + 2;
            out[i].low = _mm512_permutexvar_epi64(_mm512_setr_epi64(a, a, a, a, b, b, b, b), bytes);
            const __m512i high = _mm512_permutexvar_epi64(
                _mm512_setr_epi64(a + 1, a + 1, a + 1, a + 1, b + 1, b + 1, b + 1, b + 1), bytes);
            out[i].high = _mm512_or_si512(high, sign);
        });
    }
    __m512 edges_;
    __m512i drops_;
    Table constant_[kWides] = {};
};

// The bytes of 16-bit entries by code, those of two rows in each vector, to the tables of both.
SPEQ_INLINE Table spread_codes(__m512i entries) {
    const __m512i bytes = _mm512_shuffle_epi8(
        entries, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)));
    return {_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 0, 2, 4, 6, 4, 6), bytes),
            _mm512_permutexvar_epi64(_mm512_setr_epi64(1, 3, 1, 3, 5, 7, 5, 7), bytes)};
}

#if SPEQ_AVX512BF16

template <class F>
class DraftTableMaker {
  public:
    SPEQ_INLINE explicit DraftTableMaker(const SplitWeight& w)
        : levels_(_mm512_mul_ps(
              _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(w.levels)))),
              _mm512_set1_ps(1.0f / 64))) {}
    SPEQ_INLINE void make(const uint16_t* scales, Table (&out)[kWides]) const {
        const __m512i four = four_scales(scales);
        unroll<kWides>([&](auto i) SPEQ_LAMBDA {
            const __m512 first = _mm512_mul_ps(levels_, scale<2 * i>(four));
            const __m512 second = _mm512_mul_ps(levels_, scale<2 * i + 1>(four));
            out[i] = spread_codes((__m512i)_mm512_cvtne2ps_pbh(second, first));
        });
    }

  private:
    // The scale of one of four rows in all lanes.
    template <int Row>
    static SPEQ_INLINE __m512 scale(__m512i four) {
        constexpr int pick = static_cast<int>((2u * Row + 1) << 24 | (2u * Row) << 16 | 0x8080u);
        return _mm512_castsi512_ps(_mm512_shuffle_epi8(four, _mm512_set1_epi32(pick)));
    }

    __m512 levels_;
};

#else

template <class F>
class DraftTableMaker;

#endif

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
    __m512i a = _mm512_unpacklo_epi8(t_low, t_high), b = _mm512_unpackhi_epi8(t_low, t_high);
    if constexpr (!F::is_draft) {
        a = _mm512_add_epi16(a, _mm512_unpacklo_epi8(low, high));
        b = _mm512_add_epi16(b, _mm512_unpackhi_epi8(low, high));
    }
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
    if constexpr (F::is_draft) {
        const __m512i none = _mm512_setzero_si512();
        decode_half<F, 0>(_mm512_and_si512(c, nibble), none, none, first, emit);
        decode_half<F, 2>(_mm512_and_si512(_mm512_srli_epi16(c, 4), nibble), none, none, second, emit);
        return;
    }
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
