// Packing 4 x 64 tiles of codes and residuals into their planes, and back. The places are those of speq.formats.layout.
#pragma once

#include <array>

#include "core/split.h"

namespace speq::codec {

struct TileLayout {
    std::array<uint8_t, kHalfBlock> order;  // the column of the low nibble of each byte of codes
    int residual_bits;

    explicit TileLayout(const SplitFormat& format) : residual_bits(format.residual_bits) {
        for (int b = 0; b < kHalfBlock; ++b) order[b] = static_cast<uint8_t>(column_of_byte(format.dtype, b));
    }

    int top_bytes() const { return high_bytes(residual_bits); }
};

// One row of a tile: `codes` and `residuals` hold 64 columns, `row` is 0..3.
inline void pack_row(const TileLayout& layout, const uint8_t* codes, const uint16_t* residuals, int row,
                     uint8_t* code_tile, uint8_t* residual_tile) {
    uint8_t* low_bytes = residual_tile + kHalfBlock * row;
    uint8_t* upper_bytes = residual_tile + kHalfBlock * (kRowsPerBlock + row);
    uint8_t low_top[kHalfBlock], high_top[kHalfBlock];
    for (int b = 0; b < kHalfBlock; ++b) {
        const int low = layout.order[b], high = low + kHalfBlock;
        code_tile[kHalfBlock * row + b] = static_cast<uint8_t>(codes[low] | codes[high] << 4);
        low_bytes[b] = static_cast<uint8_t>(residuals[low]);
        upper_bytes[b] = static_cast<uint8_t>(residuals[high]);
        low_top[b] = static_cast<uint8_t>(residuals[low] >> 8);
        high_top[b] = static_cast<uint8_t>(residuals[high] >> 8);
    }
    uint8_t* top = residual_tile + kRowsPerBlock * kBlock + layout.top_bytes() * row;
    if (layout.residual_bits == 12) {
        for (int b = 0; b < kHalfBlock; ++b) top[b] = static_cast<uint8_t>(low_top[b] | high_top[b] << 4);
    } else {
        for (int b = 0; b < kHalfBlock / 2; ++b)
            top[b] = static_cast<uint8_t>(low_top[b] | low_top[b + 16] << 2 | high_top[b] << 4 | high_top[b + 16] << 6);
    }
}

inline void unpack_codes(const TileLayout& layout, const uint8_t* code_tile, int row, uint8_t* codes) {
    for (int b = 0; b < kHalfBlock; ++b) {
        const uint8_t pair = code_tile[kHalfBlock * row + b];
        codes[layout.order[b]] = pair & 15;
        codes[layout.order[b] + kHalfBlock] = pair >> 4;
    }
}

inline void unpack_residuals(const TileLayout& layout, const uint8_t* residual_tile, int row, uint16_t* residuals) {
    const uint8_t* low_bytes = residual_tile + kHalfBlock * row;
    const uint8_t* upper_bytes = residual_tile + kHalfBlock * (kRowsPerBlock + row);
    const uint8_t* top = residual_tile + kRowsPerBlock * kBlock + layout.top_bytes() * row;
    for (int b = 0; b < kHalfBlock; ++b) {
        const int quarter = b % 16, shift = b / 16 * 2;
        const int low_top = layout.residual_bits == 12 ? top[b] & 15 : top[quarter] >> shift & 3;
        const int high_top = layout.residual_bits == 12 ? top[b] >> 4 : top[quarter] >> (shift + 4) & 3;
        residuals[layout.order[b]] = static_cast<uint16_t>(low_bytes[b] | low_top << 8);
        residuals[layout.order[b] + kHalfBlock] = static_cast<uint16_t>(upper_bytes[b] | high_top << 8);
    }
}

}  // namespace speq::codec
