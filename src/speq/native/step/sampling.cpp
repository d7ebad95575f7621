// Choosing a token from logits. speq/runtime/sampling_reference.py defines what is right; this file finds the same
// token faster.
//
// Sampling is an exponential race: every token i draws E_i ~ Exp(1) from a counter-based generator and the smallest
// E_i / p_i wins, which happens with probability p_i (the Gumbel-max trick without a logarithm per token). E_i = -log(1
// - v_i) is at least v_i, so a token with v_i > p_i * (second best ratio so far) is out of the race before its
// logarithm is taken. Everything that decides a token is made of single IEEE operations in a fixed order, hence equal
// on every machine.
#include "step/sampling.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <queue>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/checks.h"
#include "step/sampling_noise.h"

using namespace speq;

namespace {

constexpr int64_t kNotFinite = -1;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Filters {
    int64_t top_k;
    double top_p;
    float min_p;
};

// Index of the first largest logit, or kNotFinite. Eight independent lanes let the compiler use vector registers.
int64_t argmax(const float* logits, size_t n) {
    constexpr size_t kLanes = 8;
    std::array<float, kLanes> best;
    std::array<uint32_t, kLanes> abnormal{};
    best.fill(-std::numeric_limits<float>::infinity());
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (size_t lane = 0; lane < kLanes; ++lane) {
            const float x = logits[i + lane];
            best[lane] = x > best[lane] ? x : best[lane];
            abnormal[lane] |= (std::bit_cast<uint32_t>(x) & 0x7f800000u) == 0x7f800000u;
        }
    }
    for (; i < n; ++i) {
        best[0] = logits[i] > best[0] ? logits[i] : best[0];
        abnormal[0] |= !std::isfinite(logits[i]);
    }
    if (std::any_of(abnormal.begin(), abnormal.end(), [](uint32_t a) { return a != 0; })) return kNotFinite;
    const float top = *std::max_element(best.begin(), best.end());
    return std::find(logits, logits + n, top) - logits;
}

// The k-th largest logit: tokens that equal it stay, so that ties do not depend on any order.
float kth_largest(const float* logits, size_t n, size_t k) {
    std::priority_queue<float, std::vector<float>, std::greater<>> heap;
    for (size_t i = 0; i < n; ++i) {
        if (heap.size() < k) {
            heap.push(logits[i]);
        } else if (logits[i] > heap.top()) {
            heap.pop();
            heap.push(logits[i]);
        }
    }
    return heap.top();
}

// The smallest weight in the nucleus: the fewest tokens, largest first, that hold top_p of the total. Sums are taken of
// integers (weights in units of 2^-32), so their order does not matter.
float nucleus_threshold(const std::vector<float>& weights, double top_p) {
    int64_t total = 0;
    for (float w : weights) total += static_cast<int64_t>(w * 0x1p32f);
    const double wanted = top_p * static_cast<double>(total);
    // All weights below this one together weigh less than what the nucleus leaves out.
    const float least =
        static_cast<float>((1.0 - top_p) * static_cast<double>(total) * 0x1p-32 / weights.size() * 0.999);
    std::vector<float> candidates;
    for (float w : weights) {
        if (w > 0.0f && w >= least) candidates.push_back(w);
    }
    std::sort(candidates.begin(), candidates.end(), std::greater<>());
    int64_t sum = 0;
    for (float w : candidates) {
        sum += static_cast<int64_t>(w * 0x1p32f);
        if (static_cast<double>(sum) >= wanted) return w;
    }
    return candidates.back();
}

// Two smallest ratios so far and the token that holds the smallest.
struct Race {
    int64_t winner = -1;
    double best = kInfinity, second = kInfinity;

    void enter(size_t token, uint32_t word, float weight) {
        const double ratio = exponential(uniform(word)) / static_cast<double>(weight);
        if (ratio < best) {
            second = best;
            best = ratio;
            winner = static_cast<int64_t>(token);
        } else if (ratio < second) {
            second = ratio;
        }
    }
};

Race run_race(const std::vector<float>& weights, uint64_t seed, uint64_t position) {
    Race race;
    for (size_t first = 0; first < weights.size(); first += 4) {
        const size_t last = std::min(first + 4, weights.size());
        const float heaviest = *std::max_element(&weights[first], &weights[0] + last);
        const double bound = race.second * 1.000001;  // room for the rounding of the products below
        if (heaviest == 0.0f || heaviest * bound < 0x1p-33) continue;
        const Words words = philox(seed, position, static_cast<uint32_t>(first / 4));
        for (size_t i = first; i < last; ++i) {
            if (weights[i] > 0.0f && uniform(words[i - first]) <= weights[i] * bound) {
                race.enter(i, words[i - first], weights[i]);
            }
        }
    }
    return race;
}

std::vector<float>& workspace(size_t n) {
    thread_local std::vector<float> buffer;
    buffer.resize(n);
    return buffer;
}

// out[i] = exp((logits[i] - highest) * scale), a plain loop that the compiler turns into vector code.
void exponentials(const float* __restrict logits, size_t n, float highest, float scale, float* __restrict out) {
    for (size_t i = 0; i < n; ++i) out[i] = exp_nonpositive((logits[i] - highest) * scale);
}

