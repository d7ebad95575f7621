// Draws of tokens from logits; speq/runtime/sampling_reference.py defines what is right.
#pragma once
#include <cstddef>
#include <cstdint>

namespace speq {

// How a token is drawn. `position` is where it will stand in its sequence.
struct Draw {
    double temperature = 0;  // 0: the first largest logit
    int64_t top_k = 0;
    double top_p = 1, min_p = 0;
    uint64_t seed = 0, position = 0;
};

// Throws std::invalid_argument for options that are out of range.
Draw checked(const Draw& how);

struct Drawn {
    int32_t token;     // -1 if a logit is not finite
    float confidence;  // of a greedy draw the softmax probability, else the share against the runner-up
};

// Draws from n logits, n at least 1. Greedy draws have confidence 1 unless it is asked for, which takes another turn.
Drawn draw(const float* logits, size_t n, const Draw& how, bool with_confidence);

}  // namespace speq
