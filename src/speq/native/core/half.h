// 16-bit floats as integers: scalar conversions that give the same bits on every platform. The codec and all kernels
// use these or vector instructions that agree with them.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>

namespace speq {

enum class DType : uint8_t { fp16, bf16 };

constexpr int mantissa_bits(DType dtype) { return dtype == DType::bf16 ? 7 : 10; }
constexpr uint16_t infinity(DType dtype) { return dtype == DType::bf16 ? 0x7f80 : 0x7c00; }

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Without a branch, so that loops over it become vector code.
inline float fp16_to_float(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t magnitude = bits & 0x7fffu;
    const uint32_t rebias = magnitude >= 0x7c00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
    // Zero or subnormal: magnitude * 2^-24 is exact in float32.
    const uint32_t subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
    return std::bit_cast<float>(sign | (magnitude < 0x0400u ? subnormal : (magnitude << 13) + rebias));
}

inline float to_float(DType dtype, uint16_t bits) {
    return dtype == DType::bf16 ? bf16_to_float(bits) : fp16_to_float(bits);
}
template <DType D>
inline float to_float(uint16_t bits) {
    return to_float(D, bits);
}

// A float32 that is zero or positive and normal to the bits of a 16-bit float, rounded towards zero; overflow gives the
// largest finite FP16.
inline uint16_t truncate_to(DType dtype, float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if (dtype == DType::bf16) return static_cast<uint16_t>(bits >> 16);
    if (bits < 0x38800000u) return static_cast<uint16_t>(static_cast<int32_t>(value * 0x1p24f));
    return static_cast<uint16_t>((std::min(bits, 0x477fffffu) - 0x38000000u) >> 13);
}

// Any float32 to the nearest BF16, ties to even.
inline uint16_t float_to_bf16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = value != value ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
    return static_cast<uint16_t>(rounded >> 16);
}
inline float nearest_bf16(float value) { return bf16_to_float(float_to_bf16(value)); }

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
