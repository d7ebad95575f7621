// What the kernels must know of a split format at compile time.
#pragma once
#include "split.h"

namespace speq {

// `Halves`: the two halves of a block have scales of their own (groups of 32).
template <DType D, int ResidualBits, bool TablePerGroup, bool Halves>
struct Format {
    static constexpr DType dtype = D;
    static constexpr int residual_bits = ResidualBits;
    static constexpr bool table_per_group = TablePerGroup;
    static constexpr bool halves = Halves;
    static constexpr int high_bytes = ResidualBits == 12 ? 32 : 16;
    static constexpr int tile = kRowsPerBlock * (kBlock + high_bytes);
};

}  // namespace speq
