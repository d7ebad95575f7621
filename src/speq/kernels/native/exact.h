// The exact product y = W x for any number of tokens, with weights rebuilt from both planes.
//
// One order of summation for every token count, thread count and instruction set (docs/exactness.md): lane l of eight
// accumulates columns l, l+8, l+16, ... with fused multiply-adds, the lanes are summed in the order of sum(), then the
// escapes of the row are added in order of their columns. Everything below only chooses which (row, token) pairs go
// together.
#pragma once
#include <algorithm>

#include "block_decoder.h"

namespace speq::SPEQ_ISA {

template <class F>
class ExactRows {
  public:
    SPEQ_INLINE ExactRows(const SplitWeight& w, const float* x, size_t x_stride)
        : w_(w), maker_(w), x_(x), x_stride_(x_stride), group_shift_(w.group_size == 128 ? 1 : 0) {}

    // y[(row_block - begin) * tokens + t][4], with all accumulators of a row block in registers.
    template <int M>
    void few(int begin, int end, float* y) const {
        for (int rb = begin; rb < end; ++rb, y += M * kRowsPerBlock) {
            Wide acc[kWides][M];
            each<M>([&](auto i, auto m) SPEQ_LAMBDA { acc[i][m] = wide_zero(); });
            const uint16_t* scales = w_.scales_at(rb);
            for (int b = 0; b < w_.blocks(); ++b) {
                prefetch_ahead(rb, b);
                const float* x = x_ + static_cast<size_t>(b) * kBlock;
                if constexpr (kWides == 2 && M > 1) {
                    // The first half of the rows waits in registers for the second, so that each x is loaded once.
                    Wide half[kBlock / 8];
                    decode(rb, b, 0, scales, [&](auto j, Wide w) SPEQ_LAMBDA { half[j] = w; });
                    decode(rb, b, kWideRows, scales, [&](auto j, Wide w) SPEQ_LAMBDA {
                        unroll<M>([&](auto m) SPEQ_LAMBDA {
                            const Wide v = wide_broadcast(x + m * x_stride_ + 8 * j);
                            acc[0][m] = wide_fma(half[j], v, acc[0][m]);
                            acc[1][m] = wide_fma(w, v, acc[1][m]);
                        });
                    });
                } else {
                    unroll<kWides>([&](auto i) SPEQ_LAMBDA {
                        decode(rb, b, i * kWideRows, scales, [&](auto j, Wide w) SPEQ_LAMBDA {
                            unroll<M>([&](auto m) SPEQ_LAMBDA {
                                acc[i][m] = wide_fma(w, wide_broadcast(x + m * x_stride_ + 8 * j), acc[i][m]);
                            });
                        });
                    });
                }
            }
            each<M>([&](auto i, auto m) SPEQ_LAMBDA { wide_sum(acc[i][m], y + m * kRowsPerBlock + i * kWideRows); });
            add_escapes(rb, M, y);
        }
    }

    // The same for more tokens: a strip of the row block is decoded once into `strip` [strip width / 8][4 rows][8] and
    // multiplied with a few tokens at a time; `acc` keeps tokens * 4 vectors between strips.
    void many(int tokens, int begin, int end, float* y, float* strip, float* acc) const {
        for (int rb = begin; rb < end; ++rb, y += tokens * kRowsPerBlock) {
            std::fill(acc, acc + static_cast<size_t>(tokens) * kRowsPerBlock * 8, 0.0f);
            const uint16_t* scales = w_.scales_at(rb);
            for (int first = 0; first < w_.blocks(); first += kStripBlocks) {
                const int last = std::min(first + kStripBlocks, w_.blocks());
                for (int b = first; b < last; ++b) {
                    prefetch_ahead(rb, b);
                    unroll<kWides>([&](auto i) SPEQ_LAMBDA {
                        float* out = strip + (b - first) * kBlock * kRowsPerBlock + i * kWideRows * 8;
                        decode(rb, b, i * kWideRows, scales,
                               [&](auto j, Wide w) SPEQ_LAMBDA { wide_store(out + j * 8 * kRowsPerBlock, w); });
                    });
                }
                const int vectors = (last - first) * (kBlock / 8);
                for (int m = 0; m < tokens;) m += tile(tokens - m, strip, vectors, m, first * kBlock, acc);
            }
            for (int m = 0; m < tokens; ++m)
                unroll<kWides>([&](auto i) SPEQ_LAMBDA {
                    const int at = m * kRowsPerBlock + i * kWideRows;
                    wide_sum(wide_load(acc + at * 8), y + at);
                });
            add_escapes(rb, tokens, y);
        }
    }

  private:
    static constexpr int kWides = kRowsPerBlock / kWideRows;
    static constexpr int kPrefetchBlocks = 16;

    template <int M, class Do>
    static SPEQ_INLINE void each(Do&& f) {
        unroll<kWides>([&](auto i) SPEQ_LAMBDA { unroll<M>([&](auto m) SPEQ_LAMBDA { f(i, m); }); });
    }

