// The activations of few tokens, as they are multiplied: tile by tile.
#pragma once
#include <algorithm>

#include "gemm/activations.h"

namespace speq::SPEQ_ISA {

// Tokens that are multiplied with a row block at a time, as many as have room for their accumulators in the registers.
constexpr int kTile = kWideRows == 2 ? 12 : 8;

// Passes of up to so many tokens are multiplied tile by tile. Decoding a row block twice pays where a decoder is fast
// beside the multiply-adds, and decoding it between them where registers keep the accumulators.
constexpr int kTiledTokens = kWideRows == 2 ? kFewTokens : SPEQ_AVX2 ? kTile : 1;

// The next tile of `left` tokens: all are about as large, and of whole vectors but the last.
constexpr int tile_size(int left) {
    const int tiles = (left + kTile - 1) / kTile;
    return tiles == 1 ? left : (left / tiles + kWideRows - 1) / kWideRows * kWideRows;
}

// How a tile's activations stand: [sixteen columns][token / kWideRows][unit][token % kWideRows][8 floats], so that one
// load takes those of as many tokens as a register has halves. (Filling both halves with one token costs as much as a
// multiply-add.) A token alone stands as in a row.
template <DType D>
struct TokenTile {
    constexpr explicit TokenTile(int tokens)
        : together(tokens == 1 ? 1 : kWideRows), width((tokens + together - 1) / together * together) {}

    constexpr int unit_step() const { return 8 * together; }
    constexpr int pair_step() const { return kPairFloats<D> * width; }
    constexpr int at(int token) const { return token / together * together * kPairFloats<D> + token % together * 8; }

    int together, width;  // tokens, room for tokens
};

// Where the tile of tokens from `token` on begins.
template <DType D>
SPEQ_INLINE size_t tile_begin(int token, int columns) {
    return static_cast<size_t>(token) * (columns / kPairColumns) * kPairFloats<D>;
}

// The activations of one column for tokens First..min(First + 8, M) - 1 of a tile.
template <DType D, int M, int First>
SPEQ_INLINE Vec8 tile_column(const float* x, int column) {
    constexpr TokenTile<D> tile(M);
    x += column / kPairColumns * tile.pair_step() + column % 8;
#if SPEQ_AVX512BF16
    if constexpr (kPacked<D> && M > 1) {
        // A line of 16 floats has two tokens.
        constexpr int lines = std::min((M - First + 1) / 2, 4);
        const auto line = [&](int i)
                              SPEQ_LAMBDA { return _mm512_loadu_si512(x - column % 8 + tile.at(First + 2 * i)); };
        const __m512i pick = _mm512_add_epi32(_mm512_setr_epi32(0, 8, 16, 24, 0, 8, 16, 24, 0, 0, 0, 0, 0, 0, 0, 0),
                                              _mm512_set1_epi32(column % 8));
        __m512i both = line(0);
        both = _mm512_permutex2var_epi32(both, pick, lines > 1 ? line(1) : both);
        if constexpr (lines > 2) {
            const __m512i third = line(2);
            both = _mm512_mask_blend_epi32(0xf0, both,
                                           _mm512_permutex2var_epi32(third, pick, lines > 3 ? line(3) : third));
        }
        const __m256i pairs = _mm512_castsi512_si256(both);
        const __m256i upper = _mm256_sll_epi32(pairs, _mm_cvtsi32_si128(column & 8 ? 0 : 16));
        return {_mm256_castsi256_ps(_mm256_and_si256(upper, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
    }
#endif
    x += column & 8 ? tile.unit_step() : 0;
    alignas(32) float values[8] = {};
    unroll<std::min(8, M - First)>([&](auto i) SPEQ_LAMBDA { values[i] = x[tile.at(First + i)]; });
    return load(values);
}

// The activations of up to kFewTokens tokens, `stride` floats apart, as FewTokens or ManyTokens reads them.
template <DType D>
void prepare_few(const float* x, size_t stride, int tokens, int columns, float* out) {
    if (tokens > kTiledTokens) {
        for (int t = 0; t < tokens; ++t) prepare_row<D>(x + t * stride, columns, out + t * stride);
        return;
    }
    for (int token = 0, size = 0; token < tokens; token += size) {
        size = tile_size(tokens - token);
        const TokenTile<D> tile(size);
        float* begin = out + tile_begin<D>(token, columns);
        for (int t = 0; t < size; ++t)
            prepare<D>(x + (token + t) * stride, columns, begin + tile.at(t), tile.unit_step(), tile.pair_step());
    }
}

}  // namespace speq::SPEQ_ISA
