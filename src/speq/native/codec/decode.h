// Decoding of one row block: the exact 16-bit patterns, or the values that a draft uses in their place.
#pragma once

#include "codec/tile.h"

namespace speq::codec {

struct SplitView {
    const uint8_t* codes;
    const uint8_t* residual;
    const uint16_t* scales;
    const uint32_t* escape_rows;
    const uint16_t* escape_columns;
    const uint16_t* escape_values;
    int64_t rows, columns, blocks, groups;

    uint16_t scale(int64_t block_row, int row, int64_t group) const {
        return scales[(block_row * groups + group) * kRows + row];
    }
};

// The exact patterns of row `row` (0..3) of a row block: uint16 [columns].
inline void decode_row(const Format& format, const TileLayout& layout, const SplitView& split, int64_t block_row,
                       int row, uint16_t* out) {
    const int64_t n = kRows * block_row + row;
    Bins start{};
    int64_t current = -1;
    for (int64_t block = 0; block < split.blocks; ++block) {
        uint8_t codes[kColumns];
        uint16_t residuals[kColumns];
        const int64_t tile = block_row * split.blocks + block;
        unpack_codes(layout, split.codes + tile * kRows * kHalf, row, codes);
        unpack_residuals(layout, split.residual + tile * format.residual_bytes(), row, residuals);
        const int count = int(std::min<int64_t>(kColumns, split.columns - block * kColumns));
        for (int i = 0; i < count; ++i) {
            const int64_t column = block * kColumns + i;
            if (i % 32 == 0 && column / format.group_size != current) {
                current = column / format.group_size;
                start = bins(format, split.scale(block_row, row, current));
            }
            out[column] = uint16_t((start[codes[i] & 7] + residuals[i]) | (codes[i] >> 3) << 15);
        }
    }
    for (uint32_t e = split.escape_rows[n]; e < split.escape_rows[n + 1]; ++e)
        out[split.escape_columns[e]] = split.escape_values[e];
}

// The draft values of such a row: float32 [columns].
inline void draft_row(const Format& format, const TileLayout& layout, const SplitView& split, int64_t block_row,
                      int row, float* out) {
    float step = 0;
    for (int64_t block = 0; block < split.blocks; ++block) {
        uint8_t codes[kColumns];
        unpack_codes(layout, split.codes + (block_row * split.blocks + block) * kRows * kHalf, row, codes);
        const int count = int(std::min<int64_t>(kColumns, split.columns - block * kColumns));
        for (int i = 0; i < count; ++i) {
            const int64_t column = block * kColumns + i;
            if (i % 32 == 0) {
                const uint32_t scale = split.scale(block_row, row, column / format.group_size);
                step = std::bit_cast<float>(scale << 16) * (1.0f / 64);
            }
            out[column] = float(format.levels[codes[i]]) * step;
        }
    }
}

}  // namespace speq::codec
