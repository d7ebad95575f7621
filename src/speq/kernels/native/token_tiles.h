// The activations of few tokens, as they are multiplied: tile by tile.
#pragma once
#include "activations.h"

namespace speq::SPEQ_ISA {

// Tokens that are multiplied with a row block at a time, as many as have room for their accumulators in the registers.
constexpr int kTile = kWideRows == 2 ? 12 : 8;

// Passes of up to so many tokens are multiplied tile by tile. Decoding a row block twice pays where a decoder is fast
// beside the multiply-adds.
constexpr int kTiledTokens = kWideRows == 2 ? kFewTokens : kTile;

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

// The activations of up to kFewTokens tokens: `rows` as FewTokens or ManyTokens reads them, and by column.
template <DType D>
void prepare_few(const float* x, size_t stride, int tokens, int columns, float* rows, float* by_column) {
    prepare_columns<D>(x, stride, tokens, columns, by_column);
    if (tokens > kTiledTokens) {
        for (int t = 0; t < tokens; ++t) prepare_row<D>(x + t * stride, columns, rows + t * stride);
        return;
    }
    for (int token = 0, size = 0; token < tokens; token += size) {
        size = tile_size(tokens - token);
        const TokenTile<D> tile(size);
        float* out = rows + tile_begin<D>(token, columns);
        for (int t = 0; t < size; ++t)
            prepare<D>(x + (token + t) * stride, columns, out + tile.at(t), tile.unit_step(), tile.pair_step());
    }
}

}  // namespace speq::SPEQ_ISA
