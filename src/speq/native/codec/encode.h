// Encoding of a few row blocks: scales, codes, residuals and the side list of escapes.
#pragma once

#include <optional>
#include <vector>

#include "codec/feedback.h"
#include "codec/search.h"
#include "codec/tile.h"

namespace speq::codec {

constexpr int kRowBlocksAtOnce = kFeedbackRows / kRows;

struct Matrix {
    const uint16_t* patterns;  // [rows, columns]
    int64_t rows, columns, blocks, groups;

    int64_t row_blocks() const { return (rows + kRows - 1) / kRows; }
    // Pieces that can be encoded each on its own.
    int64_t pieces() const { return (row_blocks() + kRowBlocksAtOnce - 1) / kRowBlocksAtOnce; }
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
            const Feedback* feedback, const Planes& planes)
        : format_(format),
          matrix_(matrix),
          importance_(importance),
          candidates_(candidates),
          planes_(planes),
          layout_(format),
          padded_(matrix.groups * format.group_size),
          codes_(size_t(kRows * padded_)),
          residuals_(codes_.size()) {
        if (!feedback) return;
        feedback_.emplace(format, *feedback);
        bins_.resize(size_t(kFeedbackRows * matrix.columns));
    }

    // Appends the escapes of a piece and writes their number for each row of its row blocks.
    void piece(int64_t index, Escapes& escapes, uint32_t* counts) {
        const int64_t first = index * kRowBlocksAtOnce, last = std::min(first + kRowBlocksAtOnce, matrix_.row_blocks());
        if (feedback_) choose_with_feedback(first, last);
        for (int64_t block_row = first; block_row < last; ++block_row) {
            for (int row = 0; row < kRows; ++row) {
                const size_t before = escapes.columns.size();
                encode_row(block_row, row);
                if (row < rows(block_row)) list_escapes(block_row, row, escapes);
                pack(block_row, row);
                counts[kRows * block_row + row] = uint32_t(escapes.columns.size() - before);
            }
        }
    }

  private:
    int rows(int64_t block_row) const { return int(std::min<int64_t>(kRows, matrix_.rows - kRows * block_row)); }
    const uint16_t* patterns(int64_t block_row, int row) const {
        return matrix_.patterns + (kRows * block_row + row) * matrix_.columns;
    }
    uint16_t& scale(int64_t block_row, int row, int64_t group) const {
        return planes_.scales[(block_row * matrix_.groups + group) * kRows + row];
    }
    uint8_t* codes(int row) { return codes_.data() + row * padded_; }
    uint16_t* residuals(int row) { return residuals_.data() + row * padded_; }

    // Scales of the row blocks, and the bins of all their weights.
    void choose_with_feedback(int64_t first, int64_t last) {
        for (int64_t block_row = first; block_row < last; ++block_row)
            for (int row = 0; row < rows(block_row); ++row)
                for (int64_t g = 0; g < matrix_.groups; ++g) set_scale(block_row, row, g);
        const int64_t count = std::min(kRows * last, matrix_.rows) - kRows * first;
        feedback_->choose({patterns(first, 0), int(count), &scale(first, 0, 0), matrix_.columns, matrix_.groups},
                          bins_.data());
    }

    // Codes and residuals of a row, with feedback from its chosen bins.
    void encode_row(int64_t block_row, int row) {
        if (row >= rows(block_row)) return clear_row(block_row, row);
        for (int64_t g = 0; g < matrix_.groups; ++g) {
            if (feedback_)
                put_group(block_row, row, g);
            else
                choose_group(block_row, row, g);
        }
    }

    // Loads a group, finds its scale and returns how many true columns it has.
    int set_scale(int64_t block_row, int row, int64_t g) {
        const int64_t first = g * format_.group_size;
        const int count = int(std::clamp<int64_t>(matrix_.columns - first, 0, format_.group_size));
        load_group(group_, format_, patterns(block_row, row) + first, importance_ + first, count);
        scale(block_row, row, g) =
            format_.nested ? nested_scale(format_, group_, candidates_, choice_) : e3m0_scale(format_, group_, choice_);
        return count;
    }

    void choose_group(int64_t block_row, int row, int64_t g) {
        const int count = set_scale(block_row, row, g);
        const uint16_t scale = this->scale(block_row, row, g);
        const Bins start = speq::codec::bins(format_, scale);
        choose(format_, group_, start, near_one(format_, group_, scale), choice_);
        for (int i = 0; i < format_.group_size; ++i)
            put(row, g * format_.group_size + i, i < count, group_.magnitude[i], group_.negative[i], choice_.bin[i],
                start);
    }

    void put_group(int64_t block_row, int row, int64_t g) {
        const int8_t* bins = bins_.data() + (block_row % kRowBlocksAtOnce * kRows + row) * matrix_.columns;
        const Bins start = speq::codec::bins(format_, scale(block_row, row, g));
        for (int64_t k = g * format_.group_size; k < (g + 1) * format_.group_size; ++k) {
            const bool real = k < matrix_.columns;
            const int32_t pattern = real ? patterns(block_row, row)[k] : 0;
            put(row, k, real, pattern & 0x7fff, -(pattern >> 15), real ? bins[k] : -1, start);
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
    const Planes planes_;
    const TileLayout layout_;
    const int64_t padded_;  // columns
    std::vector<uint8_t> codes_;
    std::vector<uint16_t> residuals_;
    std::optional<ErrorFeedback> feedback_;
    std::vector<int8_t> bins_;  // [kFeedbackRows, columns], with feedback
    Group group_;
    Choice choice_;
};

}  // namespace speq::codec
