// The operators around the matrix products, one token at a time, so that the result for a
// token cannot depend on how many others are in the pass.
#pragma once
#include <cmath>
#include <cstring>

#include "core/half.h"
#include "core/simd.h"

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

}  // namespace speq::SPEQ_ISA
