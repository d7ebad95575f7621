// Eight float32 lanes with one meaning on every machine: AVX2 where the file is compiled for it, plain loops elsewhere.
// All multiply-adds are fused and all sums have one order, so every path gives the same bits.
#pragma once
#include "core/instruction_set.h"

#if SPEQ_AVX2
#include "core/vec8_avx2.h"
#else
#include "core/vec8_portable.h"
#endif

namespace speq::SPEQ_ISA {

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
