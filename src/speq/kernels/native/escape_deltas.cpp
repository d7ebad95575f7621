#include "escape_deltas.h"

namespace speq {
namespace {

template <DType D>
float slot(const SplitWeight& w, float scale) {
    if (!w.table_per_group) return to_float<D>(w.table[0]);
    const uint16_t edge = truncate_to<D>(w.edges[0] * scale);
    return to_float<D>(edge > w.drops[0] ? static_cast<uint16_t>(edge - w.drops[0]) : uint16_t{0});
}

template <DType D>
void fill(const SplitWeight& w, float* out) {
    for (int row = 0; row < w.row_blocks() * kRowsPerBlock; ++row) {
        const uint16_t* scales = w.scales_at(row / kRowsPerBlock) + row % kRowsPerBlock;
        for (uint32_t e = w.escape_rows[row]; e < w.escape_rows[row + 1]; ++e) {
            const size_t group = w.escape_columns[e] / w.group_size;
            out[e] = to_float<D>(w.escape_values[e]) - slot<D>(w, bf16_to_float(scales[group * kRowsPerBlock]));
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
