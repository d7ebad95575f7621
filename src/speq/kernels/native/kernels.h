// The kernels of one instruction set as a table of functions, and the choice among the tables at run time.
#pragma once
#include <string>
#include <vector>

#include "split.h"

namespace speq {

// One token's activations for the draft product, in the byte order of the draft plane, quantised with one scale per 64
// columns (per 32 where groups are that small).
struct DraftRow {
    int8_t* values;  // [padded columns]
    float* scales;   // [padded columns / 32], divided by the 64 of the levels
    float* offsets;  // [padded columns / 32]: -64 * sum of the half block's values
};

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

struct Kernels {
    const char* name;
    // The matrix products depend on the format; all other operators do not.
    using ExactRows = void (*)(const SplitWeight&, const float* x, size_t x_stride, int tokens, int begin, int end,
                               float* y, float* scratch);
    using DraftRows = void (*)(const SplitWeight&, const DraftRow&, int begin, int end, float* y);
    using Quantise = void (*)(const float* x, int columns, DraftRow);
    using DecodeRow = void (*)(const SplitWeight&, int row, float* out);
    ExactRows (*exact_rows)(const SplitWeight&);
    DraftRows (*draft_rows)(const SplitWeight&);
    Quantise (*quantise)(const SplitWeight&);
    DecodeRow (*decode_row)(const SplitWeight&);

    void (*rms_norm)(const float* x, const float* weight, int width, int padded, float eps, float* out);
    void (*rotate)(float* head, const float* cosine, const float* sine, int half);
    void (*to_cache)(const float* x, int width, uint16_t* out);
    void (*swiglu)(float* gate, const float* up, int width);
    void (*attend)(const float* query, const uint16_t* keys, const uint16_t* values, int first, int last, int head_dim,
                   float scale, float* weights, float* out);

    // For the encoder. Of the bins that begin at start[0..7] and can hold a weight the one whose draft value is nearest
    // to the target, the lowest of equals; -1 (an escape, which drafts as code 0) if there is none.
    void (*nearest_bins)(const Candidates&, const int16_t* start, const Drafts&, int residual_bits, int32_t* bins,
                         float* values);
    void (*add_outer)(const float* errors, const float* factors, int n, float* rows, size_t stride);
};

// Floats of scratch that exact_rows needs for so many tokens.
size_t exact_scratch(int tokens);

// The instruction sets this machine can run, best first.
std::vector<std::string> available_isas();

// The table by name, or the best one for an empty name. Throws std::invalid_argument for a name this machine cannot
// run.
const Kernels& kernels(const std::string& isa);

}  // namespace speq
