// Escapes of a row block for the tokens of a tile: what their slots lack times their activations is summed for each
// row, in order of the columns, and added to the sum of the planes.
#pragma once
#include <algorithm>
#include <cmath>

#include "gemm/token_tiles.h"

namespace speq::SPEQ_ISA {

// Escapes are added one at a time, in turns with the blocks of the planes: each waits for the sum of the one before,
// and a loop of their own would end in a mispredicted branch every time.
template <DType D, int M>
class TileEscapes {
  public:
    SPEQ_INLINE TileEscapes(const SplitWeight& w, int row_block, const float* x)
        : deltas_(w.escape_deltas), columns_(w.escape_columns), x_(x) {
        const uint32_t* rows = w.escape_rows + static_cast<size_t>(row_block) * kRowsPerBlock;
        next_ = rows[0];
        std::copy_n(rows + 1, kRowsPerBlock, ends_);
        prefetch_after(rows, w);
    }

    SPEQ_INLINE void add_one() {
        if (next_ != ends_[kRowsPerBlock - 1]) add_next();
    }

    // Adds the rest, and the sums to y[m][4].
    SPEQ_INLINE void add_to(float* y) {
        while (next_ != ends_[kRowsPerBlock - 1]) add_next();
        if constexpr (M == 1) {
            for (int r = 0; r < kRowsPerBlock; ++r) y[r] += sums_[r];
        } else {
            unroll<kGroups>([&](auto i) SPEQ_LAMBDA {
                Vec8 sums[kRowsPerBlock];
                unroll<kRowsPerBlock>([&](auto r) SPEQ_LAMBDA { sums[r] = load(sum(i, r)); });
                add_transposed(sums, std::min(8, M - 8 * i), y + 8 * i * kRowsPerBlock);
            });
        }
    }

  private:
    static constexpr int kGroups = (M + 7) / 8;  // of eight tokens
    static constexpr int kRowsAhead = 64;

    SPEQ_INLINE float* sum(int group, int row) { return sums_ + (group * kRowsPerBlock + row) * 8; }

    SPEQ_INLINE void add_next() {
        const uint32_t e = next_++;
        const int row = (e >= ends_[0]) + (e >= ends_[1]) + (e >= ends_[2]), column = columns_[e];
        if constexpr (M == 1) {
            sums_[row] = std::fma(deltas_[e], activation<D>(x_, column), sums_[row]);
        } else {
            const Vec8 delta = broadcast(deltas_[e]);
            unroll<kGroups>([&](auto i) SPEQ_LAMBDA {
                store(sum(i, row), fma(delta, tile_column<D, M, 8 * i>(x_, column), load(sum(i, row))));
            });
        }
    }

    // Asks for the escapes of the row block after the next, taking it to have as many as this one has.
    static SPEQ_INLINE void prefetch_after(const uint32_t* rows, const SplitWeight& w) {
        constexpr uint32_t line = 64 / sizeof(float);
        prefetch(rows + kRowsAhead);
        const uint32_t next = rows[kRowsPerBlock], count = next - rows[0], ahead = next + count;
        for (uint32_t e = ahead; e < ahead + count + line; e += line) prefetch(w.escape_deltas + e);
        for (uint32_t e = ahead; e < ahead + count + 2 * line; e += 2 * line) prefetch(w.escape_columns + e);
    }

    const float* deltas_;
    const uint16_t* columns_;
    const float* x_;
    uint32_t next_, ends_[kRowsPerBlock];                                                // of the rows
    alignas(32) float sums_[M == 1 ? kRowsPerBlock : kGroups * kRowsPerBlock * 8] = {};  // [group][row][token]
};

}  // namespace speq::SPEQ_ISA
