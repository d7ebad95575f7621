// The exact product y = W x for any number of tokens, with weights rebuilt from both planes.
//
// One order of summation for every token count, thread count and instruction set (docs/exactness.md): lane l of eight
// accumulates columns l, l+8, l+16, ... with fused multiply-adds, the lanes are summed in the order of sum(), then the
// escapes of the row are added in order of their columns. Everything below only chooses which (row, token) pairs go
// together.
#pragma once
#include "exact_few.h"
#include "exact_many.h"

namespace speq::SPEQ_ISA {

// y[row_block - begin][token][4] for row blocks begin..end-1; `scratch` as exact_scratch() says.
template <class F>
void exact_rows(const SplitWeight& w, const float* x, size_t x_stride, int tokens, int begin, int end, float* y,
                float* scratch) {
    if (tokens > 16) return ManyTokens<F>(w, x, x_stride, tokens, scratch).run(begin, end, y);
    const FewTokens<F> few(w, x, x_stride);
    if (tokens <= 8) return few.run(tokens, begin, end, y, tokens);
    // Two halves of the tokens, one row block at a time, whose planes are in the L1 cache for the second.
    const int half = (tokens + 1) / 2;
    const FewTokens<F> rest(w, x + half * x_stride, x_stride);
    for (int rb = begin; rb < end; ++rb, y += tokens * kRowsPerBlock) {
        few.run(half, rb, rb + 1, y, tokens);
        rest.run(tokens - half, rb, rb + 1, y + half * kRowsPerBlock, tokens);
    }
}

}  // namespace speq::SPEQ_ISA
