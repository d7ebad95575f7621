// 16-bit floats as integers: scalar conversions that give the same bits on every platform.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace speq {

enum class DType : uint8_t { fp16, bf16 };

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline float fp16_to_float(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t magnitude = bits & 0x7fffu;
    if (magnitude < 0x0400u) {  // zero or subnormal: magnitude * 2^-24 is exact in float32
        const float value = static_cast<float>(magnitude) * 0x1p-24f;
        return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
    }
    const uint32_t rebias = magnitude >= 0x7c00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
    return std::bit_cast<float>(sign | ((magnitude << 13) + rebias));
}

template <DType D>
inline float to_float(uint16_t bits) {
    return D == DType::bf16 ? bf16_to_float(bits) : fp16_to_float(bits);
}

// Non-negative float32 to the magnitude of a 16-bit float, rounded towards zero; overflow gives the largest finite
// value.
template <DType D>
inline uint16_t truncate_to(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if constexpr (D == DType::bf16) return static_cast<uint16_t>(bits >> 16);
    const int exponent = static_cast<int>(bits >> 23) - 127;
    if (exponent >= 16) return 0x7bff;
    if (exponent >= -14) return static_cast<uint16_t>((bits >> 13) - ((127u - 15u) << 10));
    if (exponent < -24) return 0;
    return static_cast<uint16_t>(((bits & 0x7fffffu) | 0x800000u) >> (-exponent - 1));
}

// Any float32 to the nearest BF16, ties to even, as a float32.
inline float nearest_bf16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if (value != value) return std::bit_cast<float>((bits | 0x400000u) & 0xffff0000u);
    return std::bit_cast<float>((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

// Any float32 to FP16, rounded to nearest even, as the F16C instruction does it.
inline uint16_t float_to_fp16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {  // subnormal result: adding 0.5 lets the float adder round at 2^-24
        const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
    }
    const uint32_t odd = (magnitude >> 13) & 1u;
    return static_cast<uint16_t>(sign | ((magnitude - ((127u - 15u) << 23) + 0xfffu + odd) >> 13));
}

}  // namespace speq
