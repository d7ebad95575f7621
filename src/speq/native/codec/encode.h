// Encoding of a few row blocks: scales, codes, residuals and the side list of escapes.
#pragma once

#include <optional>
#include <vector>

#include "codec/feedback.h"
#include "codec/search.h"
#include "codec/tile.h"

namespace speq::codec {

constexpr int kRowBlocksAtOnce = kFeedbackRows / kRowsPerBlock;

struct EncoderInput : SplitShape {
    const uint16_t* patterns;  // [rows, columns]

    // Pieces that can be encoded each on its own.
    int64_t pieces() const { return (row_blocks() + kRowBlocksAtOnce - 1) / kRowBlocksAtOnce; }
};

constexpr uint8_t kEscape = 0xff;  // in place of a code, until the escapes are listed

struct EncodedPlanes {
    uint8_t* codes;
    uint8_t* residual;
    uint16_t* scales;
};

struct Escapes {
    std::vector<uint16_t> columns, values;
};

class Encoder {
  public:
    Encoder(const Kernels& kernels, const EncoderInput& matrix, const float* importance,
            std::span<const float> candidates, const Feedback* feedback, const EncodedPlanes& planes)
        : kernels_(kernels),
          matrix_(matrix),
          importance_(importance),
          candidates_(candidates),
          planes_(planes),
          layout_(matrix),
          padded_(int64_t{matrix.groups()} * matrix.group_size),
          codes_(static_cast<size_t>(kRowsPerBlock * padded_)),
          residuals_(codes_.size()) {
        if (!feedback) return;
        feedback_.emplace(kernels, matrix_, *feedback);
        bins_.resize(static_cast<size_t>(kFeedbackRows) * matrix.columns);
    }

    // Appends the escapes of a piece and writes their number for each row of its row blocks.
    void piece(int64_t index, Escapes& escapes, uint32_t* counts) {
        const int64_t first = index * kRowBlocksAtOnce,
                      last = std::min<int64_t>(first + kRowBlocksAtOnce, matrix_.row_blocks());
        if (feedback_) choose_with_feedback(first, last);
        for (int64_t block_row = first; block_row < last; ++block_row) {
            for (int row = 0; row < kRowsPerBlock; ++row) {
                const size_t before = escapes.columns.size();
                encode_row(block_row, row);
                if (row < rows(block_row)) list_escapes(block_row, row, escapes);
                pack(block_row, row);
                counts[kRowsPerBlock * block_row + row] = static_cast<uint32_t>(escapes.columns.size() - before);
            }
        }
    }

  private:
    int rows(int64_t block_row) const {
        return static_cast<int>(std::min<int64_t>(kRowsPerBlock, matrix_.rows - kRowsPerBlock * block_row));
    }
    const uint16_t* patterns(int64_t block_row, int row) const {
        return matrix_.patterns + (kRowsPerBlock * block_row + row) * matrix_.columns;
    }
    uint16_t& scale(int64_t block_row, int row, int64_t group) const {
        return planes_.scales[(block_row * matrix_.groups() + group) * kRowsPerBlock + row];
    }
    uint8_t* codes(int row) { return codes_.data() + row * padded_; }
    uint16_t* residuals(int row) { return residuals_.data() + row * padded_; }

    // Scales of the row blocks, and the bins of all their weights.
    void choose_with_feedback(int64_t first, int64_t last) {
        for (int64_t block_row = first; block_row < last; ++block_row)
            for (int row = 0; row < rows(block_row); ++row)
                for (int64_t g = 0; g < matrix_.groups(); ++g) set_scale(block_row, row, g);
        const int64_t count = std::min<int64_t>(kRowsPerBlock * last, matrix_.rows) - kRowsPerBlock * first;
        feedback_->choose(
            {patterns(first, 0), static_cast<int>(count), &scale(first, 0, 0), matrix_.columns, matrix_.groups()},
            bins_.data());
    }

