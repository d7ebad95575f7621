// How a team shares attention. Each span of a pass is a piece of work of its own. A task rotates the queries of a kv
// head, stores the span's keys and values and attends. Spans of many rows: each task takes some of them through all
// chunks of a kv head. Spans of few rows: each task takes all of them through one chunk, and another operator combines
// the states that several chunks left behind. Where rows need keys that no task of their own stores (many rows, or a
// tree, whose rows may lie in another chunk than their positions), another operator stores them before.
#include <algorithm>

#include "step/operators.h"

namespace speq {
namespace {

struct Shape : AttentionShape {
    int group() const { return heads / kv_heads; }
    int state() const { return attention_state(head_dim); }
    int first(int position) const { return window > 0 ? std::max(0, position - window + 1) : 0; }
    // The chunks that a position attends to.
    int first_chunk(int position) const { return first(position) / kAttentionChunk; }
    static int last_chunk(int position) { return position / kAttentionChunk; }

    int chunks(const Span& span) const { return last_chunk(span.start + span.deepest) - first_chunk(span.start) + 1; }
    static bool is_few(const Span& span) { return span.count <= kAttentionTokens; }
    static bool stores_before(const Span& span) { return !is_few(span) || !span.is_chain; }
    bool by_chunk(const Span& span) const { return is_few(span) && chunks(span) > 1; }
    static int row_blocks(const Span& span) { return (span.count + kAttentionTokens - 1) / kAttentionTokens; }
    int parts(const Span& span) const { return is_few(span) ? chunks(span) : row_blocks(span); }
};

// Calls f(span, index of the task among those of the span) for a task of all spans, each of which has count(span).
template <class Count, class F>
void with_span(const Pass& pass, int task, Count&& count, F&& f) {
    for (const auto& span : pass.spans) {
        const int tasks = count(span);
        if (task < tasks) return f(span, task);
        task -= tasks;
    }
}

template <class Count>
int total(const Pass& pass, Count&& count) {
    int sum = 0;
    for (const auto& span : pass.spans) sum += count(span);
    return sum;
}

// Normalises and rotates a head of a row of the pass.
void rotate_head(Step& step, const Norm& norm, const float* head, int row, int head_dim, float* out) {
    if (norm.weight)
        step.kernels().rms_norm(head, norm.weight, head_dim, head_dim, norm.eps, out);
    else
        std::copy_n(head, head_dim, out);
    step.kernels().rotate(out, step.cosines(row), step.sines(row), head_dim / 2);
}

// Writes keys and values of a kv head for rows first..last - 1 of a span to the cache.
void store_kv(Step& step, const Span& span, const Shape& s, int worker, int kv_head, int first, int last) {
    float* rotated = step.scratch(worker).queries.get();
    for (int i = first; i < last; ++i) {
        const int row = span.first + i;
        const float* key = step.buffer(s.qkv).row(row) + static_cast<size_t>(s.heads + kv_head) * s.head_dim;
        const size_t at = step.cache().offset(span, s.layer, kv_head, span.start + i);
        rotate_head(step, s.k_norm, key, row, s.head_dim, rotated);
        step.kernels().to_cache(rotated, s.head_dim, step.cache().keys + at);
        step.kernels().to_cache(key + s.kv_heads * s.head_dim, s.head_dim, step.cache().values + at);
    }
}

class StoreKV final : public Operator {
  public:
    explicit StoreKV(const Shape& shape) : s_(shape) {}

    int tasks(Step&, const Pass& pass) const override { return total(pass, rows); }

    void run(Step& step, const Pass& pass, Tasks& tasks, int worker) override {
        tasks.each([&](int task) {
            with_span(pass, task, rows, [&](const Span& span, int row) {
                for (int h = 0; h < s_.kv_heads; ++h) store_kv(step, span, s_, worker, h, row, row + 1);
            });
        });
    }

  private:
    static int rows(const Span& span) { return Shape::stores_before(span) ? span.count : 0; }

    Shape s_;
};

class Attention final : public Operator {
  public:
    explicit Attention(const Shape& shape) : s_(shape) {}

    int tasks(Step&, const Pass& pass) const override {
        return total(pass, [&](const Span& span) { return s_.kv_heads * s_.parts(span); });
    }

