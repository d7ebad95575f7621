// Vec8 in plain C++.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/half.h"
#include "core/instruction_set.h"

namespace speq::SPEQ_ISA {

struct Vec8 {
    float v[8];
};
template <class F>
SPEQ_INLINE Vec8 lanes(F f) {
    Vec8 r;
    for (int i = 0; i < 8; ++i) r.v[i] = f(i);
    return r;
}
SPEQ_INLINE Vec8 load(const float* p) {
    return lanes([&](int i) { return p[i]; });
}
SPEQ_INLINE void store(float* p, Vec8 a) { std::memcpy(p, a.v, sizeof a.v); }
SPEQ_INLINE Vec8 broadcast(float x) {
    return lanes([&](int) { return x; });
}
SPEQ_INLINE Vec8 zero() { return broadcast(0.0f); }
SPEQ_INLINE Vec8 add(Vec8 a, Vec8 b) {
    return lanes([&](int i) { return a.v[i] + b.v[i]; });
}
SPEQ_INLINE Vec8 mul(Vec8 a, Vec8 b) {
    return lanes([&](int i) { return a.v[i] * b.v[i]; });
}
SPEQ_INLINE Vec8 div(Vec8 a, Vec8 b) {
    return lanes([&](int i) { return a.v[i] / b.v[i]; });
}
// As the vector instructions define them: the second operand where the comparison is false.
SPEQ_INLINE Vec8 max(Vec8 a, Vec8 b) {
    return lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
SPEQ_INLINE Vec8 min(Vec8 a, Vec8 b) {
    return lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
#if defined(__FP_FAST_FMAF)
SPEQ_INLINE Vec8 fma(Vec8 a, Vec8 b, Vec8 c) {
    return lanes([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
SPEQ_INLINE Vec8 fma_short(Vec8 a, Vec8 b, Vec8 c) { return fma(a, b, c); }
#else
// Where a fused multiply-add is a call into the C library, double does the same several times faster: it holds every
// product exactly, and rounding the sum twice is wrong only if the first time ended halfway between two floats, or
// below the smallest normal one, whose precision is less.
SPEQ_INLINE Vec8 fma(Vec8 a, Vec8 b, Vec8 c) {
    constexpr uint64_t kSmallest = (1023ull - 125) << 52, kSign = 1ull << 63;
    double sums[8];
    uint64_t hard = 0;  // its sign bit; comparisons would keep the loop from being vectorised
    for (int i = 0; i < 8; ++i) {
        sums[i] = static_cast<double>(a.v[i]) * b.v[i] + static_cast<double>(c.v[i]);
        const uint64_t bits = std::bit_cast<uint64_t>(sums[i]), size = bits & ~kSign;
        const uint64_t beyond_halfway = (bits & 0x1fffffff) ^ 0x10000000;
        hard |= (beyond_halfway - 1) | ((size - kSmallest) & (0 - size));
    }
    if (hard & kSign) return lanes([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
    return lanes([&](int i) { return static_cast<float>(sums[i]); });
}
// A multiply-add for a and b of eight significant bits, as in BF16. Their product has 16; where a sum with it is not
// exact in double, one of the two is less than a 32nd of the last bit of the other, which is then the result.
SPEQ_INLINE Vec8 fma_short(Vec8 a, Vec8 b, Vec8 c) {
    return lanes(
        [&](int i) { return static_cast<float>(static_cast<double>(a.v[i]) * b.v[i] + static_cast<double>(c.v[i])); });
}
#endif
SPEQ_INLINE Vec8 load_fp16(const uint16_t* p) {
    return lanes([&](int i) { return fp16_to_float(p[i]); });
}
SPEQ_INLINE void store_fp16(uint16_t* p, Vec8 a) {
    for (int i = 0; i < 8; ++i) p[i] = float_to_fp16(a.v[i]);
}
SPEQ_INLINE float sum(Vec8 a) {
    return ((a.v[0] + a.v[4]) + (a.v[2] + a.v[6])) + ((a.v[1] + a.v[5]) + (a.v[3] + a.v[7]));
}
SPEQ_INLINE float largest(Vec8 a) {
    float m = a.v[0];
    for (int i = 1; i < 8; ++i) m = m > a.v[i] ? m : a.v[i];
    return m;
}
SPEQ_INLINE void transpose(Vec8 (&v)[8]) {
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < i; ++j) std::swap(v[i].v[j], v[j].v[i]);
}
SPEQ_INLINE void add_transposed(const Vec8 (&rows)[4], int count, float* y) {
    for (int j = 0; j < count; ++j)
        for (int i = 0; i < 4; ++i) y[4 * j + i] += rows[i].v[j];
}
SPEQ_INLINE Vec8 round_to_integer(Vec8 a) {
    return lanes([&](int i) { return std::nearbyint(a.v[i]); });
}
SPEQ_INLINE Vec8 power_of_two(Vec8 n) {
    return lanes(
        [&](int i) { return std::bit_cast<float>(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23); });
}

}  // namespace speq::SPEQ_ISA
