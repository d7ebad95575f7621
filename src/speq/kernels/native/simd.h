// Eight float32 lanes with one meaning on every machine: AVX2 where the file is compiled for it, plain loops elsewhere.
// All multiply-adds are fused and all sums have one order, so every path gives the same bits.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "half.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define SPEQ_AVX2 1
#include <immintrin.h>
#else
#define SPEQ_AVX2 0
#endif

#if SPEQ_AVX2 && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define SPEQ_AVX512 1
#else
#define SPEQ_AVX512 0
#endif

#if SPEQ_AVX512 && defined(__AVX512BF16__)
#define SPEQ_AVX512BF16 1
#else
#define SPEQ_AVX512BF16 0
#endif

#define SPEQ_INLINE inline __attribute__((always_inline))
#define SPEQ_LAMBDA __attribute__((always_inline))

namespace speq::SPEQ_ISA {

SPEQ_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

template <int I>
using Index = std::integral_constant<int, I>;

// f(0), f(1), ..., f(N - 1) with compile-time indices, so that arrays of vectors indexed by them stay in registers.
template <int N, class F>
SPEQ_INLINE void unroll(F&& f) {
    [&]<int... I>(std::integer_sequence<int, I...>)
        SPEQ_LAMBDA { (f(Index<I>{}), ...); }(std::make_integer_sequence<int, N>{});
}

#if SPEQ_AVX2

struct Vec8 {
    __m256 v;
};
SPEQ_INLINE Vec8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
SPEQ_INLINE void store(float* p, Vec8 a) { _mm256_storeu_ps(p, a.v); }
SPEQ_INLINE Vec8 broadcast(float x) { return {_mm256_set1_ps(x)}; }
SPEQ_INLINE Vec8 zero() { return {_mm256_setzero_ps()}; }
SPEQ_INLINE Vec8 add(Vec8 a, Vec8 b) { return {_mm256_add_ps(a.v, b.v)}; }
SPEQ_INLINE Vec8 mul(Vec8 a, Vec8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
SPEQ_INLINE Vec8 div(Vec8 a, Vec8 b) { return {_mm256_div_ps(a.v, b.v)}; }
SPEQ_INLINE Vec8 max(Vec8 a, Vec8 b) { return {_mm256_max_ps(a.v, b.v)}; }
SPEQ_INLINE Vec8 min(Vec8 a, Vec8 b) { return {_mm256_min_ps(a.v, b.v)}; }
SPEQ_INLINE Vec8 fma(Vec8 a, Vec8 b, Vec8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
SPEQ_INLINE Vec8 fma_short(Vec8 a, Vec8 b, Vec8 c) { return fma(a, b, c); }
SPEQ_INLINE Vec8 load_fp16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
SPEQ_INLINE void store_fp16(uint16_t* p, Vec8 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
// ((0+4)+(2+6)) + ((1+5)+(3+7))
SPEQ_INLINE float sum(Vec8 a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
SPEQ_INLINE float largest(Vec8 a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
// v[i][j] becomes v[j][i]
SPEQ_INLINE void transpose(Vec8 (&v)[8]) {
    __m256 a[8], b[8];
    unroll<4>([&](auto i) SPEQ_LAMBDA {
        a[2 * i] = _mm256_unpacklo_ps(v[2 * i].v, v[2 * i + 1].v);
        a[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i].v, v[2 * i + 1].v);
    });
    unroll<2>([&](auto i) SPEQ_LAMBDA {
        b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
        b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
        b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
        b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
    });
    unroll<4>([&](auto i) SPEQ_LAMBDA {
        v[i] = {_mm256_permute2f128_ps(b[i], b[i + 4], 0x20)};
        v[i + 4] = {_mm256_permute2f128_ps(b[i], b[i + 4], 0x31)};
    });
}
// y[4 j + i] += rows[i][j] for j < count
SPEQ_INLINE void add_transposed(const Vec8 (&rows)[4], int count, float* y) {
    const __m256 a = _mm256_unpacklo_ps(rows[0].v, rows[1].v), b = _mm256_unpackhi_ps(rows[0].v, rows[1].v);
    const __m256 c = _mm256_unpacklo_ps(rows[2].v, rows[3].v), d = _mm256_unpackhi_ps(rows[2].v, rows[3].v);
    const __m256 t[4] = {_mm256_shuffle_ps(a, c, 0x44), _mm256_shuffle_ps(a, c, 0xee),  // columns j and j + 4
                         _mm256_shuffle_ps(b, d, 0x44), _mm256_shuffle_ps(b, d, 0xee)};
    const auto add_to = [](float* p, __m128 v) SPEQ_LAMBDA { _mm_storeu_ps(p, _mm_add_ps(_mm_loadu_ps(p), v)); };
    unroll<4>([&](auto j) SPEQ_LAMBDA {
        if (j < count) add_to(y + 4 * j, _mm256_castps256_ps128(t[j]));
        if (j + 4 < count) add_to(y + 4 * j + 16, _mm256_extractf128_ps(t[j], 1));
    });
}
SPEQ_INLINE Vec8 round_to_integer(Vec8 a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integral n in [-126, 127]
SPEQ_INLINE Vec8 power_of_two(Vec8 n) {
    const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
    return {_mm256_castsi256_ps(bits)};
}

#else

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
// The same for a and b of eight significant bits, as BF16 has them. Their product has 16; where a sum with it is not
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

#endif

// e^x to about 1 ulp, by Cody-Waite reduction and a degree-6 polynomial; arguments are clamped to [-87, 87], NaN stays
// NaN (min and max give their second operand when one is NaN, hence the two orders).
SPEQ_INLINE Vec8 exp(Vec8 x) {
    x = min(broadcast(87.0f), max(broadcast(-87.0f), x));
    const Vec8 n = round_to_integer(mul(max(x, broadcast(-87.0f)), broadcast(1.44269504f)));
    Vec8 r = fma(n, broadcast(-0.693145752f), x);
    r = fma(n, broadcast(-1.42860677e-6f), r);
    Vec8 p = broadcast(1.0f / 720);
    p = fma(p, r, broadcast(1.0f / 120));
    p = fma(p, r, broadcast(1.0f / 24));
    p = fma(p, r, broadcast(1.0f / 6));
    p = fma(p, r, broadcast(0.5f));
    p = fma(p, r, broadcast(1.0f));
    p = fma(p, r, broadcast(1.0f));
    return mul(p, power_of_two(n));
}

// Eight lanes each for as many rows as fit a register: what the matrix products accumulate in. A row's lanes stay its
// own, so wider registers do not change the order of its sum.
#if SPEQ_AVX512

constexpr int kWideRows = 2;
struct Wide {
    __m512 v;
};
SPEQ_INLINE Wide wide_splat(float x) { return {_mm512_set1_ps(x)}; }
SPEQ_INLINE Wide wide_mul(Wide a, Wide b) { return {_mm512_mul_ps(a.v, b.v)}; }
SPEQ_INLINE Wide wide_load_fp16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
SPEQ_INLINE Wide wide_zero() { return {_mm512_setzero_ps()}; }
SPEQ_INLINE Wide wide_load(const float* p) { return {_mm512_loadu_ps(p)}; }
SPEQ_INLINE void wide_store(float* p, Wide a) { _mm512_storeu_ps(p, a.v); }
SPEQ_INLINE Wide wide_broadcast(const float* p) { return {_mm512_broadcast_f32x8(_mm256_loadu_ps(p))}; }
SPEQ_INLINE void wide_row(Wide a, int row, float* p) {
    _mm256_storeu_ps(p, row ? _mm512_extractf32x8_ps(a.v, 1) : _mm512_castps512_ps256(a.v));
}
SPEQ_INLINE Wide wide_fma(Wide a, Wide b, Wide c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
SPEQ_INLINE Wide wide_fma_short(Wide a, Wide b, Wide c) { return wide_fma(a, b, c); }
// The halves of one the other way round; the first halves of two; their second halves.
SPEQ_INLINE Wide wide_swap(Wide a) { return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)}; }
SPEQ_INLINE Wide wide_first(Wide a, Wide b) { return {_mm512_shuffle_f32x4(a.v, b.v, 0x44)}; }
SPEQ_INLINE Wide wide_second(Wide a, Wide b) { return {_mm512_shuffle_f32x4(a.v, b.v, 0xee)}; }

#else

constexpr int kWideRows = 1;
using Wide = Vec8;
SPEQ_INLINE Wide wide_splat(float x) { return broadcast(x); }
SPEQ_INLINE Wide wide_mul(Wide a, Wide b) { return mul(a, b); }
SPEQ_INLINE Wide wide_load_fp16(const uint16_t* p) { return load_fp16(p); }
SPEQ_INLINE Wide wide_zero() { return zero(); }
SPEQ_INLINE Wide wide_load(const float* p) { return load(p); }
SPEQ_INLINE void wide_store(float* p, Wide a) { store(p, a); }
SPEQ_INLINE Wide wide_broadcast(const float* p) { return load(p); }
SPEQ_INLINE void wide_row(Wide a, int, float* p) { store(p, a); }
SPEQ_INLINE Wide wide_fma(Wide a, Wide b, Wide c) { return fma(a, b, c); }
SPEQ_INLINE Wide wide_fma_short(Wide a, Wide b, Wide c) { return fma_short(a, b, c); }
SPEQ_INLINE Wide wide_swap(Wide a) { return a; }
SPEQ_INLINE Wide wide_first(Wide a, Wide) { return a; }
SPEQ_INLINE Wide wide_second(Wide, Wide b) { return b; }

#endif

constexpr int kWideLanes = 8 * kWideRows;
constexpr int kPairColumns = 16;  // columns of a row that the exact products multiply at a time

}  // namespace speq::SPEQ_ISA
