// The exact product for up to kFewTokensAtOnce tokens: all accumulators of a row stay in registers.
#pragma once
#include "escapes.h"
#include "exact_blocks.h"

namespace speq::SPEQ_ISA {

constexpr int kFewTokensAtOnce = 8;

template <class F>
class FewTokens {
  public:
    SPEQ_INLINE FewTokens(const SplitWeight& w, const Activations& x) : w_(w), blocks_(w), escapes_(w), x_(x) {}

    // y[row_block - begin][token][4]
    void run(int begin, int end, float* y) const {
        unroll<kFewTokensAtOnce>([&](auto i) {
            if (x_.tokens == i + 1) run<i + 1>(begin, end, y);
        });
    }

  private:
    static constexpr int kPrefetchBlocks = 24;

    template <int M>
    void run(int begin, int end, float* y) const {
        constexpr int pass = rows_at_once<M>();
        for (int rb = begin; rb < end; ++rb, y += M * kRowsPerBlock) {
            for (int first = 0; first < kWides; first += pass) multiply<M, pass>(rb, first, y);
            escapes_.add(rb, x_.columns, M, y);
        }
    }

    // Vectors of rows whose accumulators for M tokens fit in the registers beside what the decoder needs.
    template <int M>
    static constexpr int rows_at_once() {
        if (kWideRows == 2 || M <= 2) return kWides;
        return M <= 4 ? 2 : 1;
    }

    template <int M, int Pass>
    SPEQ_INLINE void multiply(int rb, int first, float* y) const {
        using P = Pair<F::dtype>;
        Wide acc[Pass][M];
        unroll<Pass>([&](auto i) SPEQ_LAMBDA { unroll<M>([&](auto m) SPEQ_LAMBDA { acc[i][m] = wide_zero(); }); });
        const uint16_t* scales = w_.scales_at(rb);
        for (int b = 0; b < blocks_.count(); ++b) {
            if (first == 0) blocks_.prefetch_planes(rb, b + kPrefetchBlocks);
            const float* x = activations_from<F::dtype>(x_.rows, b * kBlock);
            const auto inputs = [&](int j, int m)
                                    SPEQ_LAMBDA { return P::inputs(x + m * x_.stride + j * kPairFloats<F::dtype>); };
            if constexpr (Pass == 2 && kWideRows == 2 && M > 1) {
                // The first half of the rows waits in registers for the second, so that each x is loaded once.
                typename P::Weights half[kBlock / kPairColumns];
                blocks_.decode(rb, b, 0, scales, [&](auto j, auto w) SPEQ_LAMBDA { half[j] = w; });
                blocks_.decode(rb, b, kWideRows, scales, [&](auto j, auto w) SPEQ_LAMBDA {
                    unroll<M>([&](auto m) SPEQ_LAMBDA {
                        const auto v = inputs(j, m);
                        acc[0][m] = P::multiply_add(half[j], v, acc[0][m]);
                        acc[1][m] = P::multiply_add(w, v, acc[1][m]);
                    });
                });
            } else {
                unroll<Pass>([&](auto i) SPEQ_LAMBDA {
                    blocks_.decode(rb, b, (first + i) * kWideRows, scales, [&](auto j, auto w) SPEQ_LAMBDA {
                        unroll<M>([&](auto m) SPEQ_LAMBDA { acc[i][m] = P::multiply_add(w, inputs(j, m), acc[i][m]); });
                    });
                });
            }
        }
        unroll<Pass>([&](auto i) SPEQ_LAMBDA {
            unroll<M>([&](auto m)
                          SPEQ_LAMBDA { wide_sum(acc[i][m], y + m * kRowsPerBlock + (first + i) * kWideRows); });
        });
    }

    const SplitWeight& w_;
    ExactBlocks<F> blocks_;
    Escapes escapes_;
    const Activations x_;
};

}  // namespace speq::SPEQ_ISA
