// The input of a matrix product, made ready once by each member: normalised, and quantised for the draft.
#pragma once
#include <algorithm>

#include "step.h"

namespace speq {

class ProductInput {
  public:
    // Tokens first..first+count-1 of `x`. Every member must construct it, because many tokens are prepared together.
    ProductInput(Step& step, const Pass& pass, int member, Buffer& x, Norm norm, int first, int count)
        : scratch_(step.scratch(member)), count_(count), draft_(pass.draft) {
        rows_ = x.row(first);
        stride_ = x.stride;
        if (!norm.weight) return;
        float* out = count <= kFewTokens ? scratch_.input.get() : step.shared_input();
        const int step_by = count <= kFewTokens ? 1 : step.team().size();
        for (int t = count <= kFewTokens ? 0 : member; t < count; t += step_by)
            step.kernels().rms_norm(x.row(first + t), norm.weight, x.width, x.stride, norm.eps,
                                    out + static_cast<size_t>(t) * x.stride);
        if (count > kFewTokens) step.team().barrier();
        rows_ = out;
    }

    int count() const { return count_; }

    // out[row_block - begin][token][4]
    void multiply(const Matrix& m, int begin, int end, float* out) {
        if (!draft_) return m.exact_rows(m.weight, rows_, stride_, count_, begin, end, out, scratch_.strip.get());
        for (int t = 0; t < count_; ++t) {
            const DraftRow row{scratch_.quantised.get(), scratch_.quantised_scales.get(),
                               scratch_.quantised_offsets.get()};
            if (quantised_token_ != t || quantised_for_ != m.quantise) {
                m.quantise(rows_ + static_cast<size_t>(t) * stride_, stride_, row);
                quantised_token_ = t;
                quantised_for_ = m.quantise;
            }
            if (count_ == 1) return m.draft_rows(m.weight, row, begin, end, out);
            float rows[kChunk * kRowsPerBlock];
            m.draft_rows(m.weight, row, begin, end, rows);
            for (int rb = 0; rb < end - begin; ++rb)
                for (int r = 0; r < kRowsPerBlock; ++r)
                    out[(static_cast<size_t>(rb) * count_ + t) * kRowsPerBlock + r] = rows[rb * kRowsPerBlock + r];
        }
    }

  private:
    Scratch& scratch_;
    const float* rows_;
    size_t stride_;
    int count_;
    bool draft_;
    int quantised_token_ = -1;
    Kernels::Quantise quantised_for_ = nullptr;
};

// Row blocks that a member takes at a time: small enough to share evenly, large enough to stream.
inline int chunk_of(int row_blocks, int threads) { return std::clamp(row_blocks / (threads * 8), 1, kChunk); }

}  // namespace speq
