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
