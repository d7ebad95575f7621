// How a team shares attention: a task rotates the queries of a kv head, adds the pass's keys and values to the cache
// and attends. Many tokens: each task takes some of them through all chunks of a kv head, and keys and values are added
// before. Few tokens: each task takes all of them through one chunk, and another operator folds the states that several
// chunks left behind.
#include <algorithm>

#include "step_operators.h"

namespace speq {
namespace {

struct Shape : AttentionShape {
    int group() const { return heads / kv_heads; }
    int state() const { return attention_state(head_dim); }
    int first(int position) const { return window > 0 ? std::max(0, position - window + 1) : 0; }
    // The chunks that a position attends to.
    int first_chunk(int position) const { return first(position) / kAttentionChunk; }
    static int last_chunk(int position) { return position / kAttentionChunk; }
    int chunks(const Pass& pass) const { return last_chunk(pass.start + pass.count - 1) - first_chunk(pass.start) + 1; }
    static bool is_few(const Pass& pass) { return pass.count <= kAttentionTokens; }
    bool by_chunk(const Pass& pass) const { return is_few(pass) && chunks(pass) > 1; }
    // States of one chunk for all tokens of a pass; chunks are counted from the pass's first.
    float* states(Step& step, const Pass& pass, int chunk) const {
        return step.attention_states() + static_cast<size_t>(chunk) * pass.count * heads * state();
    }
};

// Normalises and rotates a head of a token of the pass.
void turn(Step& step, const Norm& norm, const float* head, int token, int head_dim, float* out) {
    if (norm.weight)
        step.kernels().rms_norm(head, norm.weight, head_dim, head_dim, norm.eps, out);
    else
        std::copy_n(head, head_dim, out);
    step.kernels().rotate(out, step.cosines(token), step.sines(token), head_dim / 2);
}

// Writes keys and values of a kv head for tokens first..last - 1 to the cache.
void append(Step& step, const Pass& pass, const Shape& s, int member, int kv_head, int first, int last) {
    float* turned = step.scratch(member).queries.get();
    for (int t = first; t < last; ++t) {
        const float* key = step.buffer(s.qkv).row(t) + static_cast<size_t>(s.heads + kv_head) * s.head_dim;
        const size_t at = step.cache().offset(s.layer, kv_head, pass.start + t);
        turn(step, s.k_norm, key, t, s.head_dim, turned);
        step.kernels().to_cache(turned, s.head_dim, step.cache().keys + at);
        step.kernels().to_cache(key + s.kv_heads * s.head_dim, s.head_dim, step.cache().values + at);
    }
}

// Keys and values of many tokens, which attend to those of each other.
class Append final : public Operator {
  public:
    explicit Append(const Shape& shape) : s_(shape) {}

    int tasks(Step&, const Pass& pass) const override { return s_.is_few(pass) ? 0 : pass.count; }

    void run(Step& step, const Pass& pass, Tasks& tasks, int member) override {
        tasks.each([&](int t) {
            for (int h = 0; h < s_.kv_heads; ++h) append(step, pass, s_, member, h, t, t + 1);
        });
    }

  private:
    Shape s_;
};

class Attention final : public Operator {
  public:
    explicit Attention(const Shape& shape) : s_(shape) {}

    int tasks(Step&, const Pass& pass) const override {
        return s_.kv_heads * (s_.is_few(pass) ? s_.chunks(pass) : token_blocks(pass));
    }

    void run(Step& step, const Pass& pass, Tasks& tasks, int member) override {
        tasks.each([&](int task) {
            const int kv_head = task % s_.kv_heads, part = task / s_.kv_heads;
            if (!s_.is_few(pass)) return attend_to_all(step, pass, member, kv_head, part * kAttentionTokens);
            const int chunk = s_.first_chunk(pass.start) + part, begin = chunk * kAttentionChunk - pass.start;
            append(step, pass, s_, member, kv_head, std::max(begin, 0), std::min(begin + kAttentionChunk, pass.count));
            if (!s_.by_chunk(pass)) return attend_to_all(step, pass, member, kv_head, 0);
            turn_queries(step, member, kv_head, 0, pass.count);
            attend(step, pass, member, kv_head, 0, pass.count, chunk,
                   s_.states(step, pass, part) + static_cast<size_t>(kv_head) * s_.group() * s_.state(),
                   s_.heads * s_.state());
        });
    }

  private:
    static int token_blocks(const Pass& pass) { return (pass.count + kAttentionTokens - 1) / kAttentionTokens; }

