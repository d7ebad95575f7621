// The exact product for many tokens, a group of row blocks at a time: a strip of them is decoded once and multiplied
// with a few tokens at a time, whose accumulators rest in memory between strips.
#pragma once
#include <algorithm>

#include "escapes.h"
#include "exact_blocks.h"
#include "many_scratch.h"

namespace speq::SPEQ_ISA {

template <class F>
class ManyTokens {
  public:
    SPEQ_INLINE ManyTokens(const SplitWeight& w, const float* x, size_t x_stride, int tokens, float* scratch)
        : w_(w), blocks_(w), escapes_(w), x_(x), x_stride_(x_stride), tokens_(tokens), s_(tokens, scratch) {}

    // y[(row_block - begin) * tokens + t][4]
    void run(int begin, int end, float* y) const {
        for (int rb = begin; rb < end; rb += kGroup) {
            const int group = std::min(kGroup, end - rb), rows = group * kRowsPerBlock;
            const uint32_t* escapes = w_.escape_rows + rb * kRowsPerBlock;
            const bool gather = tokens_ >= kGatherTokens && escapes[rows] - escapes[0] <= kGatheredEscapes;
            uint32_t next[kGroup * kRowsPerBlock];  // of each row, the first escape of the strips to come
            std::copy_n(escapes, rows, next);
            std::fill_n(s_.acc, group * block_accumulators(), 0.0f);
            for (int first = 0; first < blocks_.count(); first += kStripBlocks) {
                const int last = std::min(first + kStripBlocks, blocks_.count());
                for (int g = 0; g < group; ++g) decode_strip(rb + g, first, last, s_.strip + g * kStrip);
                const int wanted = gather ? list_escapes(escapes, rows, last * kBlock, next) : 0;
                for (int token = 0; token < tokens_;) {
                    int size = 0;
                    for (int g = 0; g < group; ++g)
                        size = tile(tokens_ - token, s_.strip + g * kStrip, (last - first) * (kBlock / 8), token,
                                    first * kBlock, s_.acc + g * block_accumulators());
                    gather_escapes(escapes[0], wanted, token, size);
                    token += size;
                }
            }
            for (int g = 0; g < group; ++g, y += static_cast<size_t>(tokens_) * kRowsPerBlock) {
                const float* acc = s_.acc + g * block_accumulators();
                for (int at = 0; at < tokens_ * kRowsPerBlock; at += kWideRows)
                    wide_sum(wide_load(acc + at * 8), y + at);
                if (gather)
                    add_gathered(rb + g, escapes[0], y);
                else
                    for (int token = 0; token < tokens_;) token += add_escapes(rb + g, token, y);
            }
        }
    }

  private:
    size_t block_accumulators() const { return static_cast<size_t>(tokens_) * kRowsPerBlock * 8; }

    // Blocks first..last-1 of a row block to strip[column / 8][4 rows][8].
    SPEQ_INLINE void decode_strip(int rb, int first, int last, float* strip) const {
        const uint16_t* scales = w_.scales_at(rb);
        for (int b = first; b < last; ++b) {
            blocks_.prefetch_ahead(rb, b);
            unroll<kWides>([&](auto i) SPEQ_LAMBDA {
                float* out = strip + (b - first) * kBlock * kRowsPerBlock + i * kWideRows * 8;
                blocks_.decode(rb, b, i * kWideRows, scales,
                               [&](auto j, Wide w) SPEQ_LAMBDA { wide_store(out + j * 8 * kRowsPerBlock, w); });
            });
        }
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
            const float* x = x_ + token * x_stride_ + w_.escape_columns[s_.wanted[i]];
            float* out = gathered(s_.wanted[i] - first_escape) + token;
            for (int j = 0; j < size; ++j) out[j] = x[j * x_stride_];
        }
    }
    float* gathered(uint32_t escape_of_group) const {
        return s_.gathered + escape_of_group * ManyScratch::padded(tokens_);
    }

    void add_gathered(int rb, uint32_t first_escape, float* y) const {
        for (int r = 0; r < kRowsPerBlock; ++r) {
            const int row = rb * kRowsPerBlock + r;
            const uint32_t first = w_.escape_rows[row], last = w_.escape_rows[row + 1];
            if (first == last) continue;
            for (int t = 0; t < tokens_; ++t) s_.sums[t] = y[t * kRowsPerBlock + r];
            escapes_.add_gathered(row, first, last, tokens_, gathered(first - first_escape),
                                  ManyScratch::padded(tokens_), s_.sums);
            for (int t = 0; t < tokens_; ++t) y[t * kRowsPerBlock + r] = s_.sums[t];
        }
    }

    // Without gathering, for up to eight tokens from `token` on; returns how many.
    int add_escapes(int rb, int token, float* y) const {
        const int size = std::min(tokens_ - token, 8);
        unroll<8>([&](auto i) {
            if (size == i + 1)
                escapes_.template add<i + 1>(rb, x_ + token * x_stride_, x_stride_, y + token * kRowsPerBlock);
        });
        return size;
    }

    const SplitWeight& w_;
    ExactBlocks<F> blocks_;
    Escapes<F> escapes_;
    const float* x_;
    size_t x_stride_;
    int tokens_;
    ManyScratch s_;
};

}  // namespace speq::SPEQ_ISA
