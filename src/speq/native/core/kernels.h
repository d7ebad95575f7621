// The kernels of one instruction set as a table of functions, and the choice among the tables at run time.
#pragma once
#include <limits>
#include <string>
#include <vector>

#include "core/split.h"

namespace speq {

// One token's activations for the draft product, in the byte order of the draft plane, quantised with one scale per 64
// columns (per 32 where groups are that small).
struct DraftRow {
    int8_t* values;    // [padded columns / 32][copies][32], a copy for each row of a vector
    float* scales;     // [padded columns / 32], divided by the 64 of the levels
    int32_t* offsets;  // [block][half, where groups are that small][copies][8]: -64 * sum of a lane's values
};
constexpr int kDraftCopies = 2;  // at most

// Weights that look for a bin: magnitudes as integers, -1 or 0 for negative or not, and the value to come near.
struct Candidates {
    const int32_t *magnitudes, *negative;
    const float* targets;
    int count;
};

// What the codes of a group are worth in a draft: of positive weights (codes 0 to 7) and of negative ones.
struct Drafts {
    float above[8], below[8];
};

// Rows of which error feedback is worked out together, and columns whose targets are summed up together.
constexpr int kFeedbackRows = 32, kFeedbackColumns = 8;

// Beginnings of bins and drafts where each row has a group of its own.
struct RowBins {
    int32_t start[8][kFeedbackRows];
    float above[8][kFeedbackRows], below[8][kFeedbackRows];
};

// Attention works on chunks of the KV cache that begin at multiples of this many positions.
constexpr int kAttentionChunk = 256;
constexpr int kAttentionTokens = 16;  // at most, in one AttentionChunk

// What a chunk of positions contributes to one query: its peak score, the total of its weights, room, and the weighted
// sum of its values; floats in all.
constexpr int kStateHeader = 8;
constexpr int attention_state(int head_dim) { return kStateHeader + (head_dim + 7) / 8 * 8; }

// Rows that a tree may have, at most.
constexpr int kTreeRows = 64;

// Scratch for one chunk of keys as float32, for the weights of `rows` queries and for their scores with the rows of a
// tree, in floats.
constexpr size_t attention_keys(int head_dim) { return static_cast<size_t>(head_dim) * 32; }
constexpr size_t attention_scratch(int rows, int head_dim) {
    return attention_keys(head_dim) + static_cast<size_t>(rows) * (kAttentionChunk + kTreeRows);
}

// The rows of a tree, whose keys and values stand by row and not by position. Depth d has position start + d.
struct AttentionTree {
    const uint16_t *keys, *values;  // FP16 [count, head_dim]
    int count;                      // rows
    int start;                      // position of depth 0, relative to the chunk
    const int32_t* paths;           // of token t, the row at depth d of the path to it at paths[t * path_stride + d]
    int path_stride;
    const int32_t* depths;  // of each token
};

// The queries of a few tokens that share a kv head, and a chunk of its keys and values. A row is a token's head:
// row = token * heads + head.
struct AttentionChunk {
    const float* queries;  // of token t at queries + t * query_stride, one head after the other
    size_t query_stride;
    int tokens, heads, head_dim;
    const uint16_t *keys, *values;  // FP16 [count, head_dim]
    int count;                      // positions of the chunk that stand at `keys` and `values`
    int position;                   // of token 0 of a chain, relative to the chunk
    int window;                     // how many positions up to its own a token attends to; 0: all
    float scale;
    float* scratch;       // as attention_scratch() says
    float* states;        // [tokens][heads][attention_state(head_dim)] out; rows without a position here are left alone
    size_t state_stride;  // from token to token
    const AttentionTree* tree = nullptr;  // of tokens that are no chain

    int last(int token) const { return tree ? tree->start + tree->depths[token] : position + token; }
    int first(int token) const { return window > 0 ? last(token) - window + 1 : std::numeric_limits<int>::min(); }
    const float* query(int row) const { return queries + row / heads * query_stride + row % heads * head_dim; }
    float* state(int row) const {
        return states + row / heads * state_stride + row % heads * attention_state(head_dim);
    }
};

// Passes of up to so many tokens are those of decoding, whose activations are prepared together.
constexpr int kFewTokens = 16;

// The activations of an exact product, as Kernels::prepare_few or prepare_row writes them.
struct Activations {
    const float* rows;  // of more than kFewTokens tokens, token t at rows + t * stride
    size_t stride;
    int tokens;
};

struct Kernels {
    const char* name;
    // The matrix products depend on the format; all other operators do not.
    using ExactRows = void (*)(const SplitWeight&, const Activations&, int begin, int end, float* y, float* scratch);
    using PrepareRow = void (*)(const float* x, int columns, float* out);
    using PrepareFew = void (*)(const float* x, size_t stride, int tokens, int columns, float* out);
    using DraftRows = void (*)(const SplitWeight&, const DraftRow* x, int tokens, int begin, int end, float* y);
    using Quantise = void (*)(const float* x, int columns, DraftRow);
    using DecodeRow = void (*)(const SplitWeight&, int row, float* out);
    ExactRows (*exact_rows)(const SplitWeight&);
    // Packs one of many tokens' activations, in at most as many floats, perhaps in place; null where they are used as
    // they are.
    PrepareRow (*prepare_row)(const SplitWeight&);
    // Packs those of up to kFewTokens tokens, `stride` floats apart, in at most as many floats as kFewTokens rows have.
    PrepareFew (*prepare_few)(const SplitWeight&);
    DraftRows (*draft_rows)(const SplitWeight&);
    // The draft of up to kFewTokens tokens together, whose activations prepare_draft has packed, in at most as many
    // floats as kFewTokens rows have; both null where there is none.
    PrepareFew (*prepare_draft)(const SplitWeight&);
    ExactRows (*draft_few)(const SplitWeight&);
    bool drafts_few;  // whether this set drafts with draft_few, where there is one, and not with draft_rows
    Quantise (*quantise)(const SplitWeight&);
    DecodeRow (*decode_row)(const SplitWeight&);

    void (*rms_norm)(const float* x, const float* weight, int width, int padded, float eps, float* out);
    void (*rotate)(float* head, const float* cosine, const float* sine, int half);
    void (*to_cache)(const float* x, int width, uint16_t* out);
    void (*swiglu)(float* gate, const float* up, int width);
    void (*attend)(const AttentionChunk&);
    void (*fold_attention)(float* state, const float* next, int head_dim);
    void (*finish_attention)(const float* state, int head_dim, float* out);

    // For the encoder. Of the bins that begin at start[0..7] and can hold a weight the one whose draft value is nearest
    // to the target, the lowest of equals; -1 (an escape, which drafts as code 0) if there is none.
    void (*nearest_bins)(const Candidates&, const uint16_t* start, const Drafts&, int residual_bits, int32_t* bins,
                         float* values);
    // nearest_bins for the weights of kFeedbackRows rows in one column.
    void (*nearest_bins_of_rows)(const Candidates&, const RowBins&, int residual_bits, int32_t* bins, float* values);
    // targets[c][r] += errors[j][r] * factors[j][c], for j = 0, 1, ... n - 1 in this order; kFeedbackRows by
    // kFeedbackColumns targets.
    void (*add_products)(const float* errors, const float* factors, int n, float* targets);
};

// The instruction sets this machine can run, best first.
std::vector<std::string> available_isas();

// The table by name, or the best one for an empty name. Throws std::invalid_argument for a name this machine cannot
// run.
const Kernels& kernels(const std::string& isa);

}  // namespace speq
