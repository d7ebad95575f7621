// The exact product y = W x for any number of tokens, with weights rebuilt from both planes.
//
// One order of summation for every token count, thread count and instruction set (docs/exactness.md): lane l of eight
// accumulates columns l+8, l, l+24, l+16, ... with fused multiply-adds, the lanes are summed in the order of sum(),
// then what the escapes of the row add, which is summed in order of their columns. Everything below only chooses which
// (row, token) pairs go together.
#pragma once
#include <optional>

#include "core/flush_subnormals.h"
#include "gemm/exact_few.h"
#include "gemm/exact_many.h"

namespace speq::SPEQ_ISA {

// y[row_block - begin][token][4] for row blocks begin..end-1, `scratch` as exact_scratch() says.
template <class F>
void exact_rows(const SplitWeight& w, const Activations& x, int begin, int end, float* y, float* scratch) {
    std::optional<FlushSubnormals> flush;
    if constexpr (F::dtype == DType::bf16) flush.emplace();
    if (x.tokens > kTiledTokens) return ManyTokens<F>(w, x, scratch).run(begin, end, y);
    FewTokens<F>(w, x).run(begin, end, y);
}

// The draft of up to kFewTokens tokens, as they are prepared for the exact product.
template <class F>
void draft_few(const SplitWeight& w, const Activations& x, int begin, int end, float* y, float*) {
    const FlushSubnormals flush;
    using Draft = FewTokens<KernelFormat<DType::bf16, 0, true, F::halves>>;
    if (x.tokens <= kTiledTokens) return Draft(w, x).run(begin, end, y);
    for (int t = 0; t < x.tokens; ++t)  // they stand in rows then
        for (int rb = begin; rb < end; ++rb)
            Draft(w, {x.rows + t * x.stride, x.stride, 1})
                .run(rb, rb + 1, y + (static_cast<size_t>(rb - begin) * x.tokens + t) * kRowsPerBlock);
}

}  // namespace speq::SPEQ_ISA