    void run(Step& step, const Pass& pass, Tasks& tasks, int worker) override {
        const auto count = [&](const Span& span) { return s_.kv_heads * s_.parts(span); };
        tasks.each([&](int task) {
            float* states = step.attention_states();
            for (const auto& span : pass.spans) {
                if (task < count(span)) return attend(step, span, worker, task, states);
                task -= count(span);
                if (s_.by_chunk(span)) states += states_of(span);
            }
        });
    }

    // Floats of the states that a span leaves behind where its chunks are computed apart: [chunk][row][head][state].
    size_t states_of(const Span& span) const {
        return static_cast<size_t>(s_.chunks(span)) * span.count * s_.heads * s_.state();
    }

  private:
    void attend(Step& step, const Span& span, int worker, int task, float* states) {
        const int kv_head = task % s_.kv_heads, part = task / s_.kv_heads;
        if (!s_.is_few(span)) return attend_to_all(step, span, worker, kv_head, part * kAttentionTokens);
        const int chunk = s_.first_chunk(span.start) + part;
        if (!s_.stores_before(span)) {
            const int begin = chunk * kAttentionChunk - span.start;
            store_kv(step, span, s_, worker, kv_head, std::max(begin, 0),
                     std::min(begin + kAttentionChunk, span.count));
        }
        if (!s_.by_chunk(span)) return attend_to_all(step, span, worker, kv_head, 0);
        rotate_queries(step, span, worker, kv_head, 0, span.count);
        const size_t heads = static_cast<size_t>(part) * span.count * s_.heads + kv_head * s_.group();
        attend_chunk(step, span, worker, kv_head, 0, span.count, chunk, states + heads * s_.state(),
                     s_.heads * s_.state());
    }

    // Up to kAttentionTokens rows of a span from `row` on, through all their chunks.
    void attend_to_all(Step& step, const Span& span, int worker, int kv_head, int row) {
        const int rows = std::min(kAttentionTokens, span.count - row), heads = rows * s_.group();
        float* states = step.scratch(worker).attention.get() + attention_scratch(heads, s_.head_dim);
        float* next = states + static_cast<size_t>(heads) * s_.state();
        rotate_queries(step, span, worker, kv_head, row, rows);
        const auto position = [&](int i) { return span.start + (span.is_chain ? row + i : span.depths[row + i]); };
        int begin = position(0), end = position(0);
        for (int i = 1; i < rows; ++i) {
            begin = std::min(begin, position(i));
            end = std::max(end, position(i));
        }
        for (int chunk = s_.first_chunk(begin); chunk <= s_.last_chunk(end); ++chunk) {
            attend_chunk(step, span, worker, kv_head, row, rows, chunk, next, s_.group() * s_.state());
            for (int head = 0; head < heads; ++head) {
                const int at = position(head / s_.group());
                float *state = states + head * s_.state(), *from = next + head * s_.state();
                if (chunk == s_.first_chunk(at))
                    std::copy_n(from, s_.state(), state);
                else if (chunk > s_.first_chunk(at) && chunk <= s_.last_chunk(at))
                    step.kernels().fold_attention(state, from, s_.head_dim);
            }
        }
        for (int head = 0; head < heads; ++head)
            step.kernels().finish_attention(states + head * s_.state(), s_.head_dim,
                                            step.buffer(s_.out).row(span.first + row + head / s_.group()) +
                                                (kv_head * s_.group() + head % s_.group()) * s_.head_dim);
    }

    // The queries of rows row..row + rows - 1 of a span, to the worker's scratch.
    void rotate_queries(Step& step, const Span& span, int worker, int kv_head, int row, int rows) {
        float* out = step.scratch(worker).queries.get();
        for (int i = span.first + row; i < span.first + row + rows; ++i) {
            const float* query = step.buffer(s_.qkv).row(i) + static_cast<size_t>(kv_head) * s_.group() * s_.head_dim;
            for (int h = 0; h < s_.group(); ++h, query += s_.head_dim, out += s_.head_dim)
                rotate_head(step, s_.q_norm, query, i, s_.head_dim, out);
        }
    }

