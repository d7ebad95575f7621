// The row blocks of a matrix as the exact products read them.
#pragma once
#include "block_decoder.h"

namespace speq::SPEQ_ISA {

constexpr int kWides = kRowsPerBlock / kWideRows;  // vectors of rows in a row block

template <class F>
class ExactBlocks {
  public:
    SPEQ_INLINE explicit ExactBlocks(const SplitWeight& w) : w_(w), maker_(w), group_shift_(w.group_shift()) {}

    int count() const { return w_.blocks(); }

    // emit(j, weights of columns 16j..16j+15) for rows r..r + kWideRows - 1 of block b of a row block.
    template <class Emit>
    SPEQ_INLINE void decode(int rb, int b, int r, const uint16_t* scales, Emit&& emit) const {
        decode_block<F>(maker_, scales, group_shift_, w_.codes_at(rb, b), residual_at(rb, b), b, r, emit);
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
    TableMaker<F> maker_;
    int group_shift_;
};

}  // namespace speq::SPEQ_ISA