    // Asks for the planes of the block kPrefetchBlocks ahead. The planes are read once and in order, but from two
    // places at a time and, with several tokens, in bursts: hardware prefetchers alone leave half of the bandwidth
    // unused.
    SPEQ_INLINE void prefetch_ahead(int rb, int b) const {
        const size_t at = static_cast<size_t>(rb) * w_.blocks() + b + kPrefetchBlocks;
        const uint8_t* codes = w_.codes + at * (kRowsPerBlock * kBlock / 2);
        const uint8_t* residual = w_.residual + at * F::tile;
        unroll<kRowsPerBlock * kBlock / 2 / 64>([&](auto i) SPEQ_LAMBDA { prefetch(codes + i * 64); });
        unroll<F::tile / 64>([&](auto i) SPEQ_LAMBDA { prefetch(residual + i * 64); });
    }

    template <class Emit>
    SPEQ_INLINE void decode(int rb, int b, int r, const uint16_t* scales, Emit&& emit) const {
        const size_t at = static_cast<size_t>(rb) * w_.blocks() + b;
        decode_block<F>(maker_, scales, group_shift_, w_.codes + at * (kRowsPerBlock * kBlock / 2),
                        w_.residual + at * F::tile, b, r, emit);
    }

    // Multiplies the strip with as many of the `left` tokens as fit the registers; returns how many.
    SPEQ_INLINE int tile(int left, const float* strip, int vectors, int token, int column, float* acc) const {
        if constexpr (kWideRows == 2) {
            if (left >= 8) return tile_of<8>(strip, vectors, token, column, acc);
            if (left == 7) return tile_of<7>(strip, vectors, token, column, acc);
            if (left == 6) return tile_of<6>(strip, vectors, token, column, acc);
            if (left == 5) return tile_of<5>(strip, vectors, token, column, acc);
            if (left == 4) return tile_of<4>(strip, vectors, token, column, acc);
            if (left == 3) return tile_of<3>(strip, vectors, token, column, acc);
        } else {
            if (left >= 3 && left != 4) return tile_of<3>(strip, vectors, token, column, acc);
        }
        return left >= 2 ? tile_of<2>(strip, vectors, token, column, acc)
                         : tile_of<1>(strip, vectors, token, column, acc);
    }

    template <int M>
    SPEQ_INLINE int tile_of(const float* strip, int vectors, int token, int column, float* acc) const {
        Wide a[kWides][M];
        float* home = acc + static_cast<size_t>(token) * kRowsPerBlock * 8;
        const float* x = x_ + token * x_stride_ + column;
        each<M>([&](auto i, auto m)
                    SPEQ_LAMBDA { a[i][m] = wide_load(home + (m * kRowsPerBlock + i * kWideRows) * 8); });
        for (int k = 0; k < vectors; ++k, strip += 8 * kRowsPerBlock, x += 8) {
            Wide w[kWides];
            unroll<kWides>([&](auto i) SPEQ_LAMBDA { w[i] = wide_load(strip + i * kWideRows * 8); });
            unroll<M>([&](auto m) SPEQ_LAMBDA {
                const Wide v = wide_broadcast(x + m * x_stride_);
                unroll<kWides>([&](auto i) SPEQ_LAMBDA { a[i][m] = wide_fma(w[i], v, a[i][m]); });
            });
        }
        each<M>([&](auto i, auto m)
                    SPEQ_LAMBDA { wide_store(home + (m * kRowsPerBlock + i * kWideRows) * 8, a[i][m]); });
        return M;
    }

    // An escape's slot was multiplied as T[0] of its group: take that back and add the true weight.
    void add_escapes(int rb, int tokens, float* y) const {
        for (int row = rb * kRowsPerBlock; row < (rb + 1) * kRowsPerBlock; ++row, ++y)
            for (uint32_t e = w_.escape_rows[row]; e < w_.escape_rows[row + 1]; ++e) {
                const int column = w_.escape_columns[e];
                const float slot = to_float<F::dtype>(slot_bits(row, column));
                const float weight = to_float<F::dtype>(w_.escape_values[e]);
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
    if (tokens == 1) return rows.template few<1>(begin, end, y);
    if (tokens == 2) return rows.template few<2>(begin, end, y);
    if constexpr (kWideRows == 2) {  // 32 registers
        if (tokens == 3) return rows.template few<3>(begin, end, y);
        if (tokens == 4) return rows.template few<4>(begin, end, y);
        if (tokens == 5) return rows.template few<5>(begin, end, y);
        if (tokens == 6) return rows.template few<6>(begin, end, y);
        if (tokens == 7) return rows.template few<7>(begin, end, y);
        if (tokens == 8) return rows.template few<8>(begin, end, y);
    }
    rows.many(tokens, begin, end, y, scratch, scratch + kRowsPerBlock * kStripBlocks * kBlock);
}

}  // namespace speq::SPEQ_ISA
