// The row blocks of a matrix as the exact products read them.
#pragma once
#include "gemm/block_decoder.h"

namespace speq::SPEQ_ISA {

// Where the planes of a block stand. Those of the next block follow, be it of the same row block or the next.
template <class F>
struct Planes {
    const uint8_t *codes, *residual;

    SPEQ_INLINE void next() {
        codes += kRowsPerBlock * kBlock / 2;
        residual += F::tile;
    }
    // Asks for the planes of a block to come. They are read once and in order, but from two places at a time and, with
    // several tokens, in bursts: hardware prefetchers alone leave half of the bandwidth unused.
    template <int Blocks>
    SPEQ_INLINE void prefetch_after() const {
        constexpr int size = kRowsPerBlock * kBlock / 2;
        unroll<size / 64>([&](auto i) SPEQ_LAMBDA { prefetch(codes + Blocks * size + i * 64); });
        if constexpr (!F::is_draft)
            unroll<F::tile / 64>([&](auto i) SPEQ_LAMBDA { prefetch(residual + Blocks * F::tile + i * 64); });
    }
};

template <class F>
class ExactBlocks {
  public:
    SPEQ_INLINE explicit ExactBlocks(const SplitWeight& w) : w_(w) {}

    int count() const { return w_.blocks(); }

    SPEQ_INLINE Planes<F> planes(int rb, int b) const {
        const size_t block = static_cast<size_t>(rb) * w_.blocks() + b;
        return {w_.codes + block * (kRowsPerBlock * kBlock / 2), w_.residual + block * F::tile};
    }

    // emit(j, weights of columns 16j..16j+15) for a vector of rows of a block, which is the i-th of the strip that
    // `tables` are for.
    template <int Wides, class Emit>
    SPEQ_INLINE void decode(const Planes<F>& planes, const TableStrip<F, Wides>& tables, int i, int wide,
                            Emit&& emit) const {
        const Table& first = tables.at(i, 0, wide);
        if constexpr (F::halves)
            decode_block<F>(planes.codes, planes.residual, wide * kWideRows, first, tables.at(i, 1, wide), emit);
        else
            decode_block<F>(planes.codes, planes.residual, wide * kWideRows, first, first, emit);
    }

  private:
    const SplitWeight& w_;
};

}  // namespace speq::SPEQ_ISA
