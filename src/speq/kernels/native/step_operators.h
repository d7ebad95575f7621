// The operators of speq.kernels.ops over the buffers and matrices of a Step.
#pragma once
#include <vector>

#include "step.h"

namespace speq {

struct LinearPart {  // one of the matrices that share an input; its results start at column `column` of the output
    int matrix;
    int column;
    const float* bias;  // or null
};

void add_embed(Step& step, int matrix, int out);
void add_linear(Step& step, int x, Norm norm, const std::vector<LinearPart>& parts, int out, bool accumulate);
void add_gated_linear(Step& step, int x, Norm norm, int gate, int up, int out);
void add_rotary(Step& step, int qkv, int layer, int heads, int kv_heads, int head_dim, Norm q_norm, Norm k_norm);
void add_attention(Step& step, int qkv, int out, int layer, int heads, int kv_heads, int head_dim, float scale,
                   int window);
void add_head(Step& step, int x, Norm norm, int matrix);

}  // namespace speq
