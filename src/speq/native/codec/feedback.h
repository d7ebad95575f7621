// Error feedback over 32 rows at once: each column is drafted so that it makes up for the errors of others.
// speq.formats.feedback has the formulas and defines the results to the bit.
#pragma once

#include <array>
#include <vector>

#include "codec/drafts.h"
#include "codec/influence.h"

namespace speq::codec {

struct Feedback {
    Influence influence;  // of earlier columns on later ones, in the first sweep
    Influence coupling;   // of all columns on each other, in the sweeps after it
    int passes;           // how many
};

// FeedbackRows of a matrix of `columns` columns: `count` of them, with `groups` scales each in the order of the plane.
struct FeedbackRows {
    const uint16_t* patterns;
    int count;
    const uint16_t* scales;
    int64_t columns, groups;

    uint16_t scale(int row, int64_t group) const {
        return scales[(row / kRowsPerBlock * groups + group) * kRowsPerBlock + row % kRowsPerBlock];
    }
};

class ErrorFeedback {
  public:
    ErrorFeedback(const Kernels& kernels, const SplitFormat& format, const Feedback& feedback)
        : kernels_(kernels),
          format_(format),
          feedback_(feedback),
          patterns_(static_cast<size_t>(feedback.influence.size())),
          errors_(patterns_.size()),
          chosen_(patterns_.size()) {}

    // Writes the bin of every weight to bins[row * rows.columns + column], -1 for an escape.
    void choose(const FeedbackRows& rows, int8_t* bins) {
        rows_ = rows;
        const int64_t size = feedback_.influence.size();
        for (block_ = 0; block_ * size < rows.columns; ++block_) {
            first_ = block_ * size;
            width_ = std::min(size, rows.columns - first_);
            load();
            sweep(feedback_.influence, false);
            for (int pass = 0; pass < feedback_.passes; ++pass) sweep(feedback_.coupling, true);
            for (int row = 0; row < rows.count; ++row)
                for (int64_t k = 0; k < width_; ++k)
                    bins[row * rows.columns + first_ + k] = chosen_[static_cast<size_t>(k)][row];
        }
    }

  private:
    // One value per row, aligned so that no vector of them lies across two cache lines.
    template <typename T>
    struct alignas(64) Column : std::array<T, kFeedbackRows> {};

    bool finite(uint16_t pattern) const { return (pattern & 0x7fff) < infinity(format_.dtype); }

    // The weights of the block, column by column; rows that are missing are zero.
    void load() {
        for (int64_t k = 0; k < width_; ++k) patterns_[static_cast<size_t>(k)].fill(0);
        for (int row = 0; row < rows_.count; ++row) {
            const uint16_t* from = rows_.patterns + row * rows_.columns + first_;
            for (int64_t k = 0; k < width_; ++k) patterns_[static_cast<size_t>(k)][row] = from[k];
        }
    }

    // Chooses the bins of the block, column after column. With `later` the errors of later columns, as they are from
    // the sweep before, count as well.
    void sweep(const Influence& influence, bool later) {
        group_ = -1;
        for (int64_t begin = 0; begin < width_; begin += kFeedbackColumns) {
            const int64_t end = std::min(begin + kFeedbackColumns, width_);
            const float* factors = influence.strip(block_, begin / kFeedbackColumns);
            for (int64_t k = begin; k < end; ++k) load_weights(k, weights_[k - begin]);
            targets_ = weights_;
            if (later) {
                add_within(factors, begin, end);
                add(factors, end, width_);
            }
            add(factors, 0, begin);
            for (int64_t k = begin; k < end; ++k) {
                choose_column(k, weights_[k - begin], targets_[k - begin]);
                add(factors, k, k + 1);  // targets up to column k are of no use any more
            }
        }
    }

    // Counts the errors of columns [from, to) in the targets.
    void add(const float* factors, int64_t from, int64_t to) {
        if (from < to)
            kernels_.add_products(errors_[static_cast<size_t>(from)].data(), factors + from * kFeedbackColumns,
                                  static_cast<int>(to - from), targets_[0].data());
    }

    // Counts the errors of the columns of a strip, each in the targets before its own.
    void add_within(const float* factors, int64_t begin, int64_t end) {
        for (int64_t j = begin + 1; j < end; ++j)
            for (int64_t k = begin; k < j; ++k) {
                const float factor = factors[j * kFeedbackColumns + k - begin];
                for (int row = 0; row < kFeedbackRows; ++row)
                    targets_[k - begin][row] += errors_[static_cast<size_t>(j)][row] * factor;
            }
    }

    void load_weights(int64_t column, Column<float>& weights) const {
        for (int row = 0; row < kFeedbackRows; ++row) {
            const uint16_t pattern = patterns_[static_cast<size_t>(column)][row];
            weights[row] = finite(pattern) ? to_float(format_.dtype, pattern) : 0.0f;
        }
    }

    void choose_column(int64_t column, const Column<float>& weights, const Column<float>& targets) {
        set_group((first_ + column) / format_.group_size);
        const Column<uint16_t>& patterns = patterns_[static_cast<size_t>(column)];
        Column<int32_t> magnitudes, negative, bins;
        Column<float> values;
        for (int row = 0; row < kFeedbackRows; ++row) {
            magnitudes[row] = patterns[row] & 0x7fff;
            negative[row] = -(patterns[row] >> 15);
        }
        kernels_.nearest_bins_of_rows({magnitudes.data(), negative.data(), targets.data(), kFeedbackRows}, bins_,
                                      format_.residual_bits, bins.data(), values.data());
        for (int row = 0; row < kFeedbackRows; ++row) {
            chosen_[static_cast<size_t>(column)][row] = static_cast<int8_t>(bins[row]);
            errors_[static_cast<size_t>(column)][row] = finite(patterns[row]) ? weights[row] - values[row] : 0.0f;
        }
    }

    void set_group(int64_t group) {
        if (group == group_) return;
        group_ = group;
        for (int row = 0; row < kFeedbackRows; ++row) {
            const uint16_t scale = row < rows_.count ? rows_.scale(row, group) : static_cast<uint16_t>(0);
            const Bins start = format_.bins(scale);
            const Drafts drafts = drafts_of(format_, bf16_to_float(scale) * (1.0f / 64));
            for (size_t c = 0; c < 8; ++c) {
                bins_.start[c][row] = start[c];
                bins_.above[c][row] = drafts.above[c];
                bins_.below[c][row] = drafts.below[c];
            }
        }
    }

    const Kernels& kernels_;
    const SplitFormat& format_;
    const Feedback& feedback_;
    FeedbackRows rows_ = {};
    int64_t block_ = 0, first_ = 0, width_ = 0;  // of the block: its index, first column and columns
    int64_t group_ = -1;                         // whose bins are in `bins_`
    alignas(64) RowBins bins_;
    std::vector<Column<uint16_t>> patterns_;  // of the block, by column
    std::vector<Column<float>> errors_;
    std::vector<Column<int8_t>> chosen_;
    std::array<Column<float>, kFeedbackColumns> weights_, targets_;
};

}  // namespace speq::codec
