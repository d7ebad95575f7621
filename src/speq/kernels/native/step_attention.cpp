// How a team shares attention. Many tokens: each task takes some of them through all chunks of a kv head. Few tokens:
// each task takes all of them through one chunk, and a second operator folds the states that the chunks left behind.
#include <algorithm>

#include "step_operators.h"

namespace speq {
namespace {

struct Shape {
    int qkv, out, layer, heads, kv_heads, head_dim;
    float scale;
    int window;

    int group() const { return heads / kv_heads; }
    int state() const { return attention_state(head_dim); }
    int first(int position) const { return window > 0 ? std::max(0, position - window + 1) : 0; }
    // The chunks that a position attends to.
    int first_chunk(int position) const { return first(position) / kAttentionChunk; }
    static int last_chunk(int position) { return position / kAttentionChunk; }
    int chunks(const Pass& pass) const { return last_chunk(pass.start + pass.count - 1) - first_chunk(pass.start) + 1; }
    bool by_chunk(const Pass& pass) const { return pass.count <= kAttentionTokens && chunks(pass) > 1; }
    // States of one chunk for all tokens of a pass; chunks are counted from the pass's first.
    float* states(Step& step, const Pass& pass, int chunk) const {
        return step.attention_states() + static_cast<size_t>(chunk) * pass.count * heads * state();
    }
};

class Attention final : public Operator {
  public:
    explicit Attention(const Shape& shape) : s_(shape) {}

    int tasks(Step&, const Pass& pass) const override {
        return s_.kv_heads * (s_.by_chunk(pass) ? s_.chunks(pass) : token_blocks(pass));
    }

    void run(Step& step, const Pass& pass, Tasks& tasks, int member) override {
        tasks.each([&](int task) {
            const int kv_head = task % s_.kv_heads, part = task / s_.kv_heads;
            if (s_.by_chunk(pass))
                attend(step, pass, member, kv_head, 0, pass.count, s_.first_chunk(pass.start) + part,
                       s_.states(step, pass, part) + static_cast<size_t>(kv_head) * s_.group() * s_.state(),
                       s_.heads * s_.state());
            else
                attend_to_all(step, pass, member, kv_head, part * kAttentionTokens);
        });
    }

  private:
    static int token_blocks(const Pass& pass) { return (pass.count + kAttentionTokens - 1) / kAttentionTokens; }

    void attend_to_all(Step& step, const Pass& pass, int member, int kv_head, int token) {
        const int tokens = std::min(kAttentionTokens, pass.count - token), rows = tokens * s_.group();
        float* states = step.scratch(member).attention.get() + attention_scratch(rows, s_.head_dim);
        float* next = states + static_cast<size_t>(rows) * s_.state();
        const int begin = pass.start + token;
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

    // The states of tokens token..token + tokens - 1 for one chunk.
    void attend(Step& step, const Pass& pass, int member, int kv_head, int token, int tokens, int chunk, float* states,
                size_t state_stride) {
        const Cache& cache = step.cache();
        Buffer& qkv = step.buffer(s_.qkv);
        const int begin = chunk * kAttentionChunk, position = pass.start + token;
        const size_t at = cache.offset(s_.layer, kv_head, begin);
        step.kernels().attend({.queries = qkv.row(token) + static_cast<size_t>(kv_head) * s_.group() * s_.head_dim,
                               .query_stride = static_cast<size_t>(qkv.stride),
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

void add_attention(Step& step, int qkv, int out, int layer, int heads, int kv_heads, int head_dim, float scale,
                   int window) {
    const Shape shape{qkv, out, layer, heads, kv_heads, head_dim, scale, window};
    step.reserve_attention(heads, shape.group(), head_dim);
    step.add_operator(std::make_unique<Attention>(shape));
    step.add_operator(std::make_unique<FoldAttention>(shape));
}

}  // namespace speq
