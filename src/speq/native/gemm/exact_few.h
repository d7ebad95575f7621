// The exact product for up to kTiledTokens tokens: a row block is multiplied with one tile of them after the other.
#pragma once
#include "gemm/exact_blocks.h"
#include "gemm/row_sums.h"
#include "gemm/tile_escapes.h"

namespace speq::SPEQ_ISA {

template <class F>
class FewTokens {
  public:
    SPEQ_INLINE FewTokens(const SplitWeight& w, const Activations& x) : w_(w), blocks_(w), x_(x) {}

    // y[row_block - begin][token][4]
    void run(int begin, int end, float* y) const {
        Planes<F> ahead = blocks_.planes(begin, 0);
        for (int b = 0; b < kPrefetchBlocks; ++b, ahead.next()) ahead.template prefetch_after<0>();
        for (int rb = begin; rb < end; ++rb, y += x_.tokens * kRowsPerBlock) {
            for (int token = 0, size = 0; token < x_.tokens; token += size) {
                size = tile_size(x_.tokens - token);
                unroll<kTile>([&](auto i) SPEQ_LAMBDA {
                    if (size == i + 1) multiply<i + 1>(rb, token, y + token * kRowsPerBlock);
                });
            }
        }
    }

  private:
    using P = Pair<F::dtype>;
    using Weights = typename P::Weights;
    static constexpr int kPairs = kBlock / kPairColumns;
    static constexpr int kPrefetchBlocks = 24;

    // Vectors of rows whose accumulators for M tokens fit in the registers beside what the decoder needs.
    template <int M>
    static constexpr int wides_at_once() {
        if (kWideRows == 2 || M <= 2) return kWides;
        return M <= 4 ? 2 : 1;
    }

    // Whether two tokens are multiplied at a time: accumulators 2 p and 2 p + 1 of a vector of rows are then of a row
    // and the token 2 p or 2 p + 1 that stands in the same half, and of a row and the other token.
    template <int M>
    static constexpr bool kTwoTokens = kWideRows == 2 && M > 1;

    // y[m][4] for M tokens
    template <int M>
    void multiply(int rb, int token, float* y) const {
        constexpr int pass = wides_at_once<M>();
        const float* x = x_.rows + tile_begin<F::dtype>(token, w_.padded_columns());
        if constexpr (F::is_draft) {  // its escapes stay what their codes say
            struct {
                void add_one() {}
            } escapes;
            for (int first = 0; first < kWides; first += pass) multiply<M, pass>(rb, token, first, x, y, escapes);
        } else {
            TileEscapes<F::dtype, M> escapes(w_, rb, x);
            for (int first = 0; first < kWides; first += pass) multiply<M, pass>(rb, token, first, x, y, escapes);
            escapes.add_to(y);
        }
    }

    template <int M, int Pass, class Escapes>
    SPEQ_INLINE void multiply(int rb, int token, int first, const float* x, float* y, Escapes& escapes) const {
        constexpr TokenTile<F::dtype> tile(M);
        Wide acc[Pass][M];
        unroll<Pass>([&](auto i) SPEQ_LAMBDA { unroll<M>([&](auto m) SPEQ_LAMBDA { acc[i][m] = wide_zero(); }); });
        TableStrip<F, Pass> tables(w_);
        Planes<F> planes = blocks_.planes(rb, 0);
        const bool first_to_read = token == 0 && first == 0;
        for (int strip = 0; strip < blocks_.count(); strip += tables.kBlocks) {
            const int size = std::min(tables.kBlocks, blocks_.count() - strip);
            tables.fill(w_.scales_at(rb), first, strip, strip + size);
            for (int b = 0; b < size; ++b, planes.next(), x += kPairs * tile.pair_step()) {
                if (first_to_read) planes.template prefetch_after<kPrefetchBlocks>();
                multiply_block<M, Pass>(planes, tables, b, first, x, acc);
                if (first == 0) escapes.add_one();
            }
        }
        if constexpr (Pass == kWides) {
            sum_rows<M>([&](auto i, auto m) SPEQ_LAMBDA { return of_token<M>(acc[i], m); }, y);
        } else {
            unroll<Pass>([&](auto i) SPEQ_LAMBDA {
                unroll<M>([&](auto m) SPEQ_LAMBDA { y[m * kRowsPerBlock + first + i] = sum(acc[i][m]); });
            });
        }
    }

