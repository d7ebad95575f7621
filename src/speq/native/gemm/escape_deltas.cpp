#include "gemm/escape_deltas.h"

namespace speq {
namespace {

template <DType D>
void fill(const SplitWeight& w, float* out) {
    for (int row = 0; row < w.row_blocks() * kRowsPerBlock; ++row) {
        const uint16_t* scales = w.scales_at(row / kRowsPerBlock) + row % kRowsPerBlock;
        for (uint32_t e = w.escape_rows[row]; e < w.escape_rows[row + 1]; ++e) {
            const size_t group = w.escape_columns[e] / w.group_size;
            const uint16_t slot = w.bin_begin<D>(0, bf16_to_float(scales[group * kRowsPerBlock]));
            out[e] = to_float<D>(w.escape_values[e]) - to_float<D>(slot);
        }
    }
}

}  // namespace

Aligned<float> escape_deltas(const SplitWeight& w) {
    auto out = make_aligned<float>(w.escape_rows[w.row_blocks() * kRowsPerBlock]);
    if (w.dtype == DType::bf16)
        fill<DType::bf16>(w, out.get());
    else
        fill<DType::fp16>(w, out.get());
    return out;
}

}  // namespace speq
