// A split format as the codec needs it, and the integers T at which its bins begin.
//
// T must have the same bits on every platform and in every kernel: one float32 multiplication, one truncation,
// integers. Spec sees to it that the product is zero or a normal number, so flushing subnormals changes nothing.
// docs/formats.md has the rules.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

#include "core/kernels.h"

namespace speq::codec {

constexpr int kRows = 4;      // rows of a row block
constexpr int kColumns = 64;  // columns of a block
constexpr int kHalf = kColumns / 2;
constexpr int kMaxGroup = 128;

using Bins = std::array<int16_t, 8>;  // magnitudes fit: they are below 0x8000

struct Format {
    bool bf16;
    bool nested;
    int residual_bits;
    int group_size;
    std::array<float, 8> edges;
    std::array<int32_t, 8> drops;
    std::array<int16_t, 16> levels;
    Bins table;  // T of e3m0
    decltype(Kernels::nearest_bins) nearest_bins;
    decltype(Kernels::nearest_bins_of_rows) nearest_bins_of_rows;
    decltype(Kernels::add_products) add_products;

    int residual_bytes() const { return kRows * (kColumns + kColumns * (residual_bits - 8) / 8); }
    int infinity() const { return bf16 ? 0x7f80 : 0x7c00; }
};

// The 16-bit float with the bits `pattern`, as float32; finite patterns only.
inline float widen(uint16_t pattern, bool bf16) {
    const uint32_t sign = uint32_t(pattern & 0x8000) << 16;
    const uint32_t magnitude = pattern & 0x7fff;
    if (bf16) return std::bit_cast<float>(sign | magnitude << 16);
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    const uint32_t subnormal = std::bit_cast<uint32_t>(float(int32_t(magnitude)) * 0x1p-24f);
    return std::bit_cast<float>(sign | (magnitude < 0x400 ? subnormal : normal));
}

// Bits of x >= 0 (zero or normal) rounded towards zero; FP16 saturates at its largest finite number.
inline int32_t truncate(float x, bool bf16) {
    const uint32_t wide = std::bit_cast<uint32_t>(x);
    if (bf16) return int32_t(wide >> 16);
    if (wide < 0x38800000u) return int32_t(x * 0x1p24f);
    return int32_t((std::min(wide, 0x477fffffu) - 0x38000000u) >> 13);
}

// x > 0, finite, to the nearest BF16, ties to even.
inline uint16_t round_bf16(float x) {
    const uint32_t wide = std::bit_cast<uint32_t>(x);
    return uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}

inline Bins bins(const Format& format, uint16_t scale) {
    if (!format.nested) return format.table;
    const float wide = std::bit_cast<float>(uint32_t(scale) << 16);
    Bins result;
    for (int c = 0; c < 8; ++c)
        result[c] = int16_t(std::max(truncate(format.edges[c] * wide, format.bf16) - format.drops[c], 0));
    return result;
}

// What codes are worth in a draft, `step` being the value of one level.
inline Drafts drafts_of(const Format& format, float step) {
    Drafts drafts;
    for (size_t c = 0; c < 8; ++c) {
        drafts.above[c] = float(format.levels[c]) * step;
        drafts.below[c] = float(format.levels[c + 8]) * step;
    }
    return drafts;
}

// Column, within a block, of the low nibble of code byte b; the high nibble is kHalf columns further.
inline std::array<uint8_t, kHalf> low_nibble_order(bool bf16) {
    std::array<uint8_t, kHalf> order;
    for (int b = 0; b < kHalf; ++b) {
        const int lane = b / 16, i = b % 16;
        const int vector = 2 * (i / 8) + (bf16 ? i % 2 : lane);
        const int position = bf16 ? i % 8 / 2 + 4 * lane : i % 8;
        order[b] = uint8_t(8 * vector + position);
    }
    return order;
}

}  // namespace speq::codec
