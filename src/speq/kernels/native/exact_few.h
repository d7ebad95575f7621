// The exact product for up to kFewTokensAtOnce tokens: a row block is multiplied with as many of them at a time as have
// room for their accumulators in the registers.
#pragma once
#include "escapes.h"
#include "exact_blocks.h"
#include "row_sums.h"

namespace speq::SPEQ_ISA {

// Decoding a row block twice pays where a decoder is fast beside the multiply-adds.
constexpr int kFewTokensAtOnce = kWideRows == 2 ? kFewTokens : 8;

template <class F>
class FewTokens {
  public:
    SPEQ_INLINE FewTokens(const SplitWeight& w, const Activations& x) : w_(w), blocks_(w), escapes_(w), x_(x) {}

    // y[row_block - begin][token][4]
    void run(int begin, int end, float* y) const {
        const int tiles = (x_.tokens + kTile - 1) / kTile;
        for (int b = 0; b < kPrefetchBlocks; ++b) blocks_.prefetch_planes(begin, b);
        for (int rb = begin; rb < end; ++rb, y += x_.tokens * kRowsPerBlock) {
            for (int tile = 0, token = 0; tile < tiles; ++tile) {
                const int size = (x_.tokens - token) / (tiles - tile);
                unroll<kTile>([&](auto i) SPEQ_LAMBDA {
                    if (size == i + 1) multiply<i + 1>(rb, token, y + token * kRowsPerBlock);
                });
                token += size;
            }
            escapes_.add(rb, x_.columns, x_.tokens, y);
        }
    }

  private:
    using P = Pair<F::dtype>;
    using Weights = typename P::Weights;
    static constexpr int kPairs = kBlock / kPairColumns;
    static constexpr int kTile = kWideRows == 2 ? 12 : 8;  // tokens that are multiplied at a time
    static constexpr int kPrefetchBlocks = 24;

    // Vectors of rows whose accumulators for M tokens fit in the registers beside what the decoder needs.
    template <int M>
    static constexpr int wides_at_once() {
        if (kWideRows == 2 || M <= 2) return kWides;
        return M <= 4 ? 2 : 1;
    }

    // y[m][4] for M tokens
    template <int M>
    void multiply(int rb, int token, float* y) const {
        constexpr int pass = wides_at_once<M>();
        for (int first = 0; first < kWides; first += pass) multiply<M, pass>(rb, token, first, y);
    }

    template <int M, int Pass>
    SPEQ_INLINE void multiply(int rb, int token, int first, float* y) const {
        Wide acc[Pass][M];
        unroll<Pass>([&](auto i) SPEQ_LAMBDA { unroll<M>([&](auto m) SPEQ_LAMBDA { acc[i][m] = wide_zero(); }); });
        TableStrip<F, Pass> tables(w_);
        for (int b = 0; b < blocks_.count(); ++b) {
            if (b % tables.kBlocks == 0)
                tables.fill(w_.scales_at(rb), first, b, std::min(b + tables.kBlocks, blocks_.count()));
            if (token == 0 && first == 0) blocks_.prefetch_planes(rb, b + kPrefetchBlocks);
            multiply_block<M, Pass>(rb, b, first, tables, rows_from(token, b), acc);
        }
        if constexpr (Pass == kWides) {
            sum_rows<M>([&](auto i, auto m) SPEQ_LAMBDA { return acc[i][m]; }, y);
        } else {
            unroll<Pass>([&](auto i) SPEQ_LAMBDA {
                unroll<M>([&](auto m) SPEQ_LAMBDA { y[m * kRowsPerBlock + first + i] = sum(acc[i][m]); });
            });
        }
    }

    template <int M, int Pass>
    SPEQ_INLINE void multiply_block(int rb, int b, int first, const TableStrip<F, Pass>& tables, const float* x,
                                    Wide (&acc)[Pass][M]) const {
        const auto inputs = [&](int j, int m)
                                SPEQ_LAMBDA { return P::inputs(x + m * x_.stride + j * kPairFloats<F::dtype>); };
        if constexpr (Pass == 2 && kWideRows == 2 && M > 1) {
            // Weights wait for each other, so that each x is loaded once for all rows.
            Weights waiting[kPairs];
            blocks_.decode(rb, b, 0, tables, [&](auto j, auto w) SPEQ_LAMBDA { waiting[j] = w; });
            const auto multiply_pair = [&](auto j, const Weights& second) SPEQ_LAMBDA {
                unroll<M>([&](auto m) SPEQ_LAMBDA {
                    const auto v = inputs(j, m);
                    acc[0][m] = P::multiply_add(waiting[j], v, acc[0][m]);
                    acc[1][m] = P::multiply_add(second, v, acc[1][m]);
                });
            };
            if constexpr (M <= 8) {
                blocks_.decode(rb, b, 1, tables, multiply_pair);
            } else {  // accumulators leave no room to decode in the meantime
                Weights second[kPairs];
                blocks_.decode(rb, b, 1, tables, [&](auto j, auto w) SPEQ_LAMBDA { second[j] = w; });
                unroll<kPairs>([&](auto j) SPEQ_LAMBDA { multiply_pair(j, second[j]); });
            }
        } else {
            unroll<Pass>([&](auto i) SPEQ_LAMBDA {
                blocks_.decode(rb, b, first + i, tables, [&](auto j, auto w) SPEQ_LAMBDA {
                    unroll<M>([&](auto m) SPEQ_LAMBDA { acc[i][m] = P::multiply_add(w, inputs(j, m), acc[i][m]); });
                });
            });
        }
    }

    SPEQ_INLINE const float* rows_from(int token, int block) const {
        return activations_from<F::dtype>(x_.rows + token * x_.stride, block * kBlock);
    }

    const SplitWeight& w_;
    ExactBlocks<F> blocks_;
    Escapes escapes_;
    const Activations x_;
};

}  // namespace speq::SPEQ_ISA