// Of the `count` largest values above `least` in descending order, equal ones in the order of their ids, the ids; the
// values go where probabilities will stand. A block whose largest value is no better than what was found is passed
// over.
void rank(const float* values, size_t n, float least, int count, Drawn& drawn) {
    constexpr size_t kRanked = 64, kLanes = 8;
    float bar = least;
    for (size_t first = 0; first < n; first += kRanked) {
        const size_t last = std::min(first + kRanked, n);
        std::array<float, kLanes> best;
        best.fill(-kInfinity);
        size_t i = first;
        for (; i + kLanes <= last; i += kLanes)
            for (size_t lane = 0; lane < kLanes; ++lane)
                best[lane] = values[i + lane] > best[lane] ? values[i + lane] : best[lane];
        for (; i < last; ++i) best[0] = std::max(best[0], values[i]);
        if (*std::max_element(best.begin(), best.end()) <= bar) continue;
        for (i = first; i < last; ++i) {
            if (values[i] <= bar) continue;
            int at = drawn.likely_count < count ? drawn.likely_count++ : count - 1;
            for (; at > 0 && drawn.likely[at - 1].probability < values[i]; --at)
                drawn.likely[at] = drawn.likely[at - 1];
            drawn.likely[at] = {static_cast<int32_t>(i), values[i]};
            if (drawn.likely_count == count) bar = drawn.likely[count - 1].probability;
        }
    }
}

// In eight lanes, so that the order is the same whatever registers the compiler uses.
float sum_of(const std::vector<float>& weights) {
    std::array<float, 8> sums{};
    size_t i = 0;
    for (; i + sums.size() <= weights.size(); i += sums.size())
        for (size_t lane = 0; lane < sums.size(); ++lane) sums[lane] += weights[i + lane];
    for (; i < weights.size(); ++i) sums[0] += weights[i];
    return std::accumulate(sums.begin(), sums.end(), 0.0f);
}

Drawn greedy(const float* logits, size_t n, int likely, bool with_confidence) {
    Drawn drawn{static_cast<int32_t>(argmax(logits, n))};
    const int32_t token = drawn.token;
    if (token < 0 || !(with_confidence || likely > 0)) return drawn;
    constexpr size_t kChunk = 512;
    std::array<float, kChunk> terms;
    std::array<float, 8> sums{};
    for (size_t first = 0; first < n; first += kChunk) {
        const size_t count = std::min(kChunk, n - first);
        exponentials(logits + first, count, logits[token], 1.0f, terms.data());
        std::fill(terms.begin() + count, terms.end(), 0.0f);
        for (size_t i = 0; i < kChunk; i += sums.size()) {
            for (size_t lane = 0; lane < sums.size(); ++lane) sums[lane] += terms[i + lane];
        }
    }
    drawn.confidence = 1.0f / std::accumulate(sums.begin(), sums.end(), 0.0f);
    if (likely > 0) rank(logits, n, -std::numeric_limits<float>::infinity(), likely, drawn);
    for (int i = 0; i < drawn.likely_count; ++i) {
        float& value = drawn.likely[i].probability;
        value = exp_nonpositive(value - logits[token]) * drawn.confidence;
    }
    return drawn;
}

Drawn sample(const float* logits, size_t n, float inverse_temperature, const Filters& filters, const Draw& how) {
    const int64_t top = argmax(logits, n);
    Drawn drawn;
    if (top < 0) return drawn;
    std::vector<float>& weights = workspace(n);
    exponentials(logits, n, logits[top], inverse_temperature, weights.data());
    if (filters.top_k > 0 && static_cast<size_t>(filters.top_k) < n) {
        const float least = kth_largest(logits, n, static_cast<size_t>(filters.top_k));
        for (size_t i = 0; i < n; ++i) weights[i] = logits[i] < least ? 0.0f : weights[i];
    }
    float least = filters.min_p;
    if (filters.top_p < 1.0) least = std::max(least, nucleus_threshold(weights, filters.top_p));
    if (least > 0.0f) {
        for (float& w : weights) w = w < least ? 0.0f : w;
    }
    const Race race = run_race(weights, how.seed, how.position);
    drawn.token = static_cast<int32_t>(race.winner);
    if (race.second != kInfinity) drawn.confidence = static_cast<float>(1.0 / (1.0 + race.best / race.second));
    if (how.likely > 0) rank(weights.data(), n, 0.0f, how.likely, drawn);
    const float sum = how.likely > 0 ? sum_of(weights) : 1.0f;
    for (int i = 0; i < drawn.likely_count; ++i) drawn.likely[i].probability /= sum;
    return drawn;
}

}  // namespace

namespace speq {

Draw checked(const Draw& how) {
    require(how.temperature == 0 || (how.temperature > 0 && std::isfinite(1.0 / how.temperature)),
            "temperature must be positive, or 0 for the largest logit");
    require(how.top_k >= 0 && how.top_p > 0 && how.top_p <= 1 && how.min_p >= 0 && how.min_p <= 1,
            "a filter is out of range");
    require(how.likely >= 0 && how.likely <= kMostLikely,
            "at most " + std::to_string(kMostLikely) + " likely tokens can be told");
    return how;
}

Drawn draw(const float* logits, size_t n, const Draw& how, bool with_confidence) {
    return how.temperature == 0 ? greedy(logits, n, how.likely, with_confidence)
                                : sample(logits, n, static_cast<float>(1.0 / how.temperature),
                                         {how.top_k, how.top_p, static_cast<float>(how.min_p)}, how);
}

Told told(const Drawn& drawn) {
    std::vector<std::pair<int32_t, float>> likely;
    for (const auto& [token, probability] : drawn.most_likely()) likely.emplace_back(token, probability);
    return {drawn.token, drawn.confidence, std::move(likely)};
}

}  // namespace speq
