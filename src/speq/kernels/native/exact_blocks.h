// The row blocks of a matrix as the exact products read them.
#pragma once
#include "block_decoder.h"

namespace speq::SPEQ_ISA {

template <class F>
class ExactBlocks {
  public:
    SPEQ_INLINE explicit ExactBlocks(const SplitWeight& w) : w_(w) {}

    int count() const { return w_.blocks(); }

    // emit(j, weights of columns 16j..16j+15) for a vector of rows of block b of the row block that `tables` are for.
    template <int Wides, class Emit>
    SPEQ_INLINE void decode(int rb, int b, int wide, const TableStrip<F, Wides>& tables, Emit&& emit) const {
        const uint8_t *codes = w_.codes_at(rb, b), *residual = residual_at(rb, b);
        const Table& first = tables.at(b, 0, wide);
        if constexpr (F::halves)
            decode_block<F>(codes, residual, wide * kWideRows, first, tables.at(b, 1, wide), emit);
        else
            decode_block<F>(codes, residual, wide * kWideRows, first, first, emit);
    }

    // Asks for the planes of a block; those beyond the end of a row are the next row block's. The planes are read once
    // and in order, but from two places at a time and, with several tokens, in bursts: hardware prefetchers alone leave
    // half of the bandwidth unused.
    SPEQ_INLINE void prefetch_planes(int rb, int b) const {
        const uint8_t *codes = w_.codes_at(rb, b), *residual = residual_at(rb, b);
        unroll<kRowsPerBlock * kBlock / 2 / 64>([&](auto i) SPEQ_LAMBDA { prefetch(codes + i * 64); });
        unroll<F::tile / 64>([&](auto i) SPEQ_LAMBDA { prefetch(residual + i * 64); });
    }

  private:
    // As w_.residual_at, with a tile of known size.
    SPEQ_INLINE const uint8_t* residual_at(int rb, int b) const {
        return w_.residual + (static_cast<size_t>(rb) * w_.blocks() + b) * F::tile;
    }

    const SplitWeight& w_;
};

}  // namespace speq::SPEQ_ISA
