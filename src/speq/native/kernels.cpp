// Builds the kernel table of one instruction set. This file is compiled once for each set (CMakeLists.txt), with
// SPEQ_ISA as the name of the set and of the namespace that keeps the copies apart.
#ifndef SPEQ_ISA
#define SPEQ_ISA portable
#endif

#include "core/kernels.h"

#include "attention/attention.h"
#include "codec/add_products.h"
#include "codec/nearest.h"
#include "draft/draft.h"
#include "draft/quantise.h"
#include "gemm/exact.h"
#include "gemm/token_tiles.h"
#include "step/row_kernels.h"

namespace speq::SPEQ_ISA {

namespace {

// Calls f with the KernelFormat that describes w.
template <class F>
auto with_format(const SplitWeight& w, F&& f) {
    const bool halves = w.group_size == 32;
    if (w.table_per_group && w.dtype == DType::bf16)
        return halves ? f(KernelFormat<DType::bf16, 10, true, true>{})
                      : f(KernelFormat<DType::bf16, 10, true, false>{});
    if (w.table_per_group)
        return halves ? f(KernelFormat<DType::fp16, 12, true, true>{})
                      : f(KernelFormat<DType::fp16, 12, true, false>{});
    if (w.dtype == DType::bf16)
        return halves ? f(KernelFormat<DType::bf16, 12, false, true>{})
                      : f(KernelFormat<DType::bf16, 12, false, false>{});
    return halves ? f(KernelFormat<DType::fp16, 12, false, true>{}) : f(KernelFormat<DType::fp16, 12, false, false>{});
}

// The exact values of one row, padded columns included.
template <class F>
void decode_row(const SplitWeight& w, int row, float* out) {
    const ExactBlocks<F> blocks(w);
    TableStrip<F> tables(w);
    const int rb = row / kRowsPerBlock, r = row % kRowsPerBlock;
    for (int first = 0; first < blocks.count(); first += tables.kBlocks) {
        const int last = std::min(first + tables.kBlocks, blocks.count());
        tables.fill(w.scales_at(rb), 0, first, last);
        for (int b = first; b < last; ++b)
            blocks.decode(blocks.planes(rb, b), tables, b - first, r / kWideRows, [&](int j, const auto& pair) {
                const FloatPair v = Pair<F::dtype>::widen(pair);
                wide_row(v.low, r % kWideRows, out + b * kBlock + kPairColumns * j);
                wide_row(v.high, r % kWideRows, out + b * kBlock + kPairColumns * j + 8);
            });
    }
    for (uint32_t e = w.escape_rows[row]; e < w.escape_rows[row + 1]; ++e)
        out[w.escape_columns[e]] = to_float<F::dtype>(w.escape_values[e]);
    for (int k = w.columns; k < w.padded_columns(); ++k) out[k] = 0.0f;
}

}  // namespace

#define SPEQ_TEXT_OF(token) #token
#define SPEQ_TEXT(macro) SPEQ_TEXT_OF(macro)

Kernels make_kernels() {
    return {
        .name = SPEQ_TEXT(SPEQ_ISA),
        .exact_rows = [](const SplitWeight& w) -> Kernels::ExactRows {
            return with_format(w, []<class F>(F) -> Kernels::ExactRows { return exact_rows<F>; });
        },
        .prepare_row = [](const SplitWeight& w) -> Kernels::PrepareRow {
            return w.dtype == DType::bf16 ? prepare_row<DType::bf16> : nullptr;
        },
        .prepare_few = [](const SplitWeight& w) -> Kernels::PrepareFew {
            return w.dtype == DType::bf16 ? prepare_few<DType::bf16> : prepare_few<DType::fp16>;
        },
        .draft_rows = [](const SplitWeight& w) -> Kernels::DraftRows {
            return with_format(w, []<class F>(F) -> Kernels::DraftRows { return draft_rows<F>; });
        },
        .prepare_draft = []([[maybe_unused]] const SplitWeight& w) -> Kernels::PrepareFew {
#if SPEQ_AVX512BF16 || !SPEQ_AVX2
            if (w.dtype == DType::bf16) return prepare_few<DType::bf16>;
#endif
            return nullptr;
        },
        .draft_few = []([[maybe_unused]] const SplitWeight& w) -> Kernels::ExactRows {
#if SPEQ_AVX512BF16 || !SPEQ_AVX2
            if (w.dtype == DType::bf16)
                return w.group_size == 32 ? draft_few<KernelFormat<DType::bf16, 10, true, true>>
                                          : draft_few<KernelFormat<DType::bf16, 10, true, false>>;
#endif
            return nullptr;
        },
        .drafts_few = SPEQ_AVX512BF16,
        .quantise = [](const SplitWeight& w) -> Kernels::Quantise {
            return with_format(w, []<class F>(F) -> Kernels::Quantise { return quantise_row<F>; });
        },
        .decode_row = [](const SplitWeight& w) -> Kernels::DecodeRow {
            return with_format(w, []<class F>(F) -> Kernels::DecodeRow { return decode_row<F>; });
        },
        .rms_norm = rms_norm,
        .rotate = rotate,
        .to_cache = to_cache,
        .swiglu = swiglu,
        .attend = attend,
        .fold_attention = fold_attention,
        .finish_attention = finish_attention,
        .nearest_bins = nearest_bins,
        .nearest_bins_of_rows = nearest_bins_of_rows,
        .add_products = add_products,
    };
}

}  // namespace speq::SPEQ_ISA
