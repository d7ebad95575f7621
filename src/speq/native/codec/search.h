// The search for the scale of a group: the same sums in the same order as speq.formats.scales, so the same scale to the
// bit.
#pragma once
#include <algorithm>
#include <bit>
#include <limits>
#include <span>

#include "codec/drafts.h"

namespace speq::codec {

constexpr int kLanes = 16;
constexpr int kMaxGroup = 128;
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

inline void load_group(Group& group, const SplitFormat& format, const uint16_t* patterns, const float* importance,
                       int count) {
    group.size = static_cast<size_t>(format.group_size);
    for (int i = 0; i < format.group_size; ++i) {
        const uint16_t pattern = i < count ? patterns[i] : 0;
        group.magnitude[i] = pattern & 0x7fff;
        group.negative[i] = -(pattern >> 15);
        const bool counts = i < count && group.magnitude[i] < infinity(format.dtype);
        group.value[i] = counts ? to_float(format.dtype, pattern) : 0.0f;
        group.importance[i] = counts ? importance[i] : 0.0f;
    }
    uint32_t largest = 0;
    for (int i = 0; i < format.group_size; ++i)
        largest = std::max(largest, std::bit_cast<uint32_t>(group.value[i]) & 0x7fffffffu);
    group.largest = std::bit_cast<float>(largest);
    group.factor = std::bit_cast<float>((254 - std::clamp(largest >> 23, 27u, 253u)) << 23);
    for (int i = 0; i < format.group_size; ++i) group.value[i] *= group.factor;
}

// What a group's weights get: a bin, -1 for an escape, and the value that they draft as.
struct Choice {
    alignas(64) int32_t bin[kMaxGroup];
    alignas(64) float value[kMaxGroup];
};

// Gives each weight the largest bin that begins at or below its magnitude, as `e3m0` does.
inline void largest_bins(const Group& group, const Bins& start, const Drafts& drafts, int residual_bits,
                         Choice& choice) {
    for (size_t i = 0; i < group.size; ++i) {
        size_t bin = 0;
        for (size_t c = 1; c < 8; ++c) bin = start[c] <= group.magnitude[i] ? c : bin;
        const bool escapes = static_cast<uint32_t>(group.magnitude[i] - start[bin]) >> residual_bits;
        choice.bin[i] = escapes ? -1 : static_cast<int32_t>(bin);
        choice.value[i] = escapes ? drafts.above[0] : group.negative[i] ? drafts.below[bin] : drafts.above[bin];
    }
}

// Each weight drafted as near as the format allows.
inline void choose(const Kernels& kernels, const SplitFormat& format, const Group& group, const Bins& start,
                   const Drafts& drafts, Choice& choice) {
    if (!format.table_per_group) return largest_bins(group, start, drafts, format.residual_bits, choice);
    kernels.nearest_bins({group.magnitude, group.negative, group.value, static_cast<int>(group.size)}, start.data(),
                         drafts, format.residual_bits, choice.bin, choice.value);
}

inline float sum_of(float* lanes) {
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
    return sum_of(lanes);
}

inline uint16_t clamped_scale(float scale) {
    const float largest = std::bit_cast<float>(0x7f7f0000u);
    return float_to_bf16(std::min(std::max(scale, kSmallestScale), largest));
}

// What the codes of a group are worth, after the group was brought near 1.
inline Drafts near_one(const SplitFormat& format, const Group& group, uint16_t scale) {
    return drafts_of(format, bf16_to_float(scale) * group.factor * (1.0f / 64));
}

inline uint16_t nested_scale(const Kernels& kernels, const SplitFormat& format, const Group& group,
                             std::span<const float> candidates, Choice& choice) {
    if (group.largest < kSmallestScale) return 0;
    uint16_t best = 0;
    float best_error = std::numeric_limits<float>::infinity();
    for (const float candidate : candidates) {
        const uint16_t scale = clamped_scale(group.largest * candidate);
        choose(kernels, format, group, format.bins(scale), near_one(format, group, scale), choice);
        const float error = draft_error(group, choice);
        if (error < best_error) {
            best_error = error;
            best = scale;
        }
    }
    return best;
}

inline uint16_t e3m0_scale(const Kernels& kernels, const SplitFormat& format, const Group& group, Choice& choice) {
    if (group.largest < kSmallestScale) return 0;
    choose(kernels, format, group, format.bins(0), drafts_of(format, 1.0f), choice);
    float agreement[kLanes] = {}, power[kLanes] = {};
    for (int first = 0; first < format.group_size; first += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            const float importance = group.importance[first + i], level = choice.value[first + i];
            agreement[i] += importance * (group.value[first + i] * level);
            power[i] += importance * (level * level);
        }
    }
    const float numerator = sum_of(agreement), denominator = sum_of(power);
    if (!(numerator > 0 && denominator > 0)) return 0;
    return clamped_scale(numerator / denominator * 64.0f / group.factor);
}

}  // namespace speq::codec
