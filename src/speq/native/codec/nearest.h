// Which bin a weight drafts from, for many weights at once. Written for compilers to vectorise: all eight bins are
// unrolled, and choices are arithmetic on masks.
#pragma once
#include <bit>
#include <limits>
#include <utility>

#include "core/kernels.h"
#include "core/simd.h"

namespace speq::SPEQ_ISA {

// `mask` is -1 (take b) or 0 (keep a).
SPEQ_INLINE int32_t choose(int32_t mask, int32_t b, int32_t a) { return (b & mask) | (a & ~mask); }
SPEQ_INLINE float choose(int32_t mask, float b, float a) {
    return std::bit_cast<float>(choose(mask, std::bit_cast<int32_t>(b), std::bit_cast<int32_t>(a)));
}

// The bins of `count` weights and their values in a draft. For weight i bin c begins at begin(c, i) and drafts as
// above(c, i), or as below(c, i) if the weight is negative.
template <class Begin, class Above, class Below>
SPEQ_INLINE void choose_nearest(const Candidates& weights, int count, int residual_bits, const Begin& begin,
                                const Above& above, const Below& below, int32_t* __restrict bins,
                                float* __restrict values) {
    for (int i = 0; i < count; ++i) {
        const int32_t magnitude = weights.magnitudes[i], negative = weights.negative[i];
        const float target = weights.targets[i];
        int32_t bin = -1;
        float value = above(0, i), best = std::numeric_limits<float>::infinity();
        unroll<8>([&](auto c) SPEQ_LAMBDA {
            const uint32_t residual = static_cast<uint32_t>(magnitude - begin(c, i));
            const int32_t holds = -static_cast<int32_t>((residual >> residual_bits) == 0);
            const float drafted = choose(negative, below(c, i), above(c, i));
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

// See Kernels::nearest_bins.
inline void nearest_bins(const Candidates& weights, const uint16_t* start, const Drafts& drafts, int residual_bits,
                         int32_t* __restrict bins, float* __restrict values) {
    const Drafts draft = drafts;
    int32_t begin[8];
    for (int c = 0; c < 8; ++c) begin[c] = start[c];
    choose_nearest(
        weights, weights.count, residual_bits, [&](int c, int) SPEQ_LAMBDA { return begin[c]; },
        [&](int c, int) SPEQ_LAMBDA { return draft.above[c]; }, [&](int c, int) SPEQ_LAMBDA { return draft.below[c]; },
        bins, values);
}

// See Kernels::nearest_bins_of_rows.
inline void nearest_bins_of_rows(const Candidates& weights, const RowBins& rows, int residual_bits,
                                 int32_t* __restrict bins, float* __restrict values) {
    choose_nearest(
        weights, kFeedbackRows, residual_bits, [&](int c, int i) SPEQ_LAMBDA { return rows.start[c][i]; },
        [&](int c, int i) SPEQ_LAMBDA { return rows.above[c][i]; },
        [&](int c, int i) SPEQ_LAMBDA { return rows.below[c][i]; }, bins, values);
}

}  // namespace speq::SPEQ_ISA
