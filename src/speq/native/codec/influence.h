// How columns count in each other, in the order in which the encoder reads it.
#pragma once

#include <algorithm>
#include <vector>

#include "core/kernels.h"
#include "core/parallel.h"

namespace speq::codec {

// float32 [blocks][size][size], cut into strips of kFeedbackColumns columns that lie one after the other.
class Influence {
  public:
    Influence(const float* values, int64_t blocks, int64_t size, int threads)
        : size_(size),
          strips_((size + kFeedbackColumns - 1) / kFeedbackColumns),
          values_(static_cast<size_t>(blocks * strips_ * size * kFeedbackColumns)) {
        parallel_for(blocks * strips_, threads, [&] {
            return [&](int64_t i) {
                const int64_t first = i % strips_ * kFeedbackColumns;
                const int64_t count = std::min<int64_t>(kFeedbackColumns, size - first);
                const float* from = values + i / strips_ * size * size + first;
                float* to = values_.data() + i * size * kFeedbackColumns;
                for (int64_t j = 0; j < size; ++j) std::copy_n(from + j * size, count, to + j * kFeedbackColumns);
            };
        });
    }

    int64_t size() const { return size_; }

    // How all columns of a block count in those from kFeedbackColumns * index on: [size][kFeedbackColumns].
    const float* strip(int64_t block, int64_t index) const {
        return values_.data() + (block * strips_ + index) * size_ * kFeedbackColumns;
    }

  private:
    const int64_t size_, strips_;
    std::vector<float> values_;
};

}  // namespace speq::codec
