// Escapes: weights whose slot in the planes was multiplied as T[0] of their group. After the sum of a row, in order of
// their columns, each is taken back and its true weight added.
#pragma once
#include <algorithm>
#include <bit>

#include "activations.h"
#include "format.h"
#include "simd_half.h"

namespace speq::SPEQ_ISA {

template <class F>
class Escapes {
  public:
    SPEQ_INLINE explicit Escapes(const SplitWeight& w)
        : w_(w), shift_(std::countr_zero(static_cast<unsigned>(w.group_size))) {}

    // y[m * kRowsPerBlock + row in the block] of M tokens whose prepared activations stand at x + m * stride.
    template <int M>
    SPEQ_INLINE void add(int row_block, const float* x, size_t stride, float* y) const {
        for (int row = row_block * kRowsPerBlock; row < (row_block + 1) * kRowsPerBlock; ++row, ++y) {
            const uint32_t first = w_.escape_rows[row], last = w_.escape_rows[row + 1];
            if (first == last) continue;
            float sum[M];
            unroll<M>([&](auto m) SPEQ_LAMBDA { sum[m] = y[m * kRowsPerBlock]; });
            each(row, first, last, [&](uint32_t e, float slot, float weight) SPEQ_LAMBDA {
                unroll<M>([&](auto m) SPEQ_LAMBDA {
                    const float v = activation<F::dtype>(x + m * stride, w_.escape_columns[e]);
                    sum[m] = std::fma(weight, v, std::fma(slot, v, sum[m]));
                });
            });
            unroll<M>([&](auto m) SPEQ_LAMBDA { y[m * kRowsPerBlock] = sum[m]; });
        }
    }

    // Adds one row's escapes first..last-1 to the sums of many tokens: y[tokens], with the activations gathered in
    // x[escape - first][stride]. Both hold whole vectors of eight.
    void add_gathered(int row, uint32_t first, uint32_t last, int tokens, const float* x, size_t stride,
                      float* y) const {
        each(row, first, last, [&](uint32_t e, float slot, float weight) SPEQ_LAMBDA {
            const float* at = x + (e - first) * stride;
            for (int m = 0; m < tokens; m += 8)
                store(y + m, fma(broadcast(weight), load(at + m), fma(broadcast(slot), load(at + m), load(y + m))));
        });
    }

  private:
    static constexpr int kBatch = 64;        // escapes that are widened together
    static constexpr uint32_t kBatched = 4;  // fewer are widened one by one

    // Where the scale of an escape's group stands among those of its row.
    SPEQ_INLINE size_t group_of(uint32_t e) const { return (w_.escape_columns[e] >> shift_) * kRowsPerBlock; }

    // f(e, -slot, weight) for escapes first..last-1 of a row: what stands in the planes and what should, widened.
    template <class Do>
    SPEQ_INLINE void each(int row, uint32_t first, uint32_t last, Do&& f) const {
        const uint16_t* scales = w_.scales_at(row / kRowsPerBlock) + row % kRowsPerBlock;
        if (last - first < kBatched) {
            for (uint32_t e = first; e < last; ++e)
                f(e, -slot(bf16_to_float(scales[group_of(e)])), to_float<F::dtype>(w_.escape_values[e]));
            return;
        }
        for (uint32_t e = first; e < last; e += kBatch) {
            const int count = static_cast<int>(std::min<uint32_t>(kBatch, last - e));
            float slots[kBatch], weights[kBatch];
            uint16_t values[kBatch];
            for (int i = 0; i < count; ++i) {
                slots[i] = bf16_to_float(scales[group_of(e + i)]);
                values[i] = w_.escape_values[e + i];
            }
            for (int i = count; i % 8; ++i) slots[i] = values[i] = 0;
            for (int i = 0; i < count; i += 8) {
                store(slots + i, mul(broadcast(-1.0f), slot(load(slots + i))));
                store(weights + i, widen<F::dtype>(values + i));
            }
            for (int i = 0; i < count; ++i) f(e + i, slots[i], weights[i]);
        }
    }

    SPEQ_INLINE Vec8 slot(Vec8 scale) const {
        if constexpr (F::table_per_group) return bin_begin<F::dtype>(mul(broadcast(w_.edges[0]), scale), w_.drops[0]);
        return broadcast(to_float<F::dtype>(w_.table[0]));
    }

    SPEQ_INLINE float slot(float scale) const {
        if constexpr (!F::table_per_group) return to_float<F::dtype>(w_.table[0]);
        const uint16_t edge = truncate_to<F::dtype>(w_.edges[0] * scale);
        return to_float<F::dtype>(edge > w_.drops[0] ? static_cast<uint16_t>(edge - w_.drops[0]) : 0);
    }

    const SplitWeight& w_;
    const int shift_;  // column >> shift_ is its group
};

}  // namespace speq::SPEQ_ISA
