// Packing 4 x 64 tiles of codes and residuals into their planes, and back. The places are those of speq.bits.layout.
#pragma once

#include "codec/tables.h"

namespace speq::codec {

struct TileLayout {
    std::array<uint8_t, kHalf> order;
    int residual_bits;

    explicit TileLayout(const Format& format)
        : order(low_nibble_order(format.bf16)), residual_bits(format.residual_bits) {}

    int top_bytes() const { return kColumns * (residual_bits - 8) / 8; }
};

// One row of a tile: `codes` and `residuals` hold 64 columns, `row` is 0..3.
inline void pack_row(const TileLayout& layout, const uint8_t* codes, const uint16_t* residuals, int row,
                     uint8_t* code_tile, uint8_t* residual_tile) {
    uint8_t* low_bytes = residual_tile + kHalf * row;
    uint8_t* high_bytes = residual_tile + kHalf * (kRows + row);
    uint8_t low_top[kHalf], high_top[kHalf];
    for (int b = 0; b < kHalf; ++b) {
        const int low = layout.order[b], high = low + kHalf;
        code_tile[kHalf * row + b] = uint8_t(codes[low] | codes[high] << 4);
        low_bytes[b] = uint8_t(residuals[low]);
        high_bytes[b] = uint8_t(residuals[high]);
        low_top[b] = uint8_t(residuals[low] >> 8);
        high_top[b] = uint8_t(residuals[high] >> 8);
    }
    uint8_t* top = residual_tile + kRows * kColumns + layout.top_bytes() * row;
    if (layout.residual_bits == 12) {
        for (int b = 0; b < kHalf; ++b) top[b] = uint8_t(low_top[b] | high_top[b] << 4);
    } else {
        for (int b = 0; b < kHalf / 2; ++b)
            top[b] = uint8_t(low_top[b] | low_top[b + 16] << 2 | high_top[b] << 4 | high_top[b + 16] << 6);
    }
}

inline void unpack_codes(const TileLayout& layout, const uint8_t* code_tile, int row, uint8_t* codes) {
    for (int b = 0; b < kHalf; ++b) {
        const uint8_t pair = code_tile[kHalf * row + b];
        codes[layout.order[b]] = pair & 15;
        codes[layout.order[b] + kHalf] = pair >> 4;
    }
}

inline void unpack_residuals(const TileLayout& layout, const uint8_t* residual_tile, int row, uint16_t* residuals) {
    const uint8_t* low_bytes = residual_tile + kHalf * row;
    const uint8_t* high_bytes = residual_tile + kHalf * (kRows + row);
    const uint8_t* top = residual_tile + kRows * kColumns + layout.top_bytes() * row;
    for (int b = 0; b < kHalf; ++b) {
        const int quarter = b % 16, shift = b / 16 * 2;
        const int low_top = layout.residual_bits == 12 ? top[b] & 15 : top[quarter] >> shift & 3;
        const int high_top = layout.residual_bits == 12 ? top[b] >> 4 : top[quarter] >> (shift + 4) & 3;
        residuals[layout.order[b]] = uint16_t(low_bytes[b] | low_top << 8);
        residuals[layout.order[b] + kHalf] = uint16_t(high_bytes[b] | high_top << 8);
    }
}

}  // namespace speq::codec
