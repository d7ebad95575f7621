// Softmax attention of the query heads that share a kv head, over one chunk of the KV cache at a time.
//
// Chunks begin at multiples of kAttentionChunk positions, whatever is in the pass. A chunk gives each query a state
// (its peak, the total of its weights and their sum of values), and the states are folded in order of the chunks, so a
// token's result depends on its own positions alone. Lanes hold positions for the keys and columns for the values, each
// with a sum of its own: no sum changes its order with the width of a register.
#pragma once
#include <algorithm>
#include <cmath>

#include "core/kernels.h"
#include "core/simd_half.h"

namespace speq::SPEQ_ISA {

class AttentionRows {
  public:
    explicit AttentionRows(const AttentionChunk& c)
        : c_(c),
          keys_(c.scratch),
          weights_(c.scratch + attention_keys(c.head_dim)),
          tree_scores_(weights_ + static_cast<size_t>(c.tokens) * c.heads * kAttentionChunk) {}

    void run() const {
        score_all(c_.keys, c_.values, c_.count, weights_, kAttentionChunk);
        if (c_.tree && c_.tree->start < kAttentionChunk)
            score_all(c_.tree->keys, c_.tree->values, c_.tree->count, tree_scores_, kTreeRows);
        for (int t = 0; t < c_.tokens; ++t) {
            const int first = std::max(c_.first(t), 0), last = std::min(c_.last(t), kAttentionChunk - 1);
            if (first > last) continue;
            if (c_.tree) take_tree_scores(t, first, last);
            for (int h = 0; h < c_.heads; ++h) softmax(t * c_.heads + h, first, last);
            for (int h = 0; h < c_.heads;)
                h += split<kRows>(c_.heads - h, [&](auto n) { weigh<n>(t, t * c_.heads + h, first, last); });
        }
    }

  private:
    static constexpr int kKeyTile = 2 * kWideLanes;  // positions
    static constexpr int kRows = 6;                  // queries that share a load

    // Calls f with the size of the next part when `left` is cut into even parts of at most N; returns that size.
    template <int N, class Do>
    static SPEQ_INLINE int split(int left, Do&& f) {
        const int parts = (left + N - 1) / N, size = (left + parts - 1) / parts;
        unroll<N>([&](auto i) SPEQ_LAMBDA {
            if (size == i + 1) f(Index<i + 1>{});
        });
        return size;
    }

    // out[row * stride + i] = query . keys[i] * scale for all rows and `count` keys.
    void score_all(const uint16_t* keys, const uint16_t* values, int count, float* out, int stride) const {
        const int rows = c_.tokens * c_.heads;
        for (int begin = 0; begin < count; begin += kKeyTile) {
            widen_keys(keys, begin, count);
            for (int row = 0; row < rows;)
                row += split<kRows>(rows - row,
                                    [&](auto n) { score<n>(row, begin, keys, values, count, out + begin, stride); });
        }
    }

    // keys_[d][kKeyTile] = the strip's keys as float32, one column d after the other.
    void widen_keys(const uint16_t* keys, int begin, int count) const {
        const int head_dim = c_.head_dim;
        for (int p = 0; p < std::min(kKeyTile, count - begin); p += 16) {
            const uint16_t* rows[16];
            for (int i = 0; i < 16; ++i)
                rows[i] = keys + static_cast<size_t>(std::min(begin + p + i, count - 1)) * head_dim;
            int d = 0;
            for (; d + 8 <= head_dim; d += 8) transpose_fp16(rows, d, keys_ + d * kKeyTile + p, kKeyTile);
            for (; d < head_dim; ++d)
                for (int i = 0; i < 16; ++i) keys_[d * kKeyTile + p + i] = fp16_to_float(rows[i][d]);
        }
    }

    // out of N rows from `row` on = query . key * scale at the strip's keys
    template <int N>
    void score(int row, int begin, const uint16_t* keys, const uint16_t* values, int count, float* out,
               int stride) const {
        const float* query[N];
        for (int i = 0; i < N; ++i) query[i] = c_.query(row + i);
        Wide acc[N][2];
        unroll<N>([&](auto i) SPEQ_LAMBDA { acc[i][0] = acc[i][1] = wide_zero(); });
        // Asks for the next strip of keys and for this one's values, a line of each at a time, so that memory and
        // arithmetic go on together: kKeyTile * head_dim halves are at most one line for each of the head_dim turns.
        const uint16_t* next = keys + static_cast<size_t>(begin + kKeyTile) * c_.head_dim;
        const uint16_t* here = values + static_cast<size_t>(begin) * c_.head_dim;
        const int halves = row == 0 ? (count - begin) * c_.head_dim : 0;  // of values from there on
        for (int d = 0; d < c_.head_dim; ++d) {
            if ((d + c_.head_dim) * kKeyTile < halves) prefetch(next + d * kKeyTile);
            if (d * kKeyTile < halves) prefetch(here + d * kKeyTile);
            const Wide k0 = wide_load(keys_ + d * kKeyTile), k1 = wide_load(keys_ + d * kKeyTile + kWideLanes);
            unroll<N>([&](auto i) SPEQ_LAMBDA {
                const Wide q = wide_splat(query[i][d]);
                acc[i][0] = wide_fma(q, k0, acc[i][0]);
                acc[i][1] = wide_fma(q, k1, acc[i][1]);
            });
        }
        const Wide scale = wide_splat(c_.scale);
        unroll<N>([&](auto i) SPEQ_LAMBDA {
            float* scores = out + static_cast<size_t>(row + i) * stride;
            wide_store(scores, wide_mul(acc[i][0], scale));
            wide_store(scores + kWideLanes, wide_mul(acc[i][1], scale));
        });
    }

