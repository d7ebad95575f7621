// Decoding of one row block: the exact 16-bit patterns, or the values that a draft uses in their place.
#pragma once

#include <algorithm>

#include "codec/tile.h"

namespace speq::codec {

// The exact patterns of row `row` (0..3) of a row block: uint16 [columns].
inline void decode_row(const TileLayout& layout, const SplitWeight& split, int row_block, int row, uint16_t* out) {
    const int n = kRowsPerBlock * row_block + row;
    const uint16_t* scales = split.scales_at(row_block) + row;
    Bins start{};
    int current = -1;
    for (int block = 0; block < split.blocks(); ++block) {
        uint8_t codes[kBlock];
        uint16_t residuals[kBlock];
        unpack_codes(layout, split.codes_at(row_block, block), row, codes);
        unpack_residuals(layout, split.residual_at(row_block, block), row, residuals);
        const int count = std::min(kBlock, split.columns - block * kBlock);
        for (int i = 0; i < count; ++i) {
            const int column = block * kBlock + i;
            if (i % 32 == 0 && column / split.group_size != current) {
                current = column / split.group_size;
                start = split.bins(scales[current * kRowsPerBlock]);
            }
            out[column] = static_cast<uint16_t>((start[codes[i] & 7] + residuals[i]) | (codes[i] >> 3) << 15);
        }
    }
    for (uint32_t e = split.escape_rows[n]; e < split.escape_rows[n + 1]; ++e)
        out[split.escape_columns[e]] = split.escape_values[e];
}

// The values that a draft takes row `row` of a row block for: float32 [columns].
inline void draft_row(const TileLayout& layout, const SplitWeight& split, int row_block, int row, float* out) {
    const uint16_t* scales = split.scales_at(row_block) + row;
    float step = 0;
    for (int block = 0; block < split.blocks(); ++block) {
        uint8_t codes[kBlock];
        unpack_codes(layout, split.codes_at(row_block, block), row, codes);
        const int count = std::min(kBlock, split.columns - block * kBlock);
        for (int i = 0; i < count; ++i) {
            const int column = block * kBlock + i;
            if (i % 32 == 0) step = bf16_to_float(scales[column / split.group_size * kRowsPerBlock]) * (1.0f / 64);
            out[column] = static_cast<float>(split.levels[codes[i]]) * step;
        }
    }
}

}  // namespace speq::codec
