// Draws of tokens from logits; speq/runtime/sampling_reference.py defines what is right.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

namespace speq {

constexpr int kMostLikely = 8;

// How a token is drawn. `position` is where it will stand in its sequence.
struct Draw {
    double temperature = 0;  // 0: the first largest logit
    int64_t top_k = 0;
    double top_p = 1, min_p = 0;
    uint64_t seed = 0, position = 0;
    int likely = 0;  // how many of the most probable tokens to tell, up to kMostLikely
};

// Throws std::invalid_argument for options that are out of range.
Draw checked(const Draw& how);

struct Likely {
    int32_t token;
    float probability;  // after temperature and filters
};

struct Drawn {
    int32_t token = -1;    // -1 if a logit is not finite
    float confidence = 1;  // of a greedy draw the softmax probability, else the share against the runner-up
    int likely_count = 0;
    std::array<Likely, kMostLikely> likely{};  // the most probable tokens, of equal ones the lower id first

    std::span<const Likely> most_likely() const { return {likely.data(), static_cast<size_t>(likely_count)}; }
};

// Draws from n logits, n at least 1. Greedy draws have confidence 1 unless it or likely tokens are asked for, which
// takes another turn.
Drawn draw(const float* logits, size_t n, const Draw& how, bool with_confidence);

// What Python hears of a draw: token, confidence, and the most probable tokens with their probabilities.
using Told = std::tuple<int32_t, float, std::vector<std::pair<int32_t, float>>>;
Told told(const Drawn& drawn);

}  // namespace speq
