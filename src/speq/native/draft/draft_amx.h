// The draft product of several tokens on tiles (AMX): sixteen rows of weights by all tokens, 64 columns at a time.
//
// Activations are int8 with one scale for 64 columns (for 32 where groups are that small), as in draft.h, and so are
// the sums of their products with the levels: integers, which are scaled and added up group after group. Float32
// roundings come at other places than there, so one row alone is a draft of another kind; a token's sums are the same
// in any company.
#pragma once
#include <algorithm>
#include <bit>
#include <cstring>

#include "draft/quantise.h"

namespace speq::SPEQ_ISA {

constexpr int kTileBlocks = 4;  // row blocks that are multiplied together
constexpr int kTileRows = kTileBlocks * kRowsPerBlock;

// How the activations of a few tokens stand: int8 [block][token][kBlock], then the scales, float32
// [block][part][token]. A part is what one scale is for: a block or half of one.
struct DraftTile {
    DraftTile(const float* packed, int tokens, int columns)
        : values(reinterpret_cast<const int8_t*>(packed)),
          scales(packed + static_cast<size_t>(tokens) * columns / sizeof(float)) {}

    const int8_t* values;
    const float* scales;
};

// Quantises and packs the activations of up to kFewTokens tokens for DraftTiles.
template <class F>
void prepare_draft(const float* x, size_t stride, int tokens, int columns, float* out) {
    constexpr int parts = F::halves ? 2 : 1;
    auto* values = reinterpret_cast<int8_t*>(out);
    float* scales = out + static_cast<size_t>(tokens) * columns / sizeof(float);
    alignas(64) int8_t copies[kDraftCopies * kBlock];
    alignas(64) int32_t offsets[kDraftCopies * kBlock / 4];
    float of_halves[2];
    for (int b = 0; b < columns / kBlock; ++b, scales += parts * tokens)
        for (int t = 0; t < tokens; ++t, values += kBlock) {
            quantise_row<F>(x + t * stride + b * kBlock, kBlock, {copies, of_halves, offsets});
            for (int h = 0; h < 2; ++h)
                std::memcpy(values + h * kHalfBlock, copies + h * kHalfBlock * kWideRows, kHalfBlock);
            for (int p = 0; p < parts; ++p) scales[p * tokens + t] = of_halves[p];
        }
}

template <class F, int M>
class DraftTiles {
  public:
    DraftTiles(const SplitWeight& w, const DraftTile& x)
        : w_(w), x_(x), levels_(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(w.levels)))) {}

    // y[row_block - begin][token][4]
    void run(int begin, int end, float* y) const {
        configure();
        for (int rb = begin; rb < end; rb += kTileBlocks)
            multiply(rb, std::min(kTileBlocks, end - rb), y + static_cast<size_t>(rb - begin) * M * kRowsPerBlock);
        _tile_release();
    }

  private:
    static constexpr int kParts = F::halves ? 2 : 1;
    static constexpr int kDepth = kBlock / kParts;  // columns of a part, which are bytes of a tile of activations
    static constexpr int kLines = kBlock / 4;       // of decoded weights: four columns of all rows in each
    static constexpr int kLine = kTileRows * 4;

    struct alignas(64) Decoded {
        int8_t lines[kLines][kLine];
    };
    struct alignas(64) Dots {
        int32_t of[kParts][M][kTileRows];
    };
    // The row blocks of a product; the last stands in for those that are missing.
    struct Rows {
        const uint8_t* codes[kTileBlocks];
        const uint16_t* scales[kTileBlocks];
    };

    // Tiles 0 and 1 are sums, 2 activations, 3 weights.
    static void configure() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } config;
        for (int tile = 0; tile < 2; ++tile) config.row_bytes[tile] = kLine, config.rows[tile] = M;
        config.row_bytes[2] = kDepth, config.rows[2] = M;
        config.row_bytes[3] = kLine, config.rows[3] = kDepth / 4;
        _tile_loadconfig(&config);
    }

    // While the tiles multiply one block, the next is decoded and the sums of the last are scaled: what a tile loads
    // has to have left the store buffer before.
    void multiply(int rb, int count, float* y) const {
        const int blocks = w_.blocks();
        Rows rows;
        for (int i = 0; i < kTileBlocks; ++i) {
            rows.codes[i] = w_.codes_at(rb + std::min(i, count - 1), 0);
            rows.scales[i] = w_.scales_at(rb + std::min(i, count - 1));
        }
        Decoded decoded[2];
        Dots dots[2];
        __m512 acc[M];
        unroll<M>([&](auto t) SPEQ_LAMBDA { acc[t] = _mm512_setzero_ps(); });
        for (int b = 0; b < blocks + 2; ++b) {
            if (b < blocks) decode(rows, b, decoded[b % 2]);
            if (b >= 1 && b <= blocks) multiply_block(b - 1, decoded[(b - 1) % 2], dots[(b - 1) % 2]);
            if (b >= 2) add(rows, b - 2, dots[b % 2], acc);
        }
        const __m512i back = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
        for (int t = 0; t < M; ++t) {
            alignas(64) float sums[kTileRows];
            _mm512_store_ps(sums, _mm512_permutexvar_ps(back, acc[t]));
            for (int i = 0; i < count; ++i)
                std::memcpy(y + (static_cast<size_t>(i) * M + t) * kRowsPerBlock, sums + i * kRowsPerBlock,
                            kRowsPerBlock * sizeof(float));
        }
    }

    // The levels of a block, line by line, with the rows in the order 0 2 4 6 1 3 5 7, 8 10 12 14 9 11 13 15. Codes are
    // transposed before they become bytes of their own, when they are half as many.
    void decode(const Rows& rows, int b, Decoded& out) const {
        const __m512i nibble = _mm512_set1_epi8(15);
        // The planes of the row blocks to come are asked for.
        const size_t ahead = static_cast<size_t>(kTileBlocks) * w_.blocks() * kCodeTile;
        __m512i columns[2][4];  // of rows 0 to 7, of rows 8 to 15
        unroll<2>([&](auto half) SPEQ_LAMBDA {
            __m512i codes[4];  // of two rows each
            unroll<4>([&](auto i) SPEQ_LAMBDA {
                const uint8_t* from = rows.codes[2 * half + i / 2] + b * kCodeTile + i % 2 * 64;
                codes[i] = _mm512_loadu_si512(from);
                prefetch(from + ahead);
            });
            transpose(codes, columns[half]);
        });
        unroll<4>([&](auto j) SPEQ_LAMBDA {
            const __m512i quads[2] = {_mm512_shuffle_i32x4(columns[0][j], columns[1][j], 0x88),
                                      _mm512_shuffle_i32x4(columns[0][j], columns[1][j], 0xdd)};
            unroll<2>([&](auto i) SPEQ_LAMBDA {
                const __m512i low = _mm512_and_si512(quads[i], nibble);
                const __m512i high = _mm512_and_si512(_mm512_srli_epi16(quads[i], 4), nibble);
                _mm512_store_si512(out.lines[j + 4 * i], _mm512_shuffle_epi8(levels_, low));
                _mm512_store_si512(out.lines[kLines / 2 + j + 4 * i], _mm512_shuffle_epi8(levels_, high));
            });
        });
    }

    // In each lane of 128 bits the 32-bit elements of four registers, transposed.
    static SPEQ_INLINE void transpose(const __m512i (&in)[4], __m512i (&out)[4]) {
        const __m512i a = _mm512_unpacklo_epi32(in[0], in[1]), b = _mm512_unpackhi_epi32(in[0], in[1]);
        const __m512i c = _mm512_unpacklo_epi32(in[2], in[3]), d = _mm512_unpackhi_epi32(in[2], in[3]);
        out[0] = _mm512_unpacklo_epi64(a, c);
        out[1] = _mm512_unpackhi_epi64(a, c);
        out[2] = _mm512_unpacklo_epi64(b, d);
        out[3] = _mm512_unpackhi_epi64(b, d);
    }

    SPEQ_INLINE void multiply_block(int b, const Decoded& weights, Dots& dots) const {
        const int8_t* x = x_.values + static_cast<size_t>(b) * M * kBlock;
        asm volatile("" ::: "memory");  // the intrinsics do not say that tiles are loaded from memory
        _tile_zero(0);
        _tile_loadd(2, x, kBlock);
        _tile_loadd(3, weights.lines[0], kLine);
        _tile_dpbssd(0, 2, 3);
        _tile_stored(0, dots.of[0], kLine);
        if constexpr (kParts == 2) {
            _tile_zero(1);
            _tile_loadd(2, x + kDepth, kBlock);
            _tile_loadd(3, weights.lines[kLines / 2], kLine);
            _tile_dpbssd(1, 2, 3);
            _tile_stored(1, dots.of[1], kLine);
        }
    }

    // acc[token] += the dot products of a block times their scales
    SPEQ_INLINE void add(const Rows& rows, int b, const Dots& dots, __m512 (&acc)[M]) const {
        unroll<kParts>([&](auto part) SPEQ_LAMBDA {
            const int group = F::halves ? 2 * b + part : b >> w_.group_shift();
            const __m512 of_rows = scales(rows, group);
            const float* of_tokens = x_.scales + (static_cast<size_t>(b) * kParts + part) * M;
            unroll<M>([&](auto t) SPEQ_LAMBDA {
                const __m512 scaled = _mm512_mul_ps(of_rows, _mm512_set1_ps(of_tokens[t]));
                acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dots.of[part][t])), scaled, acc[t]);
            });
        });
    }

    // A group's scales in the order of the decoded rows.
    SPEQ_INLINE __m512 scales(const Rows& rows, int group) const {
        const size_t ahead = static_cast<size_t>(kTileBlocks) * w_.groups() * kRowsPerBlock;
        long long four[kTileBlocks];
        unroll<kTileBlocks>([&](auto i) SPEQ_LAMBDA {
            const uint16_t* from = rows.scales[i] + group * kRowsPerBlock;
            std::memcpy(&four[i], from, sizeof four[i]);
            prefetch(from + ahead);
        });
        const __m512i bits = _mm512_cvtepu16_epi32(_mm256_setr_epi64x(four[0], four[1], four[2], four[3]));
        const __m512i order = _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
        return _mm512_permutexvar_ps(order, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
    }

    const SplitWeight& w_;
    const DraftTile x_;
    __m512i levels_;
};

// The draft of up to kFewTokens tokens, as prepare_draft packs them.
template <class F>
void draft_tiles(const SplitWeight& w, const Activations& x, int begin, int end, float* y, float*) {
    const DraftTile packed(x.rows, x.tokens, w.padded_columns());
    unroll<kFewTokens>([&](auto i) SPEQ_LAMBDA {
        if (x.tokens == i + 1) DraftTiles<F, i + 1>(w, packed).run(begin, end, y);
    });
}

}  // namespace speq::SPEQ_ISA
