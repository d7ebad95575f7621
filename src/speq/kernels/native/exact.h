// The exact product y = W x for any number of tokens, with weights rebuilt from both planes.
//
// One order of summation for every token count, thread count and instruction set (docs/exactness.md): lane l of eight
// accumulates columns l, l+8, l+16, ... with fused multiply-adds, the lanes are summed in the order of sum(), then the
// escapes of the row are added in order of their columns. Everything below only chooses which (row, token) pairs go together.
#pragma once
#include <algorithm>

#include "block_decoder.h"

namespace speq::SPEQ_ISA {

template <class F>
class ExactRows {
  public:
    SPEQ_INLINE ExactRows(const SplitWeight& w, const float* x, size_t x_stride)
        : w_(w), maker_(w), x_(x), x_stride_(x_stride), group_shift_(w.group_size == 128 ? 1 : 0) {}

    // y[(row_block - begin) * tokens + t][4]
    template <int M>
    void few(int begin, int end, float* y) const {
        for (int rb = begin; rb < end; ++rb, y += M * kRowsPerBlock) {
            Vec8 acc[kRowsPerBlock][M];
#pragma GCC unroll 4
            for (auto& row : acc)
#pragma GCC unroll 8
                for (auto& a : row) a = zero();
            if constexpr (M <= 2)
                all_rows<M>(rb, acc);
            else
                strips<M>(rb, acc);
            for (int r = 0; r < kRowsPerBlock; ++r) {
                for (int m = 0; m < M; ++m) y[m * kRowsPerBlock + r] = sum(acc[r][m]);
                add_escapes(rb, r, M, y + r);
            }
        }
    }

    // The same for many tokens: each strip of four rows is decoded once into `strip` [4][kStripBlocks * 64] and multiplied
    // with all tokens; `acc` holds tokens * 4 vectors between strips.
    void many(int tokens, int begin, int end, float* y, float* strip, float* acc) const {
        constexpr int stride = kStripBlocks * kBlock;
        for (int rb = begin; rb < end; ++rb, y += tokens * kRowsPerBlock) {
            std::fill(acc, acc + static_cast<size_t>(tokens) * kRowsPerBlock * 8, 0.0f);
            const uint16_t* scales = w_.scales_at(rb);
            for (int first = 0; first < w_.blocks(); first += kStripBlocks) {
                const int last = std::min(first + kStripBlocks, w_.blocks());
                for (int b = first; b < last; ++b)
                    for (int r = 0; r < kRowsPerBlock; ++r) {
                        float* out = strip + r * stride + (b - first) * kBlock;
                        decode(rb, b, r, scales, [&](int j, Vec8 w) { store(out + 8 * j, w); });
                    }
                const int width = (last - first) * kBlock;
                int m = 0;
                for (; m + 3 <= tokens; m += 3) tile<3>(strip, width, m, first * kBlock, acc);
                for (; m < tokens; ++m) tile<1>(strip, width, m, first * kBlock, acc);
            }
            for (int r = 0; r < kRowsPerBlock; ++r) {
                for (int m = 0; m < tokens; ++m) y[m * kRowsPerBlock + r] = sum(load(acc + (m * kRowsPerBlock + r) * 8));
                add_escapes(rb, r, tokens, y + r);
            }
        }
    }

  private:
    template <class Emit>
    SPEQ_INLINE void decode(int rb, int b, int r, const uint16_t* scales, Emit&& emit) const {
        const BlockTables<F> tables(maker_, scales, b, r, group_shift_);
        const size_t at = static_cast<size_t>(rb) * w_.blocks() + b;
        decode_block<F>(w_.codes + at * (kRowsPerBlock * kBlock / 2), w_.residual + at * F::tile, r, tables.first,
                        tables.second, emit);
    }

    // Few enough accumulators for the registers: block by block over the four rows.
    template <int M>
    SPEQ_INLINE void all_rows(int rb, Vec8 (&acc)[kRowsPerBlock][M]) const {
        const uint16_t* scales = w_.scales_at(rb);
        for (int b = 0; b < w_.blocks(); ++b) {
            const float* x = x_ + static_cast<size_t>(b) * kBlock;
#pragma GCC unroll 4
            for (int r = 0; r < kRowsPerBlock; ++r)
                decode(rb, b, r, scales, [&](int j, Vec8 w) SPEQ_LAMBDA {
#pragma GCC unroll 8
                    for (int m = 0; m < M; ++m) acc[r][m] = fma(w, load(x + m * x_stride_ + 8 * j), acc[r][m]);
                });
        }
    }

