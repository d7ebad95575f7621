// The AVX2 block decoder: one row at a time.
#pragma once
#include "core/split.h"
#include "gemm/format.h"
#include "gemm/pair.h"

namespace speq::SPEQ_ISA {

struct Table {
    __m256i low, high;  // byte i: low / high byte of sign << 15 | T[c] for code i, the same in both 128-bit lanes
};

template <class F>
class TableMaker {
  public:
    SPEQ_INLINE explicit TableMaker(const SplitWeight& w) : edges_(_mm256_load_ps(w.edges)) {
        const __m128i drops = _mm_load_si128(reinterpret_cast<const __m128i*>(w.drops));
        drops16_ = drops;
        drops32_ = _mm256_slli_epi32(_mm256_cvtepu16_epi32(drops), 16);
        if constexpr (!F::table_per_group)
            constant_ = spread(_mm_load_si128(reinterpret_cast<const __m128i*>(w.table)));
    }
    // Makes the tables of some rows, whose scales of a group stand at `scales`.
    template <int Rows>
    SPEQ_INLINE void make(const uint16_t* scales, Table (&out)[Rows]) const {
        unroll<Rows>([&](auto r) SPEQ_LAMBDA { out[r] = make(scales + r); });
    }
    const Table& constant(int) const { return constant_; }

  private:
    SPEQ_INLINE Table make(const uint16_t* scale) const {
        const __m256 t = _mm256_mul_ps(edges_, _mm256_set1_ps(bf16_to_float(*scale)));
        if constexpr (F::dtype == DType::fp16) {
            return spread(_mm_subs_epu16(_mm256_cvtps_ph(t, _MM_FROUND_TO_ZERO), drops16_));
        } else {
            __m256i i = _mm256_sub_epi32(_mm256_castps_si256(t), drops32_);
            i = _mm256_max_epi32(i, _mm256_setzero_si256());
            const __m256i pick = _mm256_setr_epi8(3, 7, 11, 15, 2, 6, 10, 14, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                                  3, 7, 11, 15, 2, 6, 10, 14, -1, -1, -1, -1, -1, -1, -1, -1);
            i = _mm256_shuffle_epi8(i, pick);
            const __m256i high = _mm256_permutevar8x32_epi32(i, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
            const __m256i low = _mm256_permutevar8x32_epi32(i, _mm256_setr_epi32(1, 5, 1, 5, 1, 5, 1, 5));
            return {low, _mm256_or_si256(high, sign())};
        }
    }
    static SPEQ_INLINE __m256i sign() {
        return _mm256_setr_epi64x(0, static_cast<long long>(0x8080808080808080ull), 0,
                                  static_cast<long long>(0x8080808080808080ull));
    }
    static SPEQ_INLINE Table spread(__m128i t) {
        const __m128i pick = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
        const __m256i bytes = _mm256_castsi128_si256(_mm_shuffle_epi8(t, pick));
        return {_mm256_permute4x64_epi64(bytes, 0x00), _mm256_or_si256(_mm256_permute4x64_epi64(bytes, 0x55), sign())};
    }
    __m256 edges_;
    __m128i drops16_;
    __m256i drops32_;
    Table constant_{};
};

// This set drafts with 8-bit activations.
template <class F>
class DraftTableMaker;

// 32 weights, whose codes, low and high residual bytes stand in one byte each, to two pairs.
template <class F, int First, class Emit>
SPEQ_INLINE void decode_half(__m256i codes, __m256i low, __m256i high, const Table& t, Emit&& emit) {
    const __m256i t_low = _mm256_shuffle_epi8(t.low, codes), t_high = _mm256_shuffle_epi8(t.high, codes);
    const __m256i a = _mm256_add_epi16(_mm256_unpacklo_epi8(t_low, t_high), _mm256_unpacklo_epi8(low, high));
    const __m256i b = _mm256_add_epi16(_mm256_unpackhi_epi8(t_low, t_high), _mm256_unpackhi_epi8(low, high));
    if constexpr (F::dtype == DType::bf16) {
        const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
        const auto pair = [&](__m256i v) SPEQ_LAMBDA {
            return FloatPair{{_mm256_castsi256_ps(_mm256_slli_epi32(v, 16))},
                             {_mm256_castsi256_ps(_mm256_and_si256(v, upper))}};
        };
        emit(Index<First + 0>{}, pair(a));
        emit(Index<First + 1>{}, pair(b));
    } else {
        const auto pair = [](__m256i v) SPEQ_LAMBDA {
            return FloatPair{{_mm256_cvtph_ps(_mm256_castsi256_si128(v))},
                             {_mm256_cvtph_ps(_mm256_extracti128_si256(v, 1))}};
        };
        emit(Index<First + 0>{}, pair(a));
        emit(Index<First + 1>{}, pair(b));
    }
}

// Calls emit(j, weights of columns 16j..16j+15) for j = 0..3. `codes` and `tile` point at the block's row block;
// `first` and `second` are the tables of the two halves.
template <class F, class Emit>
SPEQ_INLINE void decode_block(const uint8_t* codes, const uint8_t* tile, int row, const Table& first,
                              const Table& second, Emit&& emit) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const auto* low = reinterpret_cast<const __m256i*>(tile + 32 * row);
    const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * row));
    __m256i high0, high1;
    if constexpr (F::residual_bits == 12) {
        const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + 256 + 32 * row));
        high0 = _mm256_and_si256(h, nibble);
        high1 = _mm256_and_si256(_mm256_srli_epi16(h, 4), nibble);
    } else {
        const __m256i pair = _mm256_set1_epi8(3);
        const __m256i h = _mm256_srlv_epi32(
            _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tile + 256 + 16 * row))),
            _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2));
        high0 = _mm256_and_si256(h, pair);
        high1 = _mm256_and_si256(_mm256_srli_epi16(h, 4), pair);
    }
    decode_half<F, 0>(_mm256_and_si256(c, nibble), _mm256_loadu_si256(low), high0, first, emit);
    decode_half<F, 2>(_mm256_and_si256(_mm256_srli_epi16(c, 4), nibble), _mm256_loadu_si256(low + 4), high1, second,
                      emit);
}

}  // namespace speq::SPEQ_ISA
