// The exact 16-bit weights of one block (64 columns) of kWideRows rows, rebuilt from the planes as eight wide vectors
// of eight columns each. bits = sign << 15 | (T[c] + r): T is looked up by code, sign included, as two byte tables of
// 16 entries.
#pragma once
#include "simd.h"
#include "split.h"

namespace speq::SPEQ_ISA {

// What the decoder must know at compile time. `Halves`: the two halves of a block have scales of their own (groups of
// 32).
template <DType D, int ResidualBits, bool TablePerGroup, bool Halves>
struct Format {
    static constexpr DType dtype = D;
    static constexpr int residual_bits = ResidualBits;
    static constexpr bool table_per_group = TablePerGroup;
    static constexpr bool halves = Halves;
    static constexpr int high_bytes = ResidualBits == 12 ? 32 : 16;
    static constexpr int tile = kRowsPerBlock * (kBlock + high_bytes);
};

#if SPEQ_AVX512

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

// 32 weights of two rows, whose codes, low and high residual bytes stand in one byte each, to four vectors.
template <class F, class Emit>
SPEQ_INLINE void decode_half(__m512i codes, __m512i low, __m512i high, const Table& t, int first, Emit&& emit) {
    const __m512i t_low = _mm512_shuffle_epi8(t.low, codes), t_high = _mm512_shuffle_epi8(t.high, codes);
    __m512i a = _mm512_add_epi16(_mm512_unpacklo_epi8(t_low, t_high), _mm512_unpacklo_epi8(low, high));
    __m512i b = _mm512_add_epi16(_mm512_unpackhi_epi8(t_low, t_high), _mm512_unpackhi_epi8(low, high));
    if constexpr (F::dtype == DType::bf16) {
        const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
        emit(first + 0, Wide{_mm512_castsi512_ps(_mm512_slli_epi32(a, 16))});
        emit(first + 1, Wide{_mm512_castsi512_ps(_mm512_and_si512(a, upper))});
        emit(first + 2, Wide{_mm512_castsi512_ps(_mm512_slli_epi32(b, 16))});
        emit(first + 3, Wide{_mm512_castsi512_ps(_mm512_and_si512(b, upper))});
    } else {
        // Lanes 0, 1 are of the first row, 2, 3 of the second: pair those that hold the same columns.
        const __m512i pair = _mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7);
        a = _mm512_permutexvar_epi64(pair, a);
        b = _mm512_permutexvar_epi64(pair, b);
        emit(first + 0, Wide{_mm512_cvtph_ps(_mm512_castsi512_si256(a))});
        emit(first + 1, Wide{_mm512_cvtph_ps(_mm512_extracti64x4_epi64(a, 1))});
        emit(first + 2, Wide{_mm512_cvtph_ps(_mm512_castsi512_si256(b))});
        emit(first + 3, Wide{_mm512_cvtph_ps(_mm512_extracti64x4_epi64(b, 1))});
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
    decode_half<F>(_mm512_and_si512(c, nibble), _mm512_loadu_si512(tile + 32 * row), high0, first, 0, emit);
    decode_half<F>(_mm512_and_si512(_mm512_srli_epi16(c, 4), nibble), _mm512_loadu_si512(tile + 128 + 32 * row), high1,
                   second, 4, emit);
}

#elif SPEQ_AVX2

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
    SPEQ_INLINE Table make(const uint16_t* scale) const {
        if constexpr (!F::table_per_group) return constant_;
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

  private:
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

// 32 weights, whose codes, low and high residual bytes stand in one byte each, to four vectors.
template <class F, class Emit>
SPEQ_INLINE void decode_half(__m256i codes, __m256i low, __m256i high, const Table& t, int first, Emit&& emit) {
    const __m256i t_low = _mm256_shuffle_epi8(t.low, codes), t_high = _mm256_shuffle_epi8(t.high, codes);
    const __m256i a = _mm256_add_epi16(_mm256_unpacklo_epi8(t_low, t_high), _mm256_unpacklo_epi8(low, high));
    const __m256i b = _mm256_add_epi16(_mm256_unpackhi_epi8(t_low, t_high), _mm256_unpackhi_epi8(low, high));
    if constexpr (F::dtype == DType::bf16) {
        const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
        emit(first + 0, Vec8{_mm256_castsi256_ps(_mm256_slli_epi32(a, 16))});
        emit(first + 1, Vec8{_mm256_castsi256_ps(_mm256_and_si256(a, upper))});
        emit(first + 2, Vec8{_mm256_castsi256_ps(_mm256_slli_epi32(b, 16))});
        emit(first + 3, Vec8{_mm256_castsi256_ps(_mm256_and_si256(b, upper))});
    } else {
        emit(first + 0, Vec8{_mm256_cvtph_ps(_mm256_castsi256_si128(a))});
        emit(first + 1, Vec8{_mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))});
        emit(first + 2, Vec8{_mm256_cvtph_ps(_mm256_castsi256_si128(b))});
        emit(first + 3, Vec8{_mm256_cvtph_ps(_mm256_extracti128_si256(b, 1))});
    }
}

