// The exact product for many tokens, a group of row blocks at a time: a strip of them is decoded once and multiplied
// with a few tokens at a time, whose accumulators rest in memory between strips.
#pragma once
#include <algorithm>

#include "gemm/exact_blocks.h"
#include "gemm/many_escapes.h"
#include "gemm/many_scratch.h"
#include "gemm/row_sums.h"

namespace speq::SPEQ_ISA {

template <class F>
class ManyTokens {
  public:
    SPEQ_INLINE ManyTokens(const SplitWeight& w, const Activations& x, float* scratch)
        : w_(w), blocks_(w), escapes_(w), x_(x), tokens_(x.tokens), s_(tokens_, scratch) {}

    // y[(row_block - begin) * tokens + t][4]
    void run(int begin, int end, float* y) const {
        for (int rb = begin; rb < end; rb += kGroup) {
            const int group = std::min(kGroup, end - rb), rows = group * kRowsPerBlock;
            const uint32_t* escapes = w_.escape_rows + rb * kRowsPerBlock;
            const bool gather = escapes[rows] - escapes[0] <= kGatheredEscapes;
            uint32_t next[kGroup * kRowsPerBlock];  // of each row, the first escape of the strips to come
            std::copy_n(escapes, rows, next);
            std::fill_n(s_.acc, group * block_accumulators(), 0.0f);
            for (int first = 0; first < blocks_.count(); first += kStripBlocks) {
                const int last = std::min(first + kStripBlocks, blocks_.count());
                Strip strips[kGroup];
                for (int g = 0; g < group; ++g) {
                    strips[g] = {rb + g, first, last, s_.strip + g * kStrip, s_.acc + g * block_accumulators()};
                    decode(strips[g]);
                }
                const int wanted = gather ? list_escapes(escapes, rows, last * kBlock, next) : 0;
                for (int token = 0; token < tokens_;) {
                    int size = 0;
                    for (int g = 0; g < group; ++g) size = multiply(strips[g], token);
                    gather_escapes(escapes[0], wanted, token, size);
                    token += size;
                }
            }
            for (int g = 0; g < group; ++g, y += static_cast<size_t>(tokens_) * kRowsPerBlock) {
                const float* acc = s_.acc + g * block_accumulators();
                int token = 0;
                for (; token + 4 <= tokens_; token += 4) sum_tokens<4>(acc, token, y);
                for (; token < tokens_; ++token) sum_tokens<1>(acc, token, y);
                if (gather)
                    escapes_.add_gathered(rb + g, escapes[0], s_.gathered, ManyScratch::padded(tokens_), tokens_,
                                          s_.sums, y);
                else
                    escapes_.template add<F::dtype>(rb + g, x_.rows, x_.stride, tokens_, y);
            }
        }
    }

  private:
    using P = Pair<F::dtype>;
    static constexpr int kBlockFloats = kBlock / kPairColumns * kWides * P::kFloats;  // of a decoded block

    size_t block_accumulators() const { return static_cast<size_t>(tokens_) * kRowsPerBlock * 8; }

    // Blocks first..last-1 of a row block, decoded to weights[pair][kWides], and its accumulators.
    struct Strip {
        int rb, first, last;
        float *weights, *acc;
    };

    SPEQ_INLINE void decode(const Strip& s) const {
        TableStrip<F> tables(w_);
        tables.fill(w_.scales_at(s.rb), 0, s.first, s.last);
        float* out = s.weights;
        // What takes the place of these planes in the group's next strips is asked for.
        Planes<F> planes = blocks_.planes(s.rb, s.first);
        Planes<F> next =
            s.last < blocks_.count() ? blocks_.planes(s.rb, s.first + kStripBlocks) : blocks_.planes(s.rb + kGroup, 0);
        for (int b = 0; b < s.last - s.first; ++b, planes.next(), next.next(), out += kBlockFloats) {
            next.template prefetch_after<0>();
            unroll<kWides>([&](auto i) SPEQ_LAMBDA {
                blocks_.decode(planes, tables, b, i,
                               [&](auto j, auto w) SPEQ_LAMBDA { P::store(out + (j * kWides + i) * P::kFloats, w); });
            });
        }
    }