    // The states of those rows for one chunk.
    void attend_chunk(Step& step, const Span& span, int worker, int kv_head, int row, int rows, int chunk,
                      float* states, size_t state_stride) {
        const Cache& cache = step.cache();
        const int begin = chunk * kAttentionChunk;
        const size_t at = cache.offset(span.pages[chunk], s_.layer, kv_head);
        AttentionChunk c{.queries = step.scratch(worker).queries.get(),
                         .query_stride = static_cast<size_t>(s_.group()) * s_.head_dim,
                         .tokens = rows,
                         .heads = s_.group(),
                         .head_dim = s_.head_dim,
                         .keys = cache.keys + at,
                         .values = cache.values + at,
                         .count = std::min(kAttentionChunk, span.start + row + rows - begin),
                         .position = span.start + row - begin,
                         .window = s_.window,
                         .scale = s_.scale,
                         .scratch = step.scratch(worker).attention.get(),
                         .states = states,
                         .state_stride = state_stride};
        if (span.is_chain) return step.kernels().attend(c);
        const AttentionTree tree = tree_of(step, span, worker, kv_head, row, begin);
        c.count = std::clamp(span.start - begin, 0, kAttentionChunk);
        c.tree = &tree;
        step.kernels().attend(c);
    }

    // The keys and values of a tree's rows, which the worker copies if they do not lie in one page.
    AttentionTree tree_of(Step& step, const Span& span, int worker, int kv_head, int row, int begin) {
        const Cache& cache = step.cache();
        const size_t first = cache.offset(span, s_.layer, kv_head, span.start);
        AttentionTree tree{.keys = cache.keys + first,
                           .values = cache.values + first,
                           .count = span.count,
                           .start = span.start - begin,
                           .paths = span.path(row),
                           .path_stride = span.deepest + 1,
                           .depths = span.depths.data() + row};
        if (span.start / kAttentionChunk == (span.end() - 1) / kAttentionChunk) return tree;
        Scratch& scratch = step.scratch(worker);
        for (int i = 0; i < span.count; ++i) {
            const size_t from = cache.offset(span, s_.layer, kv_head, span.start + i);
            const size_t to = static_cast<size_t>(i) * s_.head_dim;
            std::copy_n(cache.keys + from, s_.head_dim, scratch.tree_keys.get() + to);
            std::copy_n(cache.values + from, s_.head_dim, scratch.tree_values.get() + to);
        }
        tree.keys = scratch.tree_keys.get();
        tree.values = scratch.tree_values.get();
        return tree;
    }

    Shape s_;
};

// Combines what the chunks left for spans of few rows, one head of one row a task.
class CombineChunks final : public Operator {
  public:
    explicit CombineChunks(const Shape& shape) : s_(shape) {}

    int tasks(Step&, const Pass& pass) const override {
        return total(pass, [&](const Span& span) { return heads(span); });
    }

    void run(Step& step, const Pass& pass, Tasks& tasks, int) override {
        tasks.each([&](int task) {
            float* states = step.attention_states();
            for (const auto& span : pass.spans) {
                if (task < heads(span)) return combine(step, span, states, task);
                task -= heads(span);
                states += static_cast<size_t>(heads(span)) * s_.chunks(span) * s_.state();
            }
        });
    }

  private:
    int heads(const Span& span) const { return s_.by_chunk(span) ? span.count * s_.heads : 0; }

    void combine(Step& step, const Span& span, float* states, int head) {
        const int row = head / s_.heads, base = s_.first_chunk(span.start);
        const int position = span.start + (span.is_chain ? row : span.depths[row]);
        const auto of_chunk = [&](int chunk) {
            return states + (static_cast<size_t>(chunk - base) * heads(span) + head) * s_.state();
        };
        int chunk = s_.first_chunk(position);
        float* state = of_chunk(chunk);
        while (++chunk <= s_.last_chunk(position)) step.kernels().fold_attention(state, of_chunk(chunk), s_.head_dim);
        step.kernels().finish_attention(state, s_.head_dim,
                                        step.buffer(s_.out).row(span.first + row) + head % s_.heads * s_.head_dim);
    }

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
    step.add_operator(std::make_unique<StoreKV>(s));
    step.add_operator(std::make_unique<Attention>(s));
    step.add_operator(std::make_unique<CombineChunks>(s));
}

}  // namespace speq
