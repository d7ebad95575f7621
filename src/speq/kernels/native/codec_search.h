// The search for the scale of a group: the same sums in the same order as speq.bits.scales, so the same scale to the
// bit.
//
// The loops run over 16 columns at a time with all eight bins unrolled; compilers turn them into integer compares and
// selects on whole vectors.
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
    alignas(64) int16_t magnitude[kMaxGroup];
    alignas(64) int16_t negative[kMaxGroup];  // -1 or 0
    alignas(64) float value[kMaxGroup];       // times `factor`; 0 if not finite
    alignas(64) float importance[kMaxGroup];  // 0 if not finite
    float largest;                            // finite magnitude
    float factor;                             // a power of two that brings `largest` to [1, 4)
};

inline void load_group(Group& group, const Format& format, const uint16_t* patterns, const float* importance,
                       int count) {
    for (int i = 0; i < format.group_size; ++i) {
        const uint16_t pattern = i < count ? patterns[i] : 0;
        group.magnitude[i] = int16_t(pattern & 0x7fff);
        group.negative[i] = int16_t(-(pattern >> 15));
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

// What a magnitude gets: the largest bin with T[bin] <= magnitude, its T and its level.
struct Chosen {
    int16_t bin, start, level;
};

// `mask` is -1 (take b) or 0 (keep a); arithmetic instead of a branch, so that loops over columns vectorise.
inline int16_t select(int16_t mask, int16_t b, int16_t a) { return int16_t((b & mask) | (a & ~mask)); }

template <int... C>
inline Chosen choose(int16_t magnitude, int16_t negative, const Bins& start, const std::array<int16_t, 16>& levels,
                     std::integer_sequence<int, C...>) {
    int16_t bin = 0, begin = start[0], above = levels[0], below = levels[8];
    const auto try_bin = [&](int c) {
        const int16_t reached = int16_t(-(magnitude >= start[c]));
        bin = select(reached, int16_t(c), bin);
        begin = select(reached, start[c], begin);
        above = select(reached, levels[c], above);
        below = select(reached, levels[c + 8], below);
    };
    (try_bin(C + 1), ...);
    return {bin, begin, select(negative, below, above)};
}

inline Chosen choose(int16_t magnitude, int16_t negative, const Bins& start, const std::array<int16_t, 16>& levels) {
    return choose(magnitude, negative, start, levels, std::make_integer_sequence<int, 7>());
}

inline float fold(float* lanes) {
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// Levels of a group; an escape drafts as code 0.
inline void draft_levels(float* __restrict out, const Format& format, const Bins& start, const Group& group) {
    alignas(64) int16_t levels[kMaxGroup];
    const Bins begin = start;
    const std::array<int16_t, 16> level = format.levels;
    const int residual_bits = format.residual_bits, size = format.group_size;
    for (int i = 0; i < size; ++i) {
        const int16_t magnitude = group.magnitude[i];
        const Chosen chosen = choose(magnitude, group.negative[i], begin, level);
        const uint16_t residual = uint16_t(magnitude - chosen.start);
        levels[i] = select(int16_t(-((residual >> residual_bits) != 0)), level[0], chosen.level);
    }
    for (int i = 0; i < size; ++i) out[i] = float(levels[i]);
}

inline float draft_error(const Format& format, const Bins& start, const Group& group, float step) {
    alignas(64) float level[kMaxGroup];
    draft_levels(level, format, start, group);
    float lanes[kLanes] = {};
    for (int first = 0; first < format.group_size; first += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            const float error = group.value[first + i] - level[first + i] * step;
            lanes[i] += group.importance[first + i] * (error * error);
        }
    }
    return fold(lanes);
}

inline uint16_t clamped_scale(float scale) {
    const float largest = std::bit_cast<float>(0x7f7f0000u);
    return round_bf16(std::min(std::max(scale, kSmallestScale), largest));
}

inline uint16_t nested_scale(const Format& format, const Group& group, std::span<const float> candidates) {
    if (group.largest < kSmallestScale) return 0;
    uint16_t best = 0;
    float best_error = std::numeric_limits<float>::infinity();
    for (const float candidate : candidates) {
        const uint16_t scale = clamped_scale(group.largest * candidate);
        const float step = std::bit_cast<float>(uint32_t(scale) << 16) * group.factor * (1.0f / 64);
        const float error = draft_error(format, bins(format, scale), group, step);
        if (error < best_error) {
            best_error = error;
            best = scale;
        }
    }
    return best;
}

inline uint16_t e3m0_scale(const Format& format, const Group& group) {
    if (group.largest < kSmallestScale) return 0;
    alignas(64) float level[kMaxGroup];
    draft_levels(level, format, format.table, group);
    float agreement[kLanes] = {}, power[kLanes] = {};
    for (int first = 0; first < format.group_size; first += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            const float importance = group.importance[first + i], drafted = level[first + i];
            agreement[i] += importance * (group.value[first + i] * drafted);
            power[i] += importance * (drafted * drafted);
        }
    }
    const float numerator = fold(agreement), denominator = fold(power);
    if (!(numerator > 0 && denominator > 0)) return 0;
    return clamped_scale(numerator / denominator * 64.0f / group.factor);
}

}  // namespace speq::codec