    // More tokens: row by row within a strip, the accumulators of one row in registers.
    template <int M>
    SPEQ_INLINE void strips(int rb, Vec8 (&acc)[kRowsPerBlock][M]) const {
        const uint16_t* scales = w_.scales_at(rb);
        for (int first = 0; first < w_.blocks(); first += kStripBlocks) {
            const int last = std::min(first + kStripBlocks, w_.blocks());
            for (int r = 0; r < kRowsPerBlock; ++r) {
                Vec8 a[M];
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) a[m] = acc[r][m];
                for (int b = first; b < last; ++b) {
                    const float* x = x_ + static_cast<size_t>(b) * kBlock;
                    decode(rb, b, r, scales, [&](int j, Vec8 w) SPEQ_LAMBDA {
#pragma GCC unroll 8
                        for (int m = 0; m < M; ++m) a[m] = fma(w, load(x + m * x_stride_ + 8 * j), a[m]);
                    });
                }
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) acc[r][m] = a[m];
            }
        }
    }

    template <int M>
    SPEQ_INLINE void tile(const float* strip, int width, int token, int column, float* acc) const {
        constexpr int stride = kStripBlocks * kBlock;
        Vec8 a[M][kRowsPerBlock];
        float* home = acc + static_cast<size_t>(token) * kRowsPerBlock * 8;
        const float* x = x_ + token * x_stride_ + column;
#pragma GCC unroll 3
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int r = 0; r < kRowsPerBlock; ++r) a[m][r] = load(home + (m * kRowsPerBlock + r) * 8);
        for (int k = 0; k < width; k += 8) {
            Vec8 w[kRowsPerBlock];
#pragma GCC unroll 4
            for (int r = 0; r < kRowsPerBlock; ++r) w[r] = load(strip + r * stride + k);
#pragma GCC unroll 3
            for (int m = 0; m < M; ++m) {
                const Vec8 v = load(x + m * x_stride_ + k);
#pragma GCC unroll 4
                for (int r = 0; r < kRowsPerBlock; ++r) a[m][r] = fma(w[r], v, a[m][r]);
            }
        }
#pragma GCC unroll 3
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int r = 0; r < kRowsPerBlock; ++r) store(home + (m * kRowsPerBlock + r) * 8, a[m][r]);
    }

    // An escape's slot was multiplied as T[0] of its group: take that back and add the true weight.
    void add_escapes(int rb, int r, int tokens, float* y) const {
        const int row = rb * kRowsPerBlock + r;
        for (uint32_t e = w_.escape_rows[row]; e < w_.escape_rows[row + 1]; ++e) {
            const int column = w_.escape_columns[e];
            const float slot = to_float<F::dtype>(slot_bits(row, column)), weight = to_float<F::dtype>(w_.escape_values[e]);
            for (int m = 0; m < tokens; ++m) {
                const float x = x_[m * x_stride_ + column];
                y[m * kRowsPerBlock] = std::fma(weight, x, std::fma(-slot, x, y[m * kRowsPerBlock]));
            }
        }
    }

    uint16_t slot_bits(int row, int column) const {
        if constexpr (!F::table_per_group) return w_.table[0];
        const uint16_t edge = truncate_to<F::dtype>(w_.edges[0] * w_.scale(row, column));
        return edge > w_.drops[0] ? static_cast<uint16_t>(edge - w_.drops[0]) : 0;
    }

    const SplitWeight& w_;
    TableMaker<F> maker_;
    const float* x_;
    size_t x_stride_;
    int group_shift_;
};

// y[row_block - begin][token][4] for row blocks begin..end-1; `scratch` as exact_scratch() says.
template <class F>
void exact_rows(const SplitWeight& w, const float* x, size_t x_stride, int tokens, int begin, int end, float* y,
                float* scratch) {
    const ExactRows<F> rows(w, x, x_stride);
    switch (tokens) {
        case 1: return rows.template few<1>(begin, end, y);
        case 2: return rows.template few<2>(begin, end, y);
        case 3: return rows.template few<3>(begin, end, y);
        case 4: return rows.template few<4>(begin, end, y);
        case 5: return rows.template few<5>(begin, end, y);
        case 6: return rows.template few<6>(begin, end, y);
        case 7: return rows.template few<7>(begin, end, y);
        case 8: return rows.template few<8>(begin, end, y);
        default: return rows.many(tokens, begin, end, y, scratch, scratch + kRowsPerBlock * kStripBlocks * kBlock);
    }
}

}  // namespace speq::SPEQ_ISA