// Calls emit(j, weights of columns 8j..8j+7) for j = 0..7. `codes` and `tile` point at the block's row block; `first`
// and `second` are the tables of the two halves.
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
    decode_half<F>(_mm256_and_si256(c, nibble), _mm256_loadu_si256(low), high0, first, 0, emit);
    decode_half<F>(_mm256_and_si256(_mm256_srli_epi16(c, 4), nibble), _mm256_loadu_si256(low + 4), high1, second, 4,
                   emit);
}

#else

struct Table {
    uint16_t bits[16];  // sign << 15 | T[c] by code
};

template <class F>
class TableMaker {
  public:
    explicit TableMaker(const SplitWeight& w) : weight_(w) {}
    Table make(const uint16_t* scale) const {
        Table t;
        for (int c = 0; c < 8; ++c) {
            uint16_t base = weight_.table[c];
            if constexpr (F::table_per_group) {
                const uint16_t edge = truncate_to<F::dtype>(weight_.edges[c] * bf16_to_float(*scale));
                base = edge > weight_.drops[c] ? static_cast<uint16_t>(edge - weight_.drops[c]) : 0;
            }
            t.bits[c] = base;
            t.bits[8 + c] = static_cast<uint16_t>(base | 0x8000u);
        }
        return t;
    }

  private:
    const SplitWeight& weight_;
};

// Column within its half of the block whose code stands in byte b of the draft plane; see docs/formats.md.
template <DType D>
constexpr int column_of_byte(int b) {
    const int lane = b / 16, i = b % 16;
    return D == DType::bf16 ? 8 * (2 * (i / 8) + i % 2) + (i % 8) / 2 + 4 * lane : 8 * (2 * (i / 8) + lane) + i % 8;
}

template <class F, class Emit>
SPEQ_INLINE void decode_block(const uint8_t* codes, const uint8_t* tile, int row, const Table& first,
                              const Table& second, Emit&& emit) {
    float out[kBlock];
    for (int half = 0; half < 2; ++half) {
        const Table& t = half ? second : first;
        for (int b = 0; b < 32; ++b) {
            const int code = codes[32 * row + b] >> (4 * half) & 15;
            int high;
            if constexpr (F::residual_bits == 12)
                high = tile[256 + 32 * row + b] >> (4 * half) & 15;
            else
                high = tile[256 + 16 * row + b % 16] >> (4 * half + 2 * (b / 16)) & 3;
            const int residual = high << 8 | tile[128 * half + 32 * row + b];
            out[32 * half + column_of_byte<F::dtype>(b)] =
                to_float<F::dtype>(static_cast<uint16_t>(t.bits[code] + residual));
        }
    }
    for (int j = 0; j < 8; ++j) emit(j, load(out + 8 * j));
}

#endif

// One block of rows row..row + kWideRows - 1 with the tables of their groups; `scales` points at the row block's
// scales.
template <class F, class Emit>
SPEQ_INLINE void decode_block(const TableMaker<F>& maker, const uint16_t* scales, int group_shift, const uint8_t* codes,
                              const uint8_t* tile, int block, int row, Emit&& emit) {
    if constexpr (F::table_per_group && F::halves) {
        const Table first = maker.make(scales + 2 * block * kRowsPerBlock + row);
        const Table second = maker.make(scales + (2 * block + 1) * kRowsPerBlock + row);
        decode_block<F>(codes, tile, row, first, second, emit);
    } else {
        const Table table = maker.make(scales + (block >> group_shift) * kRowsPerBlock + row);
        decode_block<F>(codes, tile, row, table, table, emit);
    }
}

}  // namespace speq::SPEQ_ISA
