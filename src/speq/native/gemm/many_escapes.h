// Escapes of a row block for many tokens: weights whose slot in the planes was multiplied as T[0] of their group. What
// a slot lacks times its activation is summed for each row, in order of the columns, and added to the sum of the
// planes.
#pragma once
#include <algorithm>
#include <cmath>

#include "gemm/activations.h"

namespace speq::SPEQ_ISA {

class ManyEscapes {
  public:
    SPEQ_INLINE explicit ManyEscapes(const SplitWeight& w) : w_(w) {}

    // Adds to y[token][4] of a row block for any number of tokens, whose activations stand in prepared rows.
    template <DType D>
    void add(int row_block, const float* x, size_t stride, int tokens, float* y) const {
        each_row(row_block, [&](int r, uint32_t first, uint32_t last) {
            for (int t = 0; t < tokens; ++t) {
                float sum = 0;
                for (uint32_t e = first; e < last; ++e)
                    sum = std::fma(w_.escape_deltas[e], activation<D>(x + t * stride, w_.escape_columns[e]), sum);
                y[t * kRowsPerBlock + r] += sum;
            }
        });
    }

    // Adds with activations that were gathered, those of escape e at gathered + (e - begin) * stride. `sums` is room
    // for `stride` floats, a multiple of eight.
    void add_gathered(int row_block, uint32_t begin, const float* gathered, size_t stride, int tokens, float* sums,
                      float* y) const {
        each_row(row_block, [&](int r, uint32_t first, uint32_t last) {
            std::fill_n(sums, stride, 0.0f);
            for (uint32_t e = first; e < last; ++e) {
                const float* x = gathered + (e - begin) * stride;
                const Vec8 delta = broadcast(w_.escape_deltas[e]);
                for (size_t t = 0; t < stride; t += 8) store(sums + t, fma(delta, load(x + t), load(sums + t)));
            }
            for (int t = 0; t < tokens; ++t) y[t * kRowsPerBlock + r] += sums[t];
        });
    }

  private:
    const uint32_t* ends(int row_block) const {
        return w_.escape_rows + static_cast<size_t>(row_block) * kRowsPerBlock;
    }
    bool any(int row_block) const { return ends(row_block)[0] != ends(row_block)[kRowsPerBlock]; }

    // f(row in the block, its escapes first..last-1) for all rows of a block that has any.
    template <class Do>
    SPEQ_INLINE void each_row(int row_block, Do&& f) const {
        if (!any(row_block)) return;
        const uint32_t* at = ends(row_block);
        unroll<kRowsPerBlock>([&](auto r) SPEQ_LAMBDA { f(r, at[r], at[r + 1]); });
    }

    const SplitWeight& w_;
};

}  // namespace speq::SPEQ_ISA
