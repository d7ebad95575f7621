// Which bin a weight drafts from, for many weights at once. Written for compilers to vectorise: all eight bins are
// unrolled, and choices are arithmetic on masks.
#pragma once
#include <bit>
#include <limits>
#include <utility>

#include "kernels.h"
#include "simd.h"

namespace speq::SPEQ_ISA {

// `mask` is -1 (take b) or 0 (keep a).
SPEQ_INLINE int32_t choose(int32_t mask, int32_t b, int32_t a) { return (b & mask) | (a & ~mask); }
SPEQ_INLINE float choose(int32_t mask, float b, float a) {
    return std::bit_cast<float>(choose(mask, std::bit_cast<int32_t>(b), std::bit_cast<int32_t>(a)));
}

// See Kernels::nearest_bins.
inline void nearest_bins(const Candidates& weights, const int16_t* start, const Drafts& drafts, int residual_bits,
                         int32_t* __restrict bins, float* __restrict values) {
    const Drafts draft = drafts;
    int32_t begin[8];
    for (int c = 0; c < 8; ++c) begin[c] = start[c];
    for (int i = 0; i < weights.count; ++i) {
        const int32_t magnitude = weights.magnitudes[i], negative = weights.negative[i];
        const float target = weights.targets[i];
        int32_t bin = -1;
        float value = draft.above[0], best = std::numeric_limits<float>::infinity();
        unroll<8>([&](auto c) SPEQ_LAMBDA {
            const uint32_t residual = static_cast<uint32_t>(magnitude - begin[c]);
            const int32_t holds = -static_cast<int32_t>((residual >> residual_bits) == 0);
            const float drafted = choose(negative, draft.below[c], draft.above[c]);
            const float distance = std::bit_cast<float>(std::bit_cast<uint32_t>(target - drafted) & 0x7fffffffu);
            const int32_t better = holds & (-static_cast<int32_t>(distance < best) | -static_cast<int32_t>(bin < 0));
            bin = choose(better, c, bin);
            value = choose(better, drafted, value);
            best = choose(better, distance, best);
        });
        bins[i] = bin;
        values[i] = value;
    }
}

}  // namespace speq::SPEQ_ISA
