// Encoding of one row block: scales, codes, residuals and the side list of escapes.
#pragma once

#include <vector>

#include "codec_feedback.h"
#include "codec_search.h"
#include "codec_tile.h"

namespace speq::codec {

struct Matrix {
    const uint16_t* patterns;  // [rows, columns]
    int64_t rows, columns, blocks, groups;
};

constexpr uint8_t kEscape = 0xff;  // in place of a code, until the escapes are listed

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
            const Feedback& feedback, const Planes& planes)
        : format_(format),
          matrix_(matrix),
          importance_(importance),
          candidates_(candidates),
          feedback_(feedback),
          planes_(planes),
          layout_(format),
          padded_(matrix.groups * format.group_size),
          codes_(size_t(kRows * padded_)),
          residuals_(codes_.size()),
          errors_(format, feedback, matrix.columns) {}

    // Appends the escapes of the row block and writes their number for each of its four rows.
    void row_block(int64_t block_row, Escapes& escapes, uint32_t* counts) {
        const int rows = int(std::min<int64_t>(kRows, matrix_.rows - kRows * block_row));
        for (int row = 0; row < kRows; ++row) {
            if (row < rows)
                choose_row(block_row, row);
            else
                clear_row(block_row, row);
        }
        if (feedback_.size) choose_with_feedback(block_row, rows);
        for (int row = 0; row < kRows; ++row) {
            const size_t before = escapes.columns.size();
            if (row < rows) list_escapes(block_row, row, escapes);
            pack(block_row, row);
            counts[kRows * block_row + row] = uint32_t(escapes.columns.size() - before);
        }
    }

  private:
    const uint16_t* patterns(int64_t block_row, int row) const {
        return matrix_.patterns + (kRows * block_row + row) * matrix_.columns;
    }
    uint16_t& scale(int64_t block_row, int row, int64_t group) const {
        return planes_.scales[(block_row * matrix_.groups + group) * kRows + row];
    }
    uint8_t* codes(int row) { return codes_.data() + row * padded_; }
    uint16_t* residuals(int row) { return residuals_.data() + row * padded_; }

    // Scales, and without feedback each weight's code and residual.
    void choose_row(int64_t block_row, int row) {
        for (int64_t g = 0; g < matrix_.groups; ++g) {
            const int64_t first = g * format_.group_size;
            const int count = int(std::clamp<int64_t>(matrix_.columns - first, 0, format_.group_size));
            load_group(group_, format_, patterns(block_row, row) + first, importance_ + first, count);
            const uint16_t scale = format_.nested ? nested_scale(format_, group_, candidates_, choice_)
                                                  : e3m0_scale(format_, group_, choice_);
            this->scale(block_row, row, g) = scale;
            if (feedback_.size) continue;
            const Bins start = bins(format_, scale);
            choose(format_, group_, start, near_one(format_, group_, scale), choice_);
            for (int i = 0; i < format_.group_size; ++i)
                put(row, first + i, i < count, group_.magnitude[i], group_.negative[i], choice_.bin[i], start);
        }
    }

    // Codes and residuals of all rows, with the errors of earlier columns made up for.
    void choose_with_feedback(int64_t block_row, int rows) {
        const uint16_t* weights[kRows] = {};
        for (int row = 0; row < rows; ++row) weights[row] = patterns(block_row, row);
        errors_.begin(weights, rows);
        for (int64_t k = 0; k < matrix_.columns; ++k) {
            if (k % format_.group_size == 0)
                for (int row = 0; row < rows; ++row)
                    errors_.set_scale(row, scale(block_row, row, k / format_.group_size));
            for (int row = 0; row < rows; ++row) {
                const int32_t bin = errors_.choose(row, k), pattern = weights[row][k];
                put(row, k, true, pattern & 0x7fff, -(pattern >> 15), bin, errors_.start(row));
            }
            errors_.spread(k);
        }
    }

    void put(int row, int64_t column, bool real, int32_t magnitude, int32_t negative, int32_t bin, const Bins& start) {
        const bool stored = real && bin >= 0;
        codes(row)[column] = stored ? uint8_t(bin | (negative & 8)) : real ? kEscape : uint8_t(0);
        residuals(row)[column] = stored ? uint16_t(magnitude - start[size_t(bin)]) : uint16_t(0);
    }

    void list_escapes(int64_t block_row, int row, Escapes& escapes) {
        for (int64_t k = 0; k < matrix_.columns; ++k) {
            if (codes(row)[k] != kEscape) continue;
            codes(row)[k] = 0;
            escapes.columns.push_back(uint16_t(k));
            escapes.values.push_back(patterns(block_row, row)[k]);
        }
    }

    void clear_row(int64_t block_row, int row) {
        std::fill_n(codes(row), padded_, uint8_t(0));
        std::fill_n(residuals(row), padded_, uint16_t(0));
        for (int64_t g = 0; g < matrix_.groups; ++g) scale(block_row, row, g) = 0;
    }

    void pack(int64_t block_row, int row) {
        for (int64_t block = 0; block < matrix_.blocks; ++block) {
            const int64_t tile = block_row * matrix_.blocks + block;
            pack_row(layout_, codes(row) + block * kColumns, residuals(row) + block * kColumns, row,
                     planes_.codes + tile * kRows * kHalf, planes_.residual + tile * format_.residual_bytes());
        }
    }

    const Format& format_;
    const Matrix matrix_;
    const float* importance_;  // [groups * group_size]
    const std::span<const float> candidates_;
    const Feedback feedback_;
    const Planes planes_;
    const TileLayout layout_;
    const int64_t padded_;  // columns
    std::vector<uint8_t> codes_;
    std::vector<uint16_t> residuals_;
    ErrorFeedback errors_;
    Group group_;
    Choice choice_;
};

}  // namespace speq::codec
