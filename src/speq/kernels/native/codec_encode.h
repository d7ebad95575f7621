// Encoding of one row block: scales, codes, residuals and the side list of escapes.
#pragma once

#include <vector>

#include "codec_search.h"
#include "codec_tile.h"

namespace speq::codec {

struct Matrix {
    const uint16_t* patterns;  // [rows, columns]
    int64_t rows, columns, blocks, groups;
};

struct Planes {
    uint8_t* codes;
    uint8_t* residual;
    uint16_t* scales;
};

struct Escapes {
    std::vector<uint16_t> columns, values;
};

class Encoder {
  public:
    Encoder(const Format& format, const Matrix& matrix, const float* importance, std::span<const float> candidates,
            const Planes& planes)
        : format_(format),
          matrix_(matrix),
          importance_(importance),
          candidates_(candidates),
          planes_(planes),
          layout_(format),
          codes_(size_t(matrix.groups * format.group_size)),
          residuals_(codes_.size()) {}

    // Appends the escapes of the row block and writes their number for each of its four rows.
    void row_block(int64_t block_row, Escapes& escapes, uint32_t* counts) {
        for (int row = 0; row < kRows; ++row) {
            const size_t before = escapes.columns.size();
            if (kRows * block_row + row < matrix_.rows)
                split_row(block_row, row, escapes);
            else
                clear_row(block_row, row);
            pack(block_row, row);
            counts[kRows * block_row + row] = uint32_t(escapes.columns.size() - before);
        }
    }

  private:
    void split_row(int64_t block_row, int row, Escapes& escapes) {
        const uint16_t* patterns = matrix_.patterns + (kRows * block_row + row) * matrix_.columns;
        for (int64_t g = 0; g < matrix_.groups; ++g) {
            const int64_t first = g * format_.group_size;
            const int count = int(std::clamp<int64_t>(matrix_.columns - first, 0, format_.group_size));
            load_group(group_, format_, patterns + first, importance_ + first, count);
            const uint16_t scale =
                format_.nested ? nested_scale(format_, group_, candidates_) : e3m0_scale(format_, group_);
            planes_.scales[(block_row * matrix_.groups + g) * kRows + row] = scale;
            split_group(bins(format_, scale), patterns, first, count, escapes);
        }
    }

    void split_group(const Bins& start, const uint16_t* patterns, int64_t first, int count, Escapes& escapes) {
        uint8_t* codes = codes_.data() + first;
        uint16_t* residuals = residuals_.data() + first;
        const int residual_bits = format_.residual_bits;
        uint16_t beyond[kMaxGroup];
        for (int i = 0; i < format_.group_size; ++i) {
            const int16_t magnitude = group_.magnitude[i], negative = group_.negative[i];
            const Chosen chosen = choose(magnitude, negative, start, format_.levels);
            residuals[i] = uint16_t(magnitude - chosen.start);
            beyond[i] = uint16_t(residuals[i] >> residual_bits);
            codes[i] = uint8_t(chosen.bin | (negative & 8));
        }
        uint16_t any = 0;
        for (int i = 0; i < count; ++i) any |= beyond[i];
        for (int i = 0; any && i < count; ++i) {
            if (!beyond[i]) continue;
            codes[i] = 0;
            residuals[i] = 0;
            escapes.columns.push_back(uint16_t(first + i));
            escapes.values.push_back(patterns[first + i]);
        }
        std::fill(codes + count, codes + format_.group_size, uint8_t(0));
        std::fill(residuals + count, residuals + format_.group_size, uint16_t(0));
    }

    void clear_row(int64_t block_row, int row) {
        std::fill(codes_.begin(), codes_.end(), uint8_t(0));
        std::fill(residuals_.begin(), residuals_.end(), uint16_t(0));
        for (int64_t g = 0; g < matrix_.groups; ++g) planes_.scales[(block_row * matrix_.groups + g) * kRows + row] = 0;
    }

    void pack(int64_t block_row, int row) {
        for (int64_t block = 0; block < matrix_.blocks; ++block) {
            const int64_t tile = block_row * matrix_.blocks + block;
            pack_row(layout_, codes_.data() + block * kColumns, residuals_.data() + block * kColumns, row,
                     planes_.codes + tile * kRows * kHalf, planes_.residual + tile * format_.residual_bytes());
        }
    }

    const Format& format_;
    const Matrix matrix_;
    const float* importance_;  // [groups * group_size]
    const std::span<const float> candidates_;
    const Planes planes_;
    const TileLayout layout_;
    std::vector<uint8_t> codes_;
    std::vector<uint16_t> residuals_;
    Group group_;
};

}  // namespace speq::codec
