// The search for the scale of a group: the same sums in the same order as speq.bits.scales, so the same scale to the
// bit.
//
// The loops run over the columns of a group with all eight bins unrolled; compilers turn them into compares and selects
// on whole vectors.
#pragma once

#include <limits>
#include <span>
#include <utility>

#include "codec_format.h"

namespace speq::codec {

constexpr int kLanes = 16;
constexpr float kSmallestScale = 0x1p-100f;

// One group of a row, padded with zeros of no importance to the group size.
struct Group {
    alignas(64) int32_t magnitude[kMaxGroup];
    alignas(64) int32_t negative[kMaxGroup];  // -1 or 0
    alignas(64) float value[kMaxGroup];       // times `factor`; 0 if not finite
    alignas(64) float importance[kMaxGroup];  // 0 if not finite
    float largest;                            // finite magnitude
    float factor;                             // a power of two that brings `largest` to [1, 4)
    size_t size;
};

inline void load_group(Group& group, const Format& format, const uint16_t* patterns, const float* importance,
                       int count) {
    group.size = size_t(format.group_size);
    for (int i = 0; i < format.group_size; ++i) {
        const uint16_t pattern = i < count ? patterns[i] : 0;
        group.magnitude[i] = pattern & 0x7fff;
        group.negative[i] = -(pattern >> 15);
        const bool counts = i < count && group.magnitude[i] < format.infinity();
        group.value[i] = counts ? widen(pattern, format.bf16) : 0.0f;
        group.importance[i] = counts ? importance[i] : 0.0f;
    }
    uint32_t largest = 0;
    for (int i = 0; i < format.group_size; ++i)
        largest = std::max(largest, std::bit_cast<uint32_t>(group.value[i]) & 0x7fffffffu);
    group.largest = std::bit_cast<float>(largest);
    group.factor = std::bit_cast<float>((254 - std::clamp(largest >> 23, 27u, 253u)) << 23);
    for (int i = 0; i < format.group_size; ++i) group.value[i] *= group.factor;
}

// `mask` is -1 (take b) or 0 (keep a); arithmetic instead of a branch, so that loops over columns vectorise.
inline int32_t select(int32_t mask, int32_t b, int32_t a) { return (b & mask) | (a & ~mask); }
inline float select(int32_t mask, float b, float a) {
    return std::bit_cast<float>(select(mask, std::bit_cast<int32_t>(b), std::bit_cast<int32_t>(a)));
}

// Which bin a weight gets, -1 for an escape, and what it drafts as.
struct Chosen {
    int32_t bin;
    float value;
};

// Of `nested`: of the bins that can hold the magnitude the one whose value (above for positive weights, below for
// negative ones) is nearest to the target, the lowest of equals.
template <int... C>
inline Chosen nearest(int32_t magnitude, int32_t negative, float target, const Bins& start, const Drafts& drafts,
                      int residual_bits, std::integer_sequence<int, C...>) {
    Chosen chosen{-1, drafts.above[0]};
    float best = std::numeric_limits<float>::infinity();
    const auto try_bin = [&](int c) {
        const uint32_t residual = uint32_t(magnitude - start[c]);
        const int32_t holds = -int32_t((residual >> residual_bits) == 0);
        const float value = select(negative, drafts.below[c], drafts.above[c]);
        const float distance = std::bit_cast<float>(std::bit_cast<uint32_t>(target - value) & 0x7fffffffu);
        const int32_t better = holds & (-int32_t(distance < best) | -int32_t(chosen.bin < 0));
        chosen = {select(better, c, chosen.bin), select(better, value, chosen.value)};
        best = select(better, distance, best);
    };
    (try_bin(C), ...);
    return chosen;
}

inline Chosen nearest(int32_t magnitude, int32_t negative, float target, const Bins& start, const Drafts& drafts,
                      int residual_bits) {
    return nearest(magnitude, negative, target, start, drafts, residual_bits, std::make_integer_sequence<int, 8>());
}

// Of `e3m0`: the largest bin that begins at or below the magnitude.
inline Chosen largest(int32_t magnitude, int32_t negative, const Bins& start, const Drafts& drafts, int residual_bits) {
    int32_t bin = 0;
    for (int c = 1; c < 8; ++c) bin = select(-int32_t(start[c] <= magnitude), c, bin);
    if (uint32_t(magnitude - start[bin]) >> residual_bits) return {-1, drafts.above[0]};
    return {bin, negative ? drafts.below[bin] : drafts.above[bin]};
}

// What a group's weights get, each drafted as near as can be.
struct Choice {
    alignas(64) int32_t bin[kMaxGroup];
    alignas(64) float value[kMaxGroup];
};

inline void choose(Choice& __restrict choice, const Format& format, const Bins& bins, const Group& group,
                   const Drafts& values) {
    const Bins start = bins;
    const Drafts drafts = values;
    const int residual_bits = format.residual_bits, size = format.group_size;
    if (format.nested) {
        for (int i = 0; i < size; ++i) {
            const Chosen chosen =
                nearest(group.magnitude[i], group.negative[i], group.value[i], start, drafts, residual_bits);
            choice.bin[i] = chosen.bin;
            choice.value[i] = chosen.value;
        }
    } else {
        for (int i = 0; i < size; ++i) {
            const Chosen chosen = largest(group.magnitude[i], group.negative[i], start, drafts, residual_bits);
            choice.bin[i] = chosen.bin;
            choice.value[i] = chosen.value;
        }
    }
}

inline float fold(float* lanes) {
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

inline float draft_error(const Group& group, const Choice& choice) {
    float lanes[kLanes] = {};
    for (size_t first = 0; first < group.size; first += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            const float error = group.value[first + i] - choice.value[first + i];
            lanes[i] += group.importance[first + i] * (error * error);
        }
    }
    return fold(lanes);
}

inline uint16_t clamped_scale(float scale) {
    const float largest = std::bit_cast<float>(0x7f7f0000u);
    return round_bf16(std::min(std::max(scale, kSmallestScale), largest));
}

// What the codes of a group are worth, after the group was brought near 1.
inline Drafts near_one(const Format& format, const Group& group, uint16_t scale) {
    return Drafts(format, std::bit_cast<float>(uint32_t(scale) << 16) * group.factor * (1.0f / 64));
}

inline uint16_t nested_scale(const Format& format, const Group& group, std::span<const float> candidates,
                             Choice& choice) {
    if (group.largest < kSmallestScale) return 0;
    uint16_t best = 0;
    float best_error = std::numeric_limits<float>::infinity();
    for (const float candidate : candidates) {
        const uint16_t scale = clamped_scale(group.largest * candidate);
        choose(choice, format, bins(format, scale), group, near_one(format, group, scale));
        const float error = draft_error(group, choice);
        if (error < best_error) {
            best_error = error;
            best = scale;
        }
    }
    return best;
}

inline uint16_t e3m0_scale(const Format& format, const Group& group, Choice& choice) {
    if (group.largest < kSmallestScale) return 0;
    choose(choice, format, format.table, group, Drafts(format, 1.0f));
    float agreement[kLanes] = {}, power[kLanes] = {};
    for (int first = 0; first < format.group_size; first += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            const float importance = group.importance[first + i], level = choice.value[first + i];
            agreement[i] += importance * (group.value[first + i] * level);
            power[i] += importance * (level * level);
        }
    }
    const float numerator = fold(agreement), denominator = fold(power);
    if (!(numerator > 0 && denominator > 0)) return 0;
    return clamped_scale(numerator / denominator * 64.0f / group.factor);
}

}  // namespace speq::codec
