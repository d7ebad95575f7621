// Memory for the draft activations of a few tokens.
#pragma once
#include <vector>

#include "core/aligned.h"
#include "core/kernels.h"

namespace speq {

class DraftInput {
  public:
    DraftInput() = default;
    // For kFewTokens tokens of so many padded columns.
    explicit DraftInput(int columns)
        : values_(make_aligned<int8_t>(static_cast<size_t>(kFewTokens) * kDraftCopies * columns)),
          scales_(make_aligned<float>(static_cast<size_t>(kFewTokens) * columns / 32)),
          offsets_(make_aligned<int32_t>(static_cast<size_t>(kFewTokens) * kDraftCopies * columns / 4)) {
        for (size_t t = 0; t < kFewTokens; ++t)
            rows_.push_back({values_.get() + t * kDraftCopies * columns, scales_.get() + t * columns / 32,
                             offsets_.get() + t * kDraftCopies * columns / 4});
    }

    const DraftRow* rows() const { return rows_.data(); }

  private:
    Aligned<int8_t> values_;
    Aligned<float> scales_;
    Aligned<int32_t> offsets_;
    std::vector<DraftRow> rows_;
};

}  // namespace speq
