// The kernels of one instruction set alone, on the calling thread: what their tests compare.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <string>

#include "bind/arrays.h"
#include "bind/weight.h"
#include "core/aligned.h"
#include "core/kernels.h"
#include "gemm/escape_deltas.h"
#include "gemm/many_scratch.h"
#include "step/step.h"

namespace nb = nanobind;
using namespace speq;

namespace {

// y = x W^T by the kernels of one instruction set. `product` is "exact", "draft" or "draft of few".
nb::ndarray<nb::numpy, float> multiply(const std::string& isa, const HeldWeight& matrix, Table<const float> x,
                                       const std::string& product) {
    const SplitWeight& w = matrix.weight;
    const Kernels& k = kernels(isa);
    require(x.shape(1) == static_cast<size_t>(w.columns), "x and the matrix differ in columns");
    require(x.shape(0) >= 1 && x.shape(0) <= static_cast<size_t>(kMostTokens), "too many tokens for one product");
    require_aligned(x);
    const int tokens = static_cast<int>(x.shape(0)), padded = w.padded_columns();
    auto input = make_aligned<float>(static_cast<size_t>(tokens) * padded);
    for (int t = 0; t < tokens; ++t)
        std::copy_n(x.data() + static_cast<size_t>(t) * w.columns, w.columns,
                    input.get() + static_cast<size_t>(t) * padded);
    auto y = make_aligned<float>(static_cast<size_t>(w.row_blocks()) * tokens * kRowsPerBlock);
    if (product == "draft of few") {
        const auto draft_few = k.draft_few(w);
        require(draft_few != nullptr && tokens <= kFewTokens, "there is no such product");
        auto rows = make_aligned<float>(static_cast<size_t>(kFewTokens) * padded);
        k.prepare_draft(w)(input.get(), padded, tokens, padded, rows.get());
        draft_few(w, {rows.get(), static_cast<size_t>(padded), tokens}, 0, w.row_blocks(), y.get(), nullptr);
    } else if (product == "exact") {
        auto scratch = make_aligned<float>(exact_scratch(tokens));
        auto rows = make_aligned<float>(static_cast<size_t>(kFewTokens) * padded);
        const bool is_few = tokens <= kFewTokens;
        if (is_few) k.prepare_few(w)(input.get(), padded, tokens, padded, rows.get());
        for (int t = 0; !is_few && k.prepare_row(w) && t < tokens; ++t) {
            float* row = input.get() + static_cast<size_t>(t) * padded;
            k.prepare_row(w)(row, padded, row);
        }
        const auto deltas = escape_deltas(w);
        SplitWeight complete = w;
        complete.escape_deltas = deltas.get();
        const Activations x{is_few ? rows.get() : input.get(), static_cast<size_t>(padded), tokens};
        k.exact_rows(w)(complete, x, 0, w.row_blocks(), y.get(), scratch.get());
    } else {
        require(product == "draft", "there is no such product");
        require(tokens <= kFewTokens, "too many tokens for one product");
        const DraftInput drafted(padded);
        for (int t = 0; t < tokens; ++t)
            k.quantise(w)(input.get() + static_cast<size_t>(t) * padded, padded, drafted.rows()[t]);
        k.draft_rows(w)(w, drafted.rows(), tokens, 0, w.row_blocks(), y.get());
    }
    auto* out = new float[static_cast<size_t>(tokens) * w.rows];
    nb::capsule owner(out, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    for (int t = 0; t < tokens; ++t)
        for (int r = 0; r < w.rows; ++r)
            out[static_cast<size_t>(t) * w.rows + r] =
                y[(static_cast<size_t>(r / kRowsPerBlock) * tokens + t) * kRowsPerBlock + r % kRowsPerBlock];
    return {out, {static_cast<size_t>(tokens), static_cast<size_t>(w.rows)}, owner};
}

// The exact float32 values of the matrix, as the embedding look-up decodes them.
nb::ndarray<nb::numpy, float> decode_rows(const std::string& isa, const HeldWeight& matrix) {
    const SplitWeight& w = matrix.weight;
    const auto decode = kernels(isa).decode_row(w);
    auto row = make_aligned<float>(w.padded_columns());
    auto* out = new float[static_cast<size_t>(w.rows) * w.columns];
    nb::capsule owner(out, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    for (int r = 0; r < w.rows; ++r) {
        decode(w, r, row.get());
        std::copy_n(row.get(), w.columns, out + static_cast<size_t>(r) * w.columns);
    }
    return {out, {static_cast<size_t>(w.rows), static_cast<size_t>(w.columns)}, owner};
}

}  // namespace

void bind_products(nb::module_& m) {
    m.def("multiply", &multiply);
    m.def("decode_rows", &decode_rows);
}
