// What the kernels must know of a split format at compile time.
#pragma once
#include "core/split.h"

namespace speq {

// `Halves`: the two halves of a block have scales of their own (groups of 32). Without residual bits it is the draft of
// a format: a weight is its code's level times its group's scale, rounded to the dtype.
template <DType D, int ResidualBits, bool TablePerGroup, bool Halves>
struct KernelFormat {
    static constexpr DType dtype = D;
    static constexpr int residual_bits = ResidualBits;
    static constexpr bool table_per_group = TablePerGroup;
    static constexpr bool halves = Halves;
    static constexpr bool is_draft = ResidualBits == 0;
    static constexpr int tile = is_draft ? 0 : residual_tile_bytes(ResidualBits);
};

}  // namespace speq