    void attend_to_all(Step& step, const Pass& pass, int member, int kv_head, int token) {
        const int tokens = std::min(kAttentionTokens, pass.count - token), rows = tokens * s_.group();
        float* states = step.scratch(member).attention.get() + attention_scratch(rows, s_.head_dim);
        float* next = states + static_cast<size_t>(rows) * s_.state();
        const int begin = pass.start + token;
        turn_queries(step, member, kv_head, token, tokens);
        for (int chunk = s_.first_chunk(begin); chunk <= s_.last_chunk(begin + tokens - 1); ++chunk) {
            attend(step, pass, member, kv_head, token, tokens, chunk, next, s_.group() * s_.state());
            for (int row = 0; row < rows; ++row) {
                const int position = begin + row / s_.group();
                float *state = states + row * s_.state(), *from = next + row * s_.state();
                if (chunk == s_.first_chunk(position))
                    std::copy_n(from, s_.state(), state);
                else if (chunk > s_.first_chunk(position) && chunk <= s_.last_chunk(position))
                    step.kernels().fold_attention(state, from, s_.head_dim);
            }
        }
        for (int row = 0; row < rows; ++row)
            step.kernels().finish_attention(states + row * s_.state(), s_.head_dim,
                                            step.buffer(s_.out).row(token + row / s_.group()) +
                                                (kv_head * s_.group() + row % s_.group()) * s_.head_dim);
    }

    // The queries of tokens token..token + tokens - 1, to the member's scratch.
    void turn_queries(Step& step, int member, int kv_head, int token, int tokens) {
        float* out = step.scratch(member).queries.get();
        for (int t = token; t < token + tokens; ++t) {
            const float* query = step.buffer(s_.qkv).row(t) + static_cast<size_t>(kv_head) * s_.group() * s_.head_dim;
            for (int h = 0; h < s_.group(); ++h, query += s_.head_dim, out += s_.head_dim)
                turn(step, s_.q_norm, query, t, s_.head_dim, out);
        }
    }

    // The states of those tokens for one chunk.
    void attend(Step& step, const Pass& pass, int member, int kv_head, int token, int tokens, int chunk, float* states,
                size_t state_stride) {
        const Cache& cache = step.cache();
        const int begin = chunk * kAttentionChunk, position = pass.start + token;
        const size_t at = cache.offset(s_.layer, kv_head, begin);
        step.kernels().attend({.queries = step.scratch(member).queries.get(),
                               .query_stride = static_cast<size_t>(s_.group()) * s_.head_dim,
                               .tokens = tokens,
                               .heads = s_.group(),
                               .head_dim = s_.head_dim,
                               .keys = cache.keys + at,
                               .values = cache.values + at,
                               .count = std::min(kAttentionChunk, position + tokens - begin),
                               .position = position - begin,
                               .window = s_.window,
                               .scale = s_.scale,
                               .scratch = step.scratch(member).attention.get(),
                               .states = states,
                               .state_stride = state_stride});
    }

    Shape s_;
};

// Folds what the chunks left for few tokens, one head of one token a task.
class FoldAttention final : public Operator {
  public:
    explicit FoldAttention(const Shape& shape) : s_(shape) {}

    int tasks(Step&, const Pass& pass) const override { return s_.by_chunk(pass) ? pass.count * s_.heads : 0; }

    void run(Step& step, const Pass& pass, Tasks& tasks, int) override {
        tasks.each([&](int task) {
            const int token = task / s_.heads, position = pass.start + token, base = s_.first_chunk(pass.start);
            const size_t at = static_cast<size_t>(task) * s_.state();
            int chunk = s_.first_chunk(position);
            float* state = s_.states(step, pass, chunk - base) + at;
            while (++chunk <= s_.last_chunk(position))
                step.kernels().fold_attention(state, s_.states(step, pass, chunk - base) + at, s_.head_dim);
            step.kernels().finish_attention(state, s_.head_dim,
                                            step.buffer(s_.out).row(token) + task % s_.heads * s_.head_dim);
        });
    }

  private:
    Shape s_;
};

}  // namespace

void add_attention(Step& step, const AttentionShape& shape) {
    const Shape s{shape};
    const Cache& cache = step.cache();
    require(s.layer >= 0 && s.layer < cache.layers, "the KV cache has no layer " + std::to_string(s.layer));
    require(s.kv_heads == cache.kv_heads && s.head_dim == cache.head_dim, "heads differ from those of the KV cache");
    require(s.heads >= 1 && s.heads <= kMostWidth && s.heads % s.kv_heads == 0,
            std::to_string(s.heads) + " heads cannot share " + std::to_string(s.kv_heads) + " key-value heads evenly");
    require(s.window >= 0, "an attention window cannot be negative");
    require_width(step, s.qkv, (s.heads + 2 * int64_t{s.kv_heads}) * s.head_dim);
    require_width(step, s.out, int64_t{s.heads} * s.head_dim);
    require_norm(s.q_norm, s.head_dim);
    require_norm(s.k_norm, s.head_dim);
    step.reserve_attention(s.heads, s.group(), s.head_dim);
    step.add_operator(std::make_unique<Append>(s));
    step.add_operator(std::make_unique<Attention>(s));
    step.add_operator(std::make_unique<FoldAttention>(s));
}

}  // namespace speq
