// The arithmetic of a seed-exact draw: an exponential function, exponential variates and a counter-based generator.
// Each is a fixed sequence of single IEEE operations, because a token must come out the same on every machine and in
// NumPy.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

namespace speq {

using Words = std::array<uint32_t, 4>;

constexpr float kSmallestExponent = -60.0f;  // below e^-60 a token cannot win against the best one's 2^-33

// exp(x) for x <= 0, relative error below 3e-7: 2^n * e^r with a Taylor polynomial in r.
inline float exp_nonpositive(float x) {
    const int32_t alive = -static_cast<int32_t>(x >= kSmallestExponent);  // a mask: a branch would stay scalar
    const float clamped = std::bit_cast<float>(std::bit_cast<int32_t>(x) & alive);
    const float shifted = clamped * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to the nearest integer
    const float n = shifted - 12582912.0f;
    const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
    float y = 1.98412698e-4f;
    y = y * r + 1.38888889e-3f;
    y = y * r + 8.33333333e-3f;
    y = y * r + 4.16666667e-2f;
    y = y * r + 1.66666667e-1f;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    const int32_t power = std::bit_cast<int32_t>(shifted) - 0x4b400000;
    return std::bit_cast<float>((std::bit_cast<int32_t>(y) + (power << 23)) & alive);
}

// -log(1 - v) for 0 < v < 1 where 1 - v is exact: the atanh series after splitting off the exponent.
inline double exponential(double v) {
    int exponent = 0;
    double mantissa = std::frexp(1.0 - v, &exponent);
    if (mantissa < 0.70710678118654752) {
        mantissa *= 2.0;
        exponent -= 1;
    }
    const double s = (mantissa - 1.0) / (mantissa + 1.0);
    const double square = s * s;
    double series = 1.0 / 21.0;
    for (int k = 19; k >= 1; k -= 2) series = series * square + 1.0 / k;
    return -(exponent * 0.69314718055994531 + 2.0 * s * series);
}

// Philox4x32-10 (Salmon et al., SC 2011): four random words that are a pure function of key and counter.
inline Words philox(uint64_t seed, uint64_t position, uint32_t block) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    Words c = {block, static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0};
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
        c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key0, static_cast<uint32_t>(b),
             static_cast<uint32_t>(a >> 32) ^ c[3] ^ key1, static_cast<uint32_t>(a)};
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return c;
}

inline double uniform(uint32_t word) { return (word + 0.5) * 0x1p-32; }

}  // namespace speq