    template <int M, int Pass>
    SPEQ_INLINE void multiply_block(const Planes<F>& planes, const TableStrip<F, Pass>& tables, int b, int first,
                                    const float* x, Wide (&acc)[Pass][M]) const {
        constexpr TokenTile<F::dtype> tile(M);
        if constexpr (kTwoTokens<M>) {
            // Weights wait for each other, so that each x is loaded once for all rows.
            Weights waiting[kPairs];
            blocks_.decode(planes, tables, b, 0, [&](auto j, auto w) SPEQ_LAMBDA { waiting[j] = w; });
            if constexpr (M <= 8) {
                blocks_.decode(planes, tables, b, 1, [&](auto j, auto w) SPEQ_LAMBDA {
                    multiply_pair<M>(waiting[j], w, x + j * tile.pair_step(), acc);
                });
            } else {  // accumulators leave no room to decode in the meantime
                Weights second[kPairs];
                blocks_.decode(planes, tables, b, 1, [&](auto j, auto w) SPEQ_LAMBDA { second[j] = w; });
                unroll<kPairs>([&](auto j) SPEQ_LAMBDA {
                    multiply_pair<M>(waiting[j], second[j], x + j * tile.pair_step(), acc);
                });
            }
        } else {
            unroll<Pass>([&](auto i) SPEQ_LAMBDA {
                blocks_.decode(planes, tables, b, first + i, [&](auto j, auto w) SPEQ_LAMBDA {
                    unroll<M>([&](auto m) SPEQ_LAMBDA {
                        const auto v = P::inputs(x + j * tile.pair_step() + tile.at(m), tile.unit_step());
                        acc[i][m] = P::multiply_add(w, v, acc[i][m]);
                    });
                });
            });
        }
    }

    // All rows with the tokens of a tile, two at a time.
    template <int M>
    static SPEQ_INLINE void multiply_pair(const Weights& a, const Weights& b, const float* x, Wide (&acc)[2][M]) {
        constexpr TokenTile<F::dtype> tile(M);
        const Weights swapped_a = P::swapped(a), swapped_b = P::swapped(b);
        unroll<M / 2>([&](auto p) SPEQ_LAMBDA {
            constexpr int m = 2 * p;
            const auto v = P::inputs_of_two(x + tile.at(m));
            acc[0][m] = P::multiply_add(a, v, acc[0][m]);
            acc[0][m + 1] = P::multiply_add(swapped_a, v, acc[0][m + 1]);
            acc[1][m] = P::multiply_add(b, v, acc[1][m]);
            acc[1][m + 1] = P::multiply_add(swapped_b, v, acc[1][m + 1]);
        });
        if constexpr (M % 2) {
            const auto v = P::inputs(x + tile.at(M - 1), tile.unit_step());
            acc[0][M - 1] = P::multiply_add(a, v, acc[0][M - 1]);
            acc[1][M - 1] = P::multiply_add(b, v, acc[1][M - 1]);
        }
    }

    // The sums of token m, in the order of the rows.
    template <int M, int Token>
    static SPEQ_INLINE Wide of_token(const Wide (&acc)[M], Index<Token>) {
        if constexpr (!kTwoTokens<M> || (Token == M - 1 && M % 2))
            return acc[Token];
        else if constexpr (Token % 2)
            return wide_second(acc[Token], acc[Token - 1]);
        else
            return wide_first(acc[Token], acc[Token + 1]);
    }

    const SplitWeight& w_;
    ExactBlocks<F> blocks_;
    const Activations x_;
};

}  // namespace speq::SPEQ_ISA
