// The exact 16-bit weights of one block (64 columns) of kWideRows rows, rebuilt from the planes as four pairs
// of sixteen columns each. bits = sign << 15 | (T[c] + r): T is looked up by code, sign included, as two byte tables of
// 16 entries.
#pragma once
#include "simd.h"

#if SPEQ_AVX512
#include "block_decoder_avx512.h"
#elif SPEQ_AVX2
#include "block_decoder_avx2.h"
#else
#include "block_decoder_portable.h"
#endif

namespace speq::SPEQ_ISA {

// One block of rows row..row + kWideRows - 1 with the tables of their groups; `scales` points at the row block's
// scales.
template <class F, class Emit>
SPEQ_INLINE void decode_block(const TableMaker<F>& maker, const uint16_t* scales, int group_shift, const uint8_t* codes,
                              const uint8_t* tile, int block, int row, Emit&& emit) {
    if constexpr (F::table_per_group && F::halves) {
        const Table first = maker.make(scales + 2 * block * kRowsPerBlock + row);
        const Table second = maker.make(scales + (2 * block + 1) * kRowsPerBlock + row);
        decode_block<F>(codes, tile, row, first, second, emit);
    } else {
        const Table table = maker.make(scales + (block >> group_shift) * kRowsPerBlock + row);
        decode_block<F>(codes, tile, row, table, table, emit);
    }
}

}  // namespace speq::SPEQ_ISA
