// The block decoder in plain C++: what the others are compared with.
#pragma once
#include <cmath>
#include <limits>

#include "core/split.h"
#include "gemm/format.h"
#include "gemm/pair.h"

namespace speq::SPEQ_ISA {

struct Table {
    uint16_t bits[16];  // sign << 15 | T[c] by code
};

template <class F>
class TableMaker {
  public:
    explicit TableMaker(const SplitWeight& w) : weight_(w) {
        if constexpr (!F::table_per_group) constant_ = make(uint16_t{0});
    }
    // Makes the tables of some rows, whose scales of a group stand at `scales`.
    template <int Rows>
    void make(const uint16_t* scales, Table (&out)[Rows]) const {
        for (int r = 0; r < Rows; ++r) out[r] = make(scales[r]);
    }
    const Table& constant(int) const { return constant_; }

  private:
    Table make(uint16_t scale) const {
        Table t;
        for (int c = 0; c < 8; ++c) {
            const uint16_t base = weight_.bin_begin<F::dtype>(c, bf16_to_float(scale));
            t.bits[c] = base;
            t.bits[8 + c] = static_cast<uint16_t>(base | 0x8000u);
        }
        return t;
    }
    const SplitWeight& weight_;
    Table constant_{};
};

template <class F>
class DraftTableMaker {
  public:
    explicit DraftTableMaker(const SplitWeight& w) : levels_(w.levels) {}
    template <int Rows>
    void make(const uint16_t* scales, Table (&out)[Rows]) const {
        for (int r = 0; r < Rows; ++r)
            for (int c = 0; c < 16; ++c) {
                const float value = levels_[c] / 64.0f * bf16_to_float(scales[r]);
                const bool is_subnormal = std::abs(value) < std::numeric_limits<float>::min();
                out[r].bits[c] = float_to_bf16(is_subnormal ? 0 * value : value);
            }
    }

  private:
    const int8_t* levels_;
};

template <class F, class Emit>
SPEQ_INLINE void decode_block(const uint8_t* codes, const uint8_t* tile, int row, const Table& first,
                              const Table& second, Emit&& emit) {
    float out[kBlock];
    for (int half = 0; half < 2; ++half) {
        const Table& t = half ? second : first;
        uint16_t bits[32];
        for (int lane = 0; lane < 2; ++lane)
            for (int i = 0; i < 16; ++i) {
                const int b = 16 * lane + i;
                if constexpr (F::is_draft) {
                    bits[b] = 0;
                    continue;
                }
                int high;
                if constexpr (F::residual_bits == 12)
                    high = tile[256 + 32 * row + b] >> (4 * half) & 15;
                else
                    high = tile[256 + 16 * row + i] >> (4 * half + 2 * lane) & 3;
                bits[b] = static_cast<uint16_t>(high << 8 | tile[128 * half + 32 * row + b]);
            }
        for (int b = 0; b < 32; ++b) bits[b] += t.bits[codes[32 * row + b] >> (4 * half) & 15];
        unroll<32>([&](auto b)
                       SPEQ_LAMBDA { out[32 * half + column_of_byte(F::dtype, b)] = to_float<F::dtype>(bits[b]); });
    }
    for (int j = 0; j < kBlock / kPairColumns; ++j) emit(j, FloatPair{load(out + 16 * j), load(out + 16 * j + 8)});
}

}  // namespace speq::SPEQ_ISA