    // Tokens that go through a strip together, as many as the registers hold.
    static constexpr int kTile = kWideRows == 2 ? 8 : 3;

    // Multiplies a strip with some tokens from `token` on; returns how many. All tiles are about as large: small ones
    // would wait for their few accumulators.
    SPEQ_INLINE int multiply(const Strip& s, int token) const {
        const int left = tokens_ - token, tiles = (left + kTile - 1) / kTile, size = (left + tiles - 1) / tiles;
        unroll<kTile>([&](auto i) SPEQ_LAMBDA {
            if (size == i + 1) multiply<i + 1>(s, token);
        });
        return size;
    }

    template <int M>
    void multiply(const Strip& s, int token) const {
        Wide a[kWides][M];
        float* home = s.acc + static_cast<size_t>(token) * kRowsPerBlock * 8;
        const float* x = activations_from<F::dtype>(x_.rows + token * x_.stride, s.first * kBlock);
        const float* weights = s.weights;
        each<M>([&](auto i, auto m)
                    SPEQ_LAMBDA { a[i][m] = wide_load(home + (m * kRowsPerBlock + i * kWideRows) * 8); });
        const float* end = weights + (s.last - s.first) * kBlockFloats;
        for (; weights < end; weights += kWides * P::kFloats, x += kPairFloats<F::dtype>) {
            typename P::Weights w[kWides];
            unroll<kWides>([&](auto i) SPEQ_LAMBDA { w[i] = P::load(weights + i * P::kFloats); });
            unroll<M>([&](auto m) SPEQ_LAMBDA {
                const auto v = P::inputs(x + m * x_.stride);
                unroll<kWides>([&](auto i) SPEQ_LAMBDA { a[i][m] = P::multiply_add(w[i], v, a[i][m]); });
            });
        }
        each<M>([&](auto i, auto m)
                    SPEQ_LAMBDA { wide_store(home + (m * kRowsPerBlock + i * kWideRows) * 8, a[i][m]); });
    }

    // Of tokens token..token + M - 1.
    template <int M>
    static SPEQ_INLINE void sum_tokens(const float* acc, int token, float* y) {
        const size_t first = static_cast<size_t>(token) * kRowsPerBlock;
        sum_rows<M>([&](auto i, auto m)
                        SPEQ_LAMBDA { return wide_load(acc + (first + m * kRowsPerBlock + i * kWideRows) * 8); },
                    y + first);
    }

    template <int M, class Do>
    static SPEQ_INLINE void each(Do&& f) {
        unroll<kWides>([&](auto i) SPEQ_LAMBDA { unroll<M>([&](auto m) SPEQ_LAMBDA { f(i, m); }); });
    }

    // Lists in s_.wanted the escapes of the group's rows from next[row] on that lie before a column; returns their
    // number.
    int list_escapes(const uint32_t* escapes, int rows, int column, uint32_t* next) const {
        int wanted = 0;
        for (int r = 0; r < rows; ++r)
            for (; next[r] < escapes[r + 1] && w_.escape_columns[next[r]] < column; ++next[r])
                s_.wanted[wanted++] = next[r];
        return wanted;
    }

    // Gathers the listed escapes' activations for a few tokens, whose strip of x is in the L1 cache now.
    void gather_escapes(uint32_t first_escape, int wanted, int token, int size) const {
        for (int i = 0; i < wanted; ++i) {
            const int column = w_.escape_columns[s_.wanted[i]];
            float* out = gathered(s_.wanted[i] - first_escape) + token;
            for (int j = 0; j < size; ++j) out[j] = activation<F::dtype>(x_.rows + (token + j) * x_.stride, column);
        }
    }
    float* gathered(uint32_t escape_of_group) const {
        return s_.gathered + escape_of_group * ManyScratch::padded(tokens_);
    }

    const SplitWeight& w_;
    ExactBlocks<F> blocks_;
    ManyEscapes escapes_;
    const Activations x_;
    int tokens_;
    ManyScratch s_;
};

}  // namespace speq::SPEQ_ISA
