// The input of a matrix product, packed by each worker when it gets its first task: normalised, and quantised for
// the draft or prepared for the exact product. Many tokens are packed together before (PackRows in
// step_operators.cpp).
#pragma once
#include <algorithm>

#include "step/step.h"

namespace speq {

// How the row blocks of a product are cut into tasks: small enough to share evenly, large enough to stream. As many for
// each thread as for the others, and all of about one size.
struct Chunks {
    Chunks(int row_blocks, int threads, int tokens) : total(row_blocks) {
        const int largest = tokens <= kFewTokens ? kFewTokensChunk : kManyTokensChunk;
        const int wanted = std::max((total + largest - 1) / largest, std::min(total, kTasksPerThread * threads));
        tasks = std::min(total, (wanted + threads - 1) / threads * threads);
    }

    int count() const { return tasks; }
    int begin(int task) const { return static_cast<int>(static_cast<int64_t>(total) * task / tasks); }
    int end(int task) const { return begin(task + 1); }

    static constexpr int kTasksPerThread = 4;
    int total, tasks;
};

// The results of row blocks begin..end-1 for one token, out of y[row block][token][4] to out[4 (row block - begin)].
inline void gather_token(const float* y, int begin, int end, int token, int tokens, float* out) {
    y += static_cast<size_t>(token) * kRowsPerBlock;
    for (int rb = begin; rb < end; ++rb, out += kRowsPerBlock, y += static_cast<size_t>(tokens) * kRowsPerBlock)
        std::copy_n(y, kRowsPerBlock, out);
}

class ProductInput {
  public:
    // All rows of `x`, or those that `rows` lists.
    ProductInput(Step& step, const Pass& pass, int worker, Buffer& x, Norm norm,
                 const std::vector<int32_t>* rows = nullptr)
        : step_(step),
          scratch_(step.scratch(worker)),
          x_(x),
          norm_(norm),
          listed_(rows),
          count_(rows ? static_cast<int>(rows->size()) : pass.count()),
          draft_(pass.is_draft()) {}

    int count() const { return count_; }

    // out[row_block - begin][token][4]; only inside a task.
    void multiply(const BoundWeight& m, int begin, int end, float* out) {
        if (!draft_) return m.exact_rows(m.weight, prepared(m), begin, end, out, scratch_.strip.get());
        if (m.draft_few && count_ > 1)
            return draft(begin, end, out, [&](int first, int tokens, float* y) {
                m.draft_few(m.weight, packed(m.prepare_draft, first, tokens), begin, end, y, scratch_.strip.get());
            });
        draft(begin, end, out, [&](int first, int tokens, float* y) {
            const DraftRow* rows = scratch_.draft.rows();
            if (quantised_for_ != m.quantise || quantised_first_ != first) {
                for (int t = 0; t < tokens; ++t) m.quantise(normalised() + offset(first + t), x_.stride, rows[t]);
                quantised_for_ = m.quantise;
                quantised_first_ = first;
            }
            m.draft_rows(m.weight, rows, tokens, begin, end, y);
        });
    }

  private:
    // out[row_block - begin][token][4] from product(first, tokens, y[row_block - begin][token][4]) of a few tokens
    // each.
    template <class Product>
    void draft(int begin, int end, float* out, Product&& product) {
        if (count_ <= kFewTokens) return product(0, count_, out);
        for (int first = 0; first < count_; first += kFewTokens) {
            const int tokens = std::min(kFewTokens, count_ - first);
            float drafted[kFewTokensChunk * kFewTokens * kRowsPerBlock];
            product(first, tokens, drafted);
            for (int rb = 0; rb < end - begin; ++rb)
                std::copy_n(drafted + static_cast<size_t>(rb) * tokens * kRowsPerBlock, tokens * kRowsPerBlock,
                            out + (static_cast<size_t>(rb) * count_ + first) * kRowsPerBlock);
        }
    }

    size_t offset(int token) const { return static_cast<size_t>(token) * x_.stride; }

    const float* normalised() {
        if (rows_) return rows_;
        if (!norm_.weight && !listed_) return rows_ = x_.row(0);
        if (count_ > kFewTokens) return rows_ = step_.shared_input();
        for (int t = 0; t < count_; ++t) {
            const float* row = x_.row(listed_ ? (*listed_)[t] : t);
            float* out = scratch_.input.get() + offset(t);
            if (norm_.weight)
                step_.kernels().rms_norm(row, norm_.weight, x_.width, x_.stride, norm_.eps, out);
            else
                std::copy_n(row, x_.stride, out);
        }
        return rows_ = scratch_.input.get();
    }

    Activations prepared(const BoundWeight& m) {
        if (count_ <= kFewTokens) return packed(m.prepare_few, 0, count_);
        const float* rows = m.prepare_row ? step_.shared_input() : normalised();
        return {rows, static_cast<size_t>(x_.stride), count_};
    }

    // A few tokens from `first` on. Each worker packs its own copy of them: cheaper than sharing with a barrier.
    Activations packed(Kernels::PrepareFew prepare, int first, int tokens) {
        const size_t stride = static_cast<size_t>(x_.stride);
        if (packed_for_ != prepare || packed_first_ != first) {
            prepare(normalised() + offset(first), stride, tokens, x_.stride, scratch_.rows.get());
            packed_for_ = prepare;
            packed_first_ = first;
        }
        return {scratch_.rows.get(), stride, tokens};
    }

    Step& step_;
    Scratch& scratch_;
    Buffer& x_;
    Norm norm_;
    const std::vector<int32_t>* listed_;
    int count_;
    bool draft_;
    const float* rows_ = nullptr;
    Kernels::PrepareFew packed_for_ = nullptr;
    int packed_first_ = 0;
    Kernels::Quantise quantised_for_ = nullptr;
    int quantised_first_ = 0;
};

}  // namespace speq
