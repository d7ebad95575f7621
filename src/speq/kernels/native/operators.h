// The operators around the matrix products, one token (or one head of one token) at a time, so that the result for a
// token cannot depend on how many others are in the pass.
#pragma once
#include "simd.h"

namespace speq::SPEQ_ISA {

// out = x / sqrt(mean(x^2) + eps) * weight over `width` values; out[width, padded) is set to zero.
inline void rms_norm(const float* x, const float* weight, int width, int padded, float eps, float* out) {
    Vec8 squares = zero();
    int k = 0;
    for (; k + 8 <= width; k += 8) squares = fma(load(x + k), load(x + k), squares);
    float total = sum(squares);
    for (; k < width; ++k) total = std::fma(x[k], x[k], total);
    const float factor = 1.0f / std::sqrt(total / static_cast<float>(width) + eps);
    for (k = 0; k + 8 <= width; k += 8) store(out + k, mul(mul(load(x + k), broadcast(factor)), load(weight + k)));
    for (; k < width; ++k) out[k] = x[k] * factor * weight[k];
    for (; k < padded; ++k) out[k] = 0.0f;
}

// Rotates the halves of one head: (a, b) -> (a cos - b sin, b cos + a sin); `half` = head_dim / 2 values of cos and
// sin.
inline void rotate(float* head, const float* cosine, const float* sine, int half) {
    int i = 0;
    for (; i + 8 <= half; i += 8) {
        const Vec8 a = load(head + i), b = load(head + half + i), c = load(cosine + i), s = load(sine + i);
        store(head + i, fma(a, c, mul(mul(b, s), broadcast(-1.0f))));
        store(head + half + i, fma(b, c, mul(a, s)));
    }
    for (; i < half; ++i) {
        const float a = head[i], b = head[half + i], c = cosine[i], s = sine[i];
        head[i] = std::fma(a, c, -(b * s));
        head[half + i] = std::fma(b, c, a * s);
    }
}

// rows[r][i] += errors[r] * factors[i] for four rows, rounded twice as NumPy does it.
inline void add_outer(const float* errors, const float* factors, int n, float* rows, size_t stride) {
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int r = 0; r < 4; ++r) {
            float* at = rows + r * stride + i;
            store(at, add(load(at), mul(broadcast(errors[r]), load(factors + i))));
        }
    for (; i < n; ++i)
        for (int r = 0; r < 4; ++r) rows[r * stride + i] += errors[r] * factors[i];
}

// float32 to the FP16 of the KV cache, round to nearest even.
inline void to_cache(const float* x, int width, uint16_t* out) {
    int i = 0;
    for (; i + 8 <= width; i += 8) store_fp16(out + i, load(x + i));
    for (; i < width; ++i) out[i] = float_to_fp16(x[i]);
}

// out = silu(gate) * up, in place over gate; silu(g) = g / (1 + e^-g).
inline void swiglu(float* gate, const float* up, int width) {
    const auto eight = [](Vec8 g, Vec8 u)
                           SPEQ_LAMBDA { return mul(div(g, add(broadcast(1.0f), exp(mul(g, broadcast(-1.0f))))), u); };
    int i = 0;
    for (; i + 8 <= width; i += 8) store(gate + i, eight(load(gate + i), load(up + i)));
    if (i == width) return;
    float g[8] = {}, u[8] = {};
    std::memcpy(g, gate + i, sizeof(float) * (width - i));
    std::memcpy(u, up + i, sizeof(float) * (width - i));
    store(g, eight(load(g), load(u)));
    std::memcpy(gate + i, g, sizeof(float) * (width - i));
}

// out = inverse * sum over positions of weights[i] * values[i], for N vectors of eight columns that stay in registers.
template <int N>
SPEQ_INLINE void weigh_columns(const float* weights, const uint16_t* value, int count, int stride, float inverse,
                               float* out) {
    Vec8 acc[N];
    unroll<N>([&](auto v) SPEQ_LAMBDA { acc[v] = zero(); });
    for (int i = 0; i < count; ++i, value += stride) {
        const Vec8 weight = broadcast(weights[i]);
        unroll<N>([&](auto v) SPEQ_LAMBDA { acc[v] = fma(weight, load_fp16(value + 8 * v), acc[v]); });
    }
    unroll<N>([&](auto v) SPEQ_LAMBDA { store(out + 8 * v, mul(acc[v], broadcast(inverse))); });
}

// Softmax attention of one query head over cache positions first..last (inclusive).
// keys and values: FP16 [positions, head_dim]; `weights`: scratch for last - first + 8 values.
inline void attend(const float* query, const uint16_t* keys, const uint16_t* values, int first, int last, int head_dim,
                   float scale, float* weights, float* out) {
    const int count = last - first + 1;
    float peak = -INFINITY;
    for (int i = 0; i < count; ++i) {
        const uint16_t* key = keys + static_cast<size_t>(first + i) * head_dim;
        Vec8 dot = zero();
        int d = 0;
        for (; d + 8 <= head_dim; d += 8) dot = fma(load(query + d), load_fp16(key + d), dot);
        float total = sum(dot);
        for (; d < head_dim; ++d) total = std::fma(query[d], fp16_to_float(key[d]), total);
        weights[i] = total * scale;
        peak = weights[i] > peak ? weights[i] : peak;
    }
    // Padding weighs e^-87: nothing, for a sum of at least e^0.
    const int padded = (count + 7) & ~7;
    for (int i = count; i < padded; ++i) weights[i] = -INFINITY;
    Vec8 totals = zero();
    for (int i = 0; i < padded; i += 8) {
        const Vec8 e = exp(add(load(weights + i), broadcast(-peak)));
        store(weights + i, e);
        totals = add(totals, e);
    }
    const float inverse = 1.0f / sum(totals);
    const uint16_t* value = values + static_cast<size_t>(first) * head_dim;
    int d = 0;
    for (; d + 64 <= head_dim; d += 64) weigh_columns<8>(weights, value + d, count, head_dim, inverse, out + d);
    for (; d + 8 <= head_dim; d += 8) weigh_columns<1>(weights, value + d, count, head_dim, inverse, out + d);
    for (; d < head_dim; ++d) {
        float total = 0.0f;
        for (int i = 0; i < count; ++i)
            total = std::fma(weights[i], fp16_to_float(value[static_cast<size_t>(i) * head_dim + d]), total);
        out[d] = total * inverse;
    }
}

}  // namespace speq::SPEQ_ISA
