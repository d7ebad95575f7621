// The operators of speq.graph.ops over the buffers and matrices of a Step.
#pragma once
#include <span>
#include <vector>

#include "step/step.h"

namespace speq {

struct LinearPart {  // one of the matrices that share an input; its results start at column `column` of the output
    int matrix;
    int column;
    std::span<const float> bias;  // one for each row, where it has any
    bool has_bias;
};

struct AttentionShape {  // buffers and sizes as in ops.Attention; window 0: all positions
    int qkv, out, layer, heads, kv_heads, head_dim;
    float scale;
    int window;
    Norm q_norm, k_norm;
};

// The operators state what they need of buffers, matrices and vectors: those that add them throw std::out_of_range
// where one does not exist and std::invalid_argument where it has another size.
void add_embed(Step& step, int matrix, int out);
void add_linear(Step& step, int x, Norm norm, const std::vector<LinearPart>& parts, int out, bool accumulate);
void add_gated_linear(Step& step, int x, Norm norm, LinearPart gate, LinearPart up, int out);
void add_attention(Step& step, const AttentionShape& shape);
void add_lm_head(Step& step, int x, Norm norm, int matrix);
// Draws from the logits of the head before it.
void add_sample(Step& step);
// Returns the number of the tap.
int add_tap(Step& step, int x);

void require_buffer(const Step& step, int index);
void require_width(Step& step, int buffer, int64_t width);
void require_norm(const Norm& norm, int width);

}  // namespace speq