    // Puts the scores of the rows on the path to a token where the positions of a chain would have theirs.
    void take_tree_scores(int token, int first, int last) const {
        for (int h = 0; h < c_.heads; ++h) {
            const int row = token * c_.heads + h;
            const float* scores = tree_scores_ + static_cast<size_t>(row) * kTreeRows;
            for (int p = std::max(first, c_.tree->start); p <= last; ++p) weights(row)[p] = scores[tree_row(token, p)];
        }
    }

    // Scores first..last of a row to e^(score - peak); peak and total go to the row's state.
    void softmax(int row, int first, int last) const {
        float* weights = this->weights(row);
        const int begin = first & ~7, end = (last + 8) & ~7;
        // Padding weighs e^-87: nothing, for a total of at least e^0.
        std::fill(weights + begin, weights + first, -INFINITY);
        std::fill(weights + last + 1, weights + end, -INFINITY);
        Vec8 top = broadcast(-INFINITY);
        for (int i = begin; i < end; i += 8) top = max(load(weights + i), top);
        const float peak = largest(top);
        Vec8 totals = zero();
        for (int i = begin; i < end; i += 8) {
            const Vec8 e = exp(add(load(weights + i), broadcast(-peak)));
            store(weights + i, e);
            totals = add(totals, e);
        }
        float* state = c_.state(row);
        state[0] = peak;
        state[1] = sum(totals);
    }

    // The weighted sum of the values at positions first..last for N heads of one token.
    template <int N>
    void weigh(int token, int row, int first, int last) const {
        constexpr int vectors = kWideLanes == 16 ? 4 : 2;  // as many as the registers hold
        int d = 0;
        for (; d + vectors * kWideLanes <= c_.head_dim; d += vectors * kWideLanes)
            weigh_columns<N, vectors>(token, row, first, last, d);
        for (; d + kWideLanes <= c_.head_dim; d += kWideLanes) weigh_columns<N, 1>(token, row, first, last, d);
        for (; d < c_.head_dim; ++d)
            for (int i = 0; i < N; ++i) {
                float total = 0.0f;
                for (int p = first; p <= last; ++p)
                    total = std::fma(weights(row + i)[p], fp16_to_float(value(token, p)[d]), total);
                c_.state(row + i)[kStateHeader + d] = total;
            }
    }

    template <int N, int Vectors>
    SPEQ_INLINE void weigh_columns(int token, int row, int first, int last, int d) const {
        Wide acc[N][Vectors];
        unroll<N>([&](auto i) SPEQ_LAMBDA { unroll<Vectors>([&](auto j) SPEQ_LAMBDA { acc[i][j] = wide_zero(); }); });
        const float* weight = weights(row) + first;
        const auto add = [&](const uint16_t* values) SPEQ_LAMBDA {
            Wide v[Vectors];
            unroll<Vectors>([&](auto j) SPEQ_LAMBDA { v[j] = wide_load_fp16(values + j * kWideLanes); });
            unroll<N>([&](auto i) SPEQ_LAMBDA {
                const Wide w = wide_splat(weight[i * kAttentionChunk]);
                unroll<Vectors>([&](auto j) SPEQ_LAMBDA { acc[i][j] = wide_fma(w, v[j], acc[i][j]); });
            });
            ++weight;
        };
        const int end = std::min(last + 1, tree_start());
        const uint16_t* values = c_.values + static_cast<size_t>(first) * c_.head_dim + d;
        for (int p = first; p < end; ++p, values += c_.head_dim) add(values);
        for (int p = std::max(first, end); p <= last; ++p) add(value(token, p) + d);
        unroll<N>([&](auto i) SPEQ_LAMBDA {
            float* out = c_.state(row + i) + kStateHeader + d;
            unroll<Vectors>([&](auto j) SPEQ_LAMBDA { wide_store(out + j * kWideLanes, acc[i][j]); });
        });
    }

    // The first position of the chunk whose keys and values are a tree's.
    int tree_start() const { return c_.tree ? std::max(c_.tree->start, 0) : kAttentionChunk; }
    int tree_row(int token, int position) const {
        return c_.tree->paths[static_cast<size_t>(token) * c_.tree->path_stride + position - c_.tree->start];
    }
    const uint16_t* value(int token, int position) const {
        if (position < tree_start()) return c_.values + static_cast<size_t>(position) * c_.head_dim;
        return c_.tree->values + static_cast<size_t>(tree_row(token, position)) * c_.head_dim;
    }
    float* weights(int row) const { return weights_ + static_cast<size_t>(row) * kAttentionChunk; }

    const AttentionChunk& c_;
    float *keys_, *weights_, *tree_scores_;
};

inline void attend(const AttentionChunk& chunk) { AttentionRows(chunk).run(); }

// Adds the state of the next chunk to the state of the chunks before it.
inline void fold_attention(float* state, const float* next, int head_dim) {
    const float peak = state[0] > next[0] ? state[0] : next[0];
    const Vec8 before = exp(broadcast(state[0] - peak)), after = exp(broadcast(next[0] - peak));
    float totals[8];
    store(totals, fma(broadcast(state[1]), before, mul(broadcast(next[1]), after)));
    state[0] = peak;
    state[1] = totals[0];
    for (int d = kStateHeader; d < attention_state(head_dim); d += 8)
        store(state + d, fma(load(state + d), before, mul(load(next + d), after)));
}

// The head's result from the state of all its chunks.
inline void finish_attention(const float* state, int head_dim, float* out) {
    const float inverse = 1.0f / state[1];
    for (int d = 0; d < head_dim; ++d) out[d] = state[kStateHeader + d] * inverse;
}

}  // namespace speq::SPEQ_ISA
