// The exact 16-bit weights of one block (64 columns) of kWideRows rows, rebuilt from the planes as four pairs
// of sixteen columns each. bits = sign << 15 | (T[c] + r): T is looked up by code, sign included, as two byte tables of
// 16 entries.
#pragma once
#include <type_traits>

#include "core/simd.h"

#if SPEQ_AVX512
#include "gemm/block_decoder_avx512.h"
#elif SPEQ_AVX2
#include "gemm/block_decoder_avx2.h"
#else
#include "gemm/block_decoder_portable.h"
#endif

namespace speq::SPEQ_ISA {

// The tables of some vectors of rows of a row block, for a strip of blocks. Those of several vectors are made before
// the first block is decoded: a table is the end of a long chain of instructions, for which the decoder would have to
// wait.
template <class F, int Wides = kWides>
class TableStrip {
  public:
    static constexpr int kBlocks = 16;

    SPEQ_INLINE explicit TableStrip(const SplitWeight& w) : maker_(w), group_shift_(w.group_shift()) {}

    // For blocks first..last-1, at most kBlocks from a multiple of kBlocks on, and vectors of rows from `wide` on of
    // the row block whose scales these are.
    SPEQ_INLINE void fill(const uint16_t* scales, int wide, int first, int last) {
        first_wide_ = wide;
        scales_ = scales + static_cast<size_t>(group(first)) * kRowsPerBlock + wide * kWideRows;
        if constexpr (kAhead)
            for (int g = 0; g < group(last - first - 1) + kPerBlock; ++g) {
                prefetch(scales_ + (g + kGroupsAhead) * kRowsPerBlock);
                maker_.make(scales_ + g * kRowsPerBlock, tables_[g]);
            }
    }

    // The table of a vector of rows in a half of the i-th block.
    SPEQ_INLINE decltype(auto) at(int i, int half, int wide) const {
        const int g = group(i) + (F::halves ? half : 0);
        if constexpr (!F::table_per_group) {
            return maker_.constant(wide);
        } else if constexpr (kAhead) {
            return (tables_[g][wide - first_wide_]);
        } else {
            Table table[1];
            maker_.make(scales_ + g * kRowsPerBlock, table);
            return Table{table[0]};
        }
    }

  private:
    static constexpr bool kAhead = F::table_per_group && Wides > 1;
    static constexpr int kPerBlock = F::halves ? 2 : 1;
    static constexpr int kGroupsAhead = 2 * kPerBlock * kBlocks;

    SPEQ_INLINE int group(int block) const { return F::halves ? 2 * block : block >> group_shift_; }

    std::conditional_t<F::is_draft, DraftTableMaker<F>, TableMaker<F>> maker_;
    const uint16_t* scales_ = nullptr;
    int group_shift_, first_wide_ = 0;
    Table tables_[kAhead ? kPerBlock * kBlocks : 1][Wides];
};

}  // namespace speq::SPEQ_ISA