    // Codes and residuals of a row, with feedback from its chosen bins.
    void encode_row(int64_t block_row, int row) {
        if (row >= rows(block_row)) return clear_row(block_row, row);
        for (int64_t g = 0; g < matrix_.groups(); ++g) {
            if (feedback_)
                put_group(block_row, row, g);
            else
                choose_group(block_row, row, g);
        }
    }

    // Loads a group, finds its scale and returns how many true columns it has.
    int set_scale(int64_t block_row, int row, int64_t g) {
        const int64_t first = g * matrix_.group_size;
        const int count = static_cast<int>(std::clamp<int64_t>(matrix_.columns - first, 0, matrix_.group_size));
        load_group(group_, matrix_, patterns(block_row, row) + first, importance_ + first, count);
        scale(block_row, row, g) = matrix_.table_per_group
                                       ? nested_scale(kernels_, matrix_, group_, candidates_, choice_)
                                       : e3m0_scale(kernels_, matrix_, group_, choice_);
        return count;
    }

    void choose_group(int64_t block_row, int row, int64_t g) {
        const int count = set_scale(block_row, row, g);
        const uint16_t scale = this->scale(block_row, row, g);
        const Bins start = matrix_.bins(scale);
        choose(kernels_, matrix_, group_, start, near_one(matrix_, group_, scale), choice_);
        for (int i = 0; i < matrix_.group_size; ++i)
            put(row, g * matrix_.group_size + i, i < count, group_.magnitude[i], group_.negative[i], choice_.bin[i],
                start);
    }

    void put_group(int64_t block_row, int row, int64_t g) {
        const int8_t* bins = bins_.data() + (block_row % kRowBlocksAtOnce * kRowsPerBlock + row) * matrix_.columns;
        const Bins start = matrix_.bins(scale(block_row, row, g));
        for (int64_t k = g * matrix_.group_size; k < (g + 1) * matrix_.group_size; ++k) {
            const bool real = k < matrix_.columns;
            const int32_t pattern = real ? patterns(block_row, row)[k] : 0;
            put(row, k, real, pattern & 0x7fff, -(pattern >> 15), real ? bins[k] : -1, start);
        }
    }

    void put(int row, int64_t column, bool real, int32_t magnitude, int32_t negative, int32_t bin, const Bins& start) {
        const bool stored = real && bin >= 0;
        codes(row)[column] = stored ? static_cast<uint8_t>(bin | (negative & 8))
                             : real ? kEscape
                                    : static_cast<uint8_t>(0);
        residuals(row)[column] =
            stored ? static_cast<uint16_t>(magnitude - start[static_cast<size_t>(bin)]) : static_cast<uint16_t>(0);
    }

    void list_escapes(int64_t block_row, int row, Escapes& escapes) {
        for (int64_t k = 0; k < matrix_.columns; ++k) {
            if (codes(row)[k] != kEscape) continue;
            codes(row)[k] = 0;
            escapes.columns.push_back(static_cast<uint16_t>(k));
            escapes.values.push_back(patterns(block_row, row)[k]);
        }
    }

    void clear_row(int64_t block_row, int row) {
        std::fill_n(codes(row), padded_, static_cast<uint8_t>(0));
        std::fill_n(residuals(row), padded_, static_cast<uint16_t>(0));
        for (int64_t g = 0; g < matrix_.groups(); ++g) scale(block_row, row, g) = 0;
    }

    void pack(int64_t block_row, int row) {
        for (int64_t block = 0; block < matrix_.blocks(); ++block) {
            const int64_t tile = block_row * matrix_.blocks() + block;
            pack_row(layout_, codes(row) + block * kBlock, residuals(row) + block * kBlock, row,
                     planes_.codes + tile * kCodeTile, planes_.residual + tile * matrix_.residual_tile());
        }
    }

    const Kernels& kernels_;
    const EncoderInput matrix_;
    const float* importance_;  // [groups * group_size]
    const std::span<const float> candidates_;
    const EncodedPlanes planes_;
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
