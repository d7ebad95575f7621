// Escapes: weights whose slot in the planes was multiplied as T[0] of their group. What a slot lacks times its
// activation is summed for each row, in order of the columns, and added to the sum of the planes.
#pragma once
#include <algorithm>

#include "token_tiles.h"

namespace speq::SPEQ_ISA {

class Escapes {
  public:
    SPEQ_INLINE explicit Escapes(const SplitWeight& w) : w_(w) {}

    // Adds to y[token][4] of a row block for the M tokens of a tile.
    template <DType D, int M>
    SPEQ_INLINE void add_tile(int row_block, const float* x, float* y) const {
        if (!any(row_block)) return;
        if constexpr (M == 1) {
            float sums[kRowsPerBlock] = {};
            each(row_block, [&](int r, uint32_t e) SPEQ_LAMBDA {
                sums[r] = std::fma(w_.escape_deltas[e], activation<D>(x, w_.escape_columns[e]), sums[r]);
            });
            for (int r = 0; r < kRowsPerBlock; ++r) y[r] += sums[r];
        } else {
            unroll<(M + 7) / 8>([&](auto i) SPEQ_LAMBDA {
                constexpr int first = 8 * i;
                Vec8 sums[kRowsPerBlock] = {zero(), zero(), zero(), zero()};
                each(row_block, [&](int r, uint32_t e) SPEQ_LAMBDA {
                    const Vec8 values = tile_column<D, M, first>(x, w_.escape_columns[e]);
                    sums[r] = fma(broadcast(w_.escape_deltas[e]), values, sums[r]);
                });
                add_transposed(sums, std::min(8, M - first), y + first * kRowsPerBlock);
            });
        }
    }

    // Asks for the escapes of the row block after the next, taking it to have as many as this one has.
    SPEQ_INLINE void prefetch_after(int row_block) const {
        constexpr uint32_t deltas = 64 / sizeof(float);  // in a cache line
        prefetch(ends(row_block) + kRowsAhead);
        const uint32_t here = ends(row_block)[0], next = ends(row_block)[kRowsPerBlock];
        const uint32_t ahead = next + (next - here), end = ahead + (next - here);
        for (uint32_t e = ahead; e < end + deltas; e += deltas) prefetch(w_.escape_deltas + e);
        for (uint32_t e = ahead; e < end + 2 * deltas; e += 2 * deltas) prefetch(w_.escape_columns + e);
    }

    // The same for any number of tokens, whose activations stand in prepared rows.
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

    // The same for activations that were gathered: those of escape e at gathered + (e - begin) * stride. `sums` is room
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

    // f(row in the block, escape) for all of a block's escapes, in one loop: rows have so few that the end of a loop of
    // their own would cost more than the loop.
    template <class Do>
    SPEQ_INLINE void each(int row_block, Do&& f) const {
        const uint32_t* at = ends(row_block);
        const uint32_t end = at[kRowsPerBlock];
        for (uint32_t e = at[0]; e < end; ++e) f((e >= at[1]) + (e >= at[2]) + (e >= at[3]), e);
    }

    static constexpr int kRowsAhead = 64;

    const SplitWeight& w_;
};

}  // namespace speq::SPEQ_ISA
