// Error feedback over the four rows of a row block: each column is drafted so that it makes up for the errors of
// earlier ones. speq.bits.feedback has the formula and defines the results to the bit.
#pragma once

#include <vector>

#include "codec_format.h"

namespace speq::codec {

// How much a column's error counts in later ones, float32 [blocks][size][size]; size 0: no feedback.
struct Feedback {
    const float* influence = nullptr;
    int64_t size = 0;
};

class ErrorFeedback {
  public:
    ErrorFeedback(const Format& format, const Feedback& feedback, int64_t columns)
        : format_(format),
          feedback_(feedback),
          columns_(columns),
          weights_(feedback.size ? size_t(kRows * columns) : 0),
          targets_(weights_.size()) {}

    // rows[r]: the patterns of row r, for the first `count` of the four.
    void begin(const uint16_t* const* rows, int count) {
        std::fill(weights_.begin(), weights_.end(), 0.0f);
        std::fill(std::begin(errors_), std::end(errors_), 0.0f);
        for (int row = 0; row < count; ++row) {
            patterns_[row] = rows[row];
            for (int64_t k = 0; k < columns_; ++k)
                if (finite(rows[row][k])) weights_[size_t(row * columns_ + k)] = widen(rows[row][k], format_.bf16);
        }
        targets_ = weights_;
    }

    // The scale of a row from the next column on.
    void set_scale(int row, uint16_t scale) {
        start_[row] = bins(format_, scale);
        drafts_[row] = drafts_of(format_, std::bit_cast<float>(uint32_t(scale) << 16) * (1.0f / 64));
    }
    const Bins& start(int row) const { return start_[row]; }

    // The bin of the weight in this column, -1 for an escape.
    int32_t choose(int row, int64_t column) {
        const size_t at = size_t(row * columns_ + column);
        const uint16_t pattern = patterns_[row][column];
        const int32_t magnitude = pattern & 0x7fff, negative = -(pattern >> 15);
        int32_t bin;
        float value;
        format_.nearest_bins({&magnitude, &negative, &targets_[at], 1}, start_[row].data(), drafts_[row],
                             format_.residual_bits, &bin, &value);
        errors_[row] = finite(pattern) ? weights_[at] - value : 0.0f;
        return bin;
    }

    // Hands the errors of this column on, once every row has chosen.
    void spread(int64_t column) {
        const int64_t size = feedback_.size, first = column + 1;
        const int64_t last = std::min(columns_, (column / size + 1) * size);
        format_.add_outer(errors_, feedback_.influence + column * size + first % size, int(last - first),
                          targets_.data() + first, size_t(columns_));
    }

  private:
    bool finite(uint16_t pattern) const { return (pattern & 0x7fff) < format_.infinity(); }

    const Format& format_;
    const Feedback feedback_;
    const int64_t columns_;
    std::vector<float> weights_, targets_;  // [4][columns]
    const uint16_t* patterns_[kRows] = {};
    Bins start_[kRows];
    Drafts drafts_[kRows];
    float errors_[kRows] = {};
};

}  // namespace speq::codec
